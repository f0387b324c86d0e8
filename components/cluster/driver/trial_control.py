"""People's commands about the trials of a running search, executed in the driver between two steps of Tune's loop.

An accepted command is journaled, as an instruction, before it has any effect (a trial that ends, a longer budget, a clone):
effects follow from the histories. So a driver that resumes the search knows what is still to be done, and each command takes
effect once, whichever process dies in between.
"""

from __future__ import annotations

import contextlib
import logging
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from typing import Any

import ray

from components.cluster.capacity.autoscaler_config import capacity_of_cluster
from components.cluster.capacity.cluster_capacity import InsufficientCapacityError, check_capacity
from components.cluster.driver.disk_watch import DiskWatch
from components.cluster.driver.equal_trials import equal_trial
from components.cluster.driver.gauges import TrialGauges
from components.cluster.driver.spending import Spending
from components.cluster.ray_session import workers_are_here
from components.cluster.slots.search_context import SearchContext
from components.experiment.experiment_errors import ExperimentError
from components.experiment.space import branches_of, change_trial, num_trials, value_at, weights_fit
from components.experiment.spec import ExperimentSpec, TrialSpec
from components.models.quantization_backend import missing_package
from components.records.commands import (
    CloneTrial,
    CommandReply,
    ExtendTrial,
    Request,
    RequestInbox,
    StopTrial,
    TrialCommand,
)
from components.records.disk_use import DiskUse
from components.records.events import (
    Clone,
    Extension,
    Stop,
    TrialEnded,
    TrialHistory,
    TrialInstructed,
    TrialState,
)
from components.records.finalists import due_repeats
from components.records.histories import TrialHistories
from components.records.slot_clock import SlotClock
from components.storage.foreign_files import reason_of
from components.storage.open_folder import folder_at
from components.storage.size import size_in_words

log = logging.getLogger(__name__)

GAVE_PLACE = "the scheduler gave its place to others"
MAX_TIMES_THE_BUDGET = 10  # a longer extension is taken for a mistake


class Refused(Exception):
    """A command that cannot be executed. The message says why, and what can be done."""


class TrialController:
    """One per search, in its driver: Tune's callbacks, schedulers and search algorithms find it by `controller_of`."""

    def __init__(
        self,
        context: SearchContext,
        board: Any,
        histories: TrialHistories,
        gauges: TrialGauges,
        inbox: RequestInbox | None = None,
        clock: SlotClock | None = None,
        spending: Spending | None = None,
        disk: DiskUse | None = None,
    ) -> None:
        """`spending`: of a search with a budget. `disk`: what the search keeps, with the clones that the journal has."""
        self.context, self.board, self.histories, self.gauges, self._inbox = context, board, histories, gauges, inbox
        self.clock, self.spending, self._disk = clock or SlotClock(), spending, disk
        self.disk_watch = None if disk is None else DiskWatch(context.folder, disk.largest_checkpoint)
        self.reasons: dict[str, str] = {}  # why the scheduler has ended trials
        self.planned = num_trials(context.experiment)
        self.fatal_error: str | None = None  # why no trial of this search can succeed
        self.starts_again: set[str] = set()  # trials whose slot was lost while it was handed over
        self._lost_starts: Counter[str] = Counter()
        self._handed_over: set[str] = set()  # clones that Tune has, and that may not have begun

    def process_requests(self) -> None:
        """Replies to new requests. Called before each step of Tune's loop."""
        if self._inbox is not None:
            for request in self._inbox.poll():
                self._inbox.reply(request, self._reply(request))

    def note_lost_start(self, trial_id: str) -> None:
        """A slot was lost while it was handed over. Of these losses, too, a trial may have `search.max_failures`."""
        self._lost_starts[trial_id] += 1
        if self._lost_starts[trial_id] <= self.context.experiment.search.max_failures:
            self.starts_again.add(trial_id)

    @property
    def clones(self) -> dict[str, tuple[str, Clone]]:
        """(parent, clone) by the clone's trial id, in the order of the requests."""
        return {
            clone.trial_id: (parent, clone) for parent, history in self.histories.items() for clone in history.clones
        }

    def next_clone(self) -> tuple[str, Clone] | None:
        """Hands a clone that has not begun over to Tune, once; None if there is none."""
        if not (waiting := self._waiting()):
            return None
        self._handed_over.add(waiting[0])
        return self.clones[waiting[0]]

    @property
    def has_clones(self) -> bool:
        """Whether next_clone may have one."""
        return bool(self._waiting())

    def confirm_finalists(self) -> None:
        """Asks for the repeats that search.confirm wants, once all other trials have ended."""
        confirm = self.context.experiment.search.confirm
        if confirm is None or self.fatal_error is not None:
            return
        for repeat in list(due_repeats(self.histories, confirm, planned=self.planned, now=time.time())):
            self.histories.record(repeat)

    @property
    def is_closed(self) -> bool:
        """Whether the budget lets no new trial of any branch start."""
        branches = self.context.experiment.search.space
        return self.spending is not None and all(map(self.spending.refuses, branches))

    def may_start(self, trial_id: str, branch: str) -> bool:
        """Whether the budget lets a trial that waits have a slot. One that has begun may go on until a limit is reached."""
        if self.spending is None:
            return True
        if trial_id in self.histories:
            return self.spending.exhausted() is None
        return self.spending.refuses(branch) is None

    def end_what_cannot_be_paid(self) -> None:
        """Once a limit of the budget is reached, stops all running trials: each reports after its step."""
        limit = None if self.spending is None else self.spending.exhausted()
        if limit is None:
            return
        for history in [each for each in self.histories.values() if each.state is TrialState.RUNNING and not each.stop]:
            self._instruct(history.trial_id, Stop(), request_id=f"budget-{history.trial_id}", by=limit)

    def reason_of(self, trial_id: str) -> str:
        """Why the scheduler ended a trial."""
        return self.reasons.get(trial_id, GAVE_PLACE)

    def end_running_trials(self) -> None:
        """Records the end of the trials that the fatal error stopped: Tune tells its callbacks nothing of these."""
        assert self.fatal_error is not None
        for history in [history for history in self.histories.values() if history.state is TrialState.RUNNING]:
            self.histories.record(
                TrialEnded(
                    trial_id=history.trial_id, state=TrialState.STOPPED, reason=self.fatal_error, time=time.time()
                )
            )

    def stop_of(self, trial_id: str) -> TrialInstructed | None:
        """Returns the instruction to end a trial early; None if there is none."""
        history = self.histories.get(trial_id)
        return history.stop if history is not None else None

    def _waiting(self) -> list[str]:
        return [each for each in self.clones if each not in self._handed_over and each not in self.histories]

    def _reply(self, request: Request) -> CommandReply:
        """A request that an earlier driver journaled, but did not reply to, is not executed twice."""
        journaled = (given for history in self.histories.values() for given in history.instructions)
        known = next((given for given in journaled if given.request_id == request.request_id), None)
        if known is not None:
            return CommandReply(accepted=True, message=self._describe(known))
        try:
            history = self._find(request.command.trial)
            instruction = self._instruction(history, request.command)
        except (Refused, ExperimentError, InsufficientCapacityError) as refusal:
            return CommandReply(accepted=False, message=str(refusal))
        except Exception as error:  # nothing that somebody asks for ends the search of others
            log.exception("request %s cannot be carried out", request.request_id)
            return CommandReply(accepted=False, message=f"it cannot be carried out ({reason_of(error)})")
        # Outside: a journal that takes no line is a matter of the search.
        instructed = self._instruct(history.trial_id, instruction, request_id=request.request_id, by=request.by)
        return CommandReply(accepted=True, message=self._describe(instructed))

    def _instruction(self, history: TrialHistory, command: TrialCommand) -> Stop | Extension | Clone:
        match command:
            case StopTrial():
                return self._stop(history)
            case ExtendTrial():
                return self._extension(history, command)
            case CloneTrial():
                return self._clone(history, command)

    def _instruct(
        self, trial_id: str, instruction: Stop | Extension | Clone, *, request_id: str, by: str
    ) -> TrialInstructed:
        instructed = TrialInstructed(
            trial_id=trial_id, instruction=instruction, request_id=request_id, by=by, time=time.time()
        )
        self.histories.record(instructed)
        match instruction:
            case Stop():
                self.board.stop_trial.remote(trial_id)
            case Extension():  # a board that has died since it gave the step may not have found this in the journal
                self.board.note_extensions.remote(trial_id, self.histories[trial_id].extensions)
        return instructed

    def _find(self, trial: str) -> TrialHistory:
        for history in self.histories.values():
            if trial in (str(history.started.number), history.trial_id):
                return history
        planned = self.planned + len(self.clones)
        if trial in map(str, range(1, planned + 1)):
            raise Refused(f"trial {trial} has not started yet; it can be told something once it runs")
        raise Refused(f"there is no trial {trial}; this search has 1 to {planned}")

    def _name_of_running(self, history: TrialHistory) -> str:
        """Returns the trial's name for people. Raises Refused if it has ended, or is about to."""
        name = f"trial {history.started.number}"
        if history.state != TrialState.RUNNING:
            raise Refused(f"{name} has ended already: {history.state}" + f" ({history.reason})" * bool(history.reason))
        if history.stop is not None:
            raise Refused(f"{name} is about to end already: {history.stop.sentence}")
        return name

    def _stop(self, history: TrialHistory) -> Stop:
        self._name_of_running(history)
        return Stop()

    def _extension(self, history: TrialHistory, command: ExtendTrial) -> Extension:
        planned = self.context.budget
        name, present = self._name_of_running(history), history.budget(planned)
        tokens = command.target_tokens
        if tokens is None:
            tokens = round(present * (1 + (command.share or 0.0)))
        if tokens <= present:
            raise Refused(f"{name} may spend {present:,} target tokens already; ask for more than that, or stop it")
        if tokens >= MAX_TIMES_THE_BUDGET * planned:
            raise Refused(
                f"{tokens:,} target tokens are {tokens / planned:.0f} times the budget of this search; less than"
                f" {MAX_TIMES_THE_BUDGET} times may be asked for ({MAX_TIMES_THE_BUDGET * planned:,})"
            )
        step = history.last.step if history.last else 0
        from_step: int | None = ray.get(self.board.extend.remote(history.trial_id, tokens, step))
        if from_step is None:
            raise Refused(f"{name} has just spent its whole budget and ends")
        return Extension(target_tokens=tokens, from_step=from_step)

    def _clone(self, history: TrialHistory, command: CloneTrial) -> Clone:
        experiment, parent = self.context.experiment, history.started
        if self.spending is not None and (limit := self.spending.refuses(parent.branch)):
            raise Refused(f"{limit} leaves too little for another trial of branch {parent.branch}")
        model = branches_of(experiment)[parent.branch].model
        spec = change_trial(experiment, parent.spec, command.changes, model=model)
        if workers_are_here() and (missing := missing_package([spec])):
            raise Refused(missing)
        if spec.method.kind != parent.spec.method.kind:
            check_capacity(_alone(experiment, parent.branch, spec), capacity_of_cluster())
        warm_from = self._warm_start(history, spec) if command.warm else None
        if equal := equal_trial(experiment, self.histories, spec, warm_from):
            warm = "" if command.warm else ", or clone it with --warm, to begin with its parent's weights"
            raise Refused(f"{equal} has this configuration already; change another value with --set{warm}")
        self._take_room(parent.branch, spec, warm=warm_from is not None)
        return Clone(
            trial_id=uuid.uuid4().hex[:8],
            number=self.planned + len(self.clones) + 1,
            branch=parent.branch,
            spec=spec,
            varied={**parent.varied, **{path: value_at(spec, path) for path in command.changes}},
            warm_from=warm_from,
        )

    def _take_room(self, branch: str, spec: TrialSpec, *, warm: bool) -> None:
        """Raises Refused if the disk budget has none for another trial."""
        budget = self.context.experiment.storage.budget_gb
        if self._disk is None or budget is None:
            return
        more = self._disk.with_clone(branch, spec.method, warm=warm)
        if more is None:
            raise Refused(
                f"storage.budget_gb={budget:g} holds what was planned, and no trial of method {spec.method.kind} was;"
                " resume the search without it"
            )
        if not more.is_within(budget):
            raise Refused(
                f"with that clone the search may keep {size_in_words(more.peak)}, and storage.budget_gb={budget:g}; stop the"
                " search, and resume it with a larger one"
            )
        self._disk = more

    def _warm_start(self, history: TrialHistory, spec: TrialSpec) -> str:
        name = f"trial {history.started.number}"
        if history.best is None or history.best.checkpoint is None:
            raise Refused(f"{name} has no evaluated checkpoint; clone it without --warm, or after its first evaluation")
        if not weights_fit(history.started.spec.method, spec.method):
            raise Refused(f"{name} has weights of another shape than the clone's method; clone it without --warm")
        if not folder_at(history.best.checkpoint).is_complete():
            raise Refused(f"{name} has a checkpoint that is still on its way to the storage; ask again in a minute")
        return history.best.checkpoint

    def _describe(self, instructed: TrialInstructed) -> str:
        """Returns what will happen, in a sentence for the person who asked."""
        number = self.histories[instructed.trial_id].started.number
        match instructed.instruction:
            case Stop():
                return f"trial {number} finishes its step, reports and ends"
            case Extension(target_tokens=tokens):
                return f"trial {number} may spend {tokens:,} target tokens; from its next report on it follows their schedule"
            case Clone() as clone:
                weights = ", and begins with its weights" if clone.warm_from else ""
                return f"trial {clone.number} is trial {number} with your changes{weights}; it runs before what waits"


def _alone(experiment: ExperimentSpec, branch: str, spec: TrialSpec) -> ExperimentSpec:
    """Returns the experiment reduced to trials of this spec's method."""
    search = experiment.search.model_copy(update={"space": {branch: {"method": {"kind": spec.method.kind}}}})
    return experiment.model_copy(update={"search": search, "trial": spec})


# Tune pickles its callbacks, stoppers, schedulers and search algorithms: they know the search's id, and no controller.
_attached: dict[str, TrialController] = {}


@contextlib.contextmanager
def attached(controller: TrialController) -> Iterator[None]:
    """Inside, `controller_of` finds this controller by its search's id, in this process."""
    search_id = controller.context.search_id
    _attached[search_id] = controller
    try:
        yield
    finally:
        del _attached[search_id]


def controller_of(search_id: str) -> TrialController:
    return _attached[search_id]
