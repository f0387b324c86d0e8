"""What people tell a running search to do with its trials, done in the driver, between two steps of Tune's loop.

The journal is where an instruction begins to hold: it is written there first, and all that follows from it (a trial that
ends, a longer budget, a clone) is made from the histories. So a driver that resumes the search knows what is still to be
done, and an instruction is carried out once, whoever dies in between.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import ray

from components.cluster.capacity.autoscaler import capacity_of_cluster
from components.cluster.capacity.node_types import InsufficientCapacityError, check_capacity
from components.cluster.driver.gauges import TrialGauges
from components.cluster.slots.context import SearchContext
from components.experiment.errors import ExperimentError
from components.experiment.space import change_trial, num_trials, value_at, weights_fit
from components.experiment.spec import ExperimentSpec, TrialSpec
from components.records.commands import CloneTrial, ExtendTrial, Reply, Request, RequestInbox, StopTrial
from components.records.events import (
    Clone,
    Extension,
    Stop,
    TrialEvent,
    TrialHistory,
    TrialInstructed,
    apply_event,
)
from components.storage.open import folder_at

MAX_TIMES_THE_BUDGET = 10  # an extension to more than that is taken for a slip
Emit = Callable[[TrialEvent], None]


class Refused(Exception):
    """A request that cannot be; the message says why, and what can."""


class TrialController:
    """One per search, in its driver. `emit` stands between the search and the journal, so that the histories are whole."""

    def __init__(
        self,
        context: SearchContext,
        board: Any,
        emit: Emit,
        histories: Mapping[str, TrialHistory],
        desk: RequestInbox | None,
        budget: int,
    ) -> None:
        self.context, self.board, self.desk, self.budget = context, board, desk, budget
        self._emit = emit
        self.histories = dict(histories)
        self._gauges = TrialGauges(context.search_id)
        self.planned = num_trials(context.experiment)
        self.hopeless: str | None = None  # why no trial of this search can succeed
        self._handed_out: set[str] | None = None  # until Tune has said which trials it has restored

    def emit(self, record: TrialEvent) -> None:
        self._emit(record)
        history = self.histories[record.trial_id] = apply_event(self.histories.get(record.trial_id), record)
        self._gauges.show(record, history.started)

    def serve(self, known_to_tune: Iterable[str]) -> None:
        """Replies to whatever has been asked since the last time. Called before each step of Tune's loop, with its trials."""
        if self._handed_out is None:
            self._handed_out = set(known_to_tune)
        self._gauges.refresh()
        for request in self.desk.take() if self.desk is not None else ():
            assert self.desk is not None
            self.desk.reply(request, self._reply(request))

    @property
    def clones(self) -> dict[str, tuple[str, Clone]]:
        """(parent, clone) by the clone's trial id, in the order of asking."""
        return {
            clone.trial_id: (parent, clone) for parent, history in self.histories.items() for clone in history.clones
        }

    def next_clone(self) -> tuple[str, Clone] | None:
        """One that Tune does not have yet. It is Tune's from now on."""
        if self._handed_out is None or not (waiting := self._waiting()):
            return None
        self._handed_out.add(waiting[0])
        return self.clones[waiting[0]]

    @property
    def has_clones(self) -> bool:
        """Whether there may be one for next_clone."""
        return bool(self._waiting())

    @property
    def pinned(self) -> set[str]:
        """Checkpoints whose weights a clone begins with: whatever becomes of their own trial, they stay."""
        return {clone.warm_from for _, clone in self.clones.values() if clone.warm_from is not None}

    def stop_of(self, trial_id: str) -> TrialInstructed | None:
        """Who wants the trial to end, if anybody does."""
        history = self.histories.get(trial_id)
        return history.stop if history is not None else None

    def _waiting(self) -> list[str]:
        return [trial_id for trial_id in self.clones if trial_id not in (self._handed_out or ())]

    def _reply(self, request: Request) -> Reply:
        """A request that an earlier driver journaled, and died before it replied, is not carried out twice."""
        told = (told for history in self.histories.values() for told in history.instructions)
        try:
            known = next((known for known in told if known.request_id == request.request_id), None)
            promised = known or self._carry_out(request)
        except (Refused, ExperimentError, InsufficientCapacityError) as refusal:
            return Reply(accepted=False, message=str(refusal))
        return Reply(accepted=True, message=self._promise(promised))

    def _carry_out(self, request: Request) -> TrialInstructed:
        history = self._find(request.wish.trial)
        match request.wish:
            case StopTrial():
                instruction: Stop | Extension | Clone = self._stop(history)
            case ExtendTrial() as wish:
                instruction = self._extension(history, wish)
            case CloneTrial() as wish:
                instruction = self._clone(history, wish)
        told = TrialInstructed(
            trial_id=history.trial_id,
            instruction=instruction,
            request_id=request.request_id,
            by=request.by,
            time=time.time(),
        )
        self.emit(told)
        if isinstance(instruction, Stop):
            self.board.end.remote(history.trial_id)
        return told

    def _find(self, trial: str) -> TrialHistory:
        for history in self.histories.values():
            if trial in (str(history.started.number), history.trial_id):
                return history
        planned = self.planned + len(self.clones)
        if trial.isdigit() and 1 <= int(trial) <= planned:
            raise Refused(f"trial {trial} has not started yet; it can be told something once it runs")
        raise Refused(f"there is no trial {trial}; this search has 1 to {planned}")

    def _running(self, history: TrialHistory) -> str:
        """The trial's name for people. Raises Refused if it is at its end already."""
        name = f"trial {history.started.number}"
        if history.state != "running":
            raise Refused(f"{name} has ended already: {history.state}" + f" ({history.reason})" * bool(history.reason))
        if history.stop is not None:
            raise Refused(f"{name} is about to end already: {history.stop.sentence}")
        return name

    def _stop(self, history: TrialHistory) -> Stop:
        self._running(history)
        return Stop()

    def _extension(self, history: TrialHistory, wish: ExtendTrial) -> Extension:
        name, present = self._running(history), history.budget(self.budget)
        tokens = wish.target_tokens if wish.target_tokens is not None else round(present * (1 + (wish.share or 0.0)))
        if tokens <= present:
            raise Refused(f"{name} may spend {present:,} target tokens already; ask for more than that, or stop it")
        if tokens >= MAX_TIMES_THE_BUDGET * self.budget:
            raise Refused(
                f"{tokens:,} target tokens are {tokens / self.budget:.0f} times the budget of this search; less than"
                f" {MAX_TIMES_THE_BUDGET} times may be asked for ({MAX_TIMES_THE_BUDGET * self.budget:,})"
            )
        step = history.last.step if history.last else 0
        from_step: int | None = ray.get(self.board.extend.remote(history.trial_id, tokens, step))
        if from_step is None:
            raise Refused(f"{name} has just spent its whole budget and ends")
        return Extension(target_tokens=tokens, from_step=from_step)

    def _clone(self, history: TrialHistory, wish: CloneTrial) -> Clone:
        experiment, parent = self.context.experiment, history.started
        spec = change_trial(experiment, parent.spec, wish.changes)
        if spec.method.kind != parent.spec.method.kind:
            check_capacity(_alone(experiment, parent.branch, spec), capacity_of_cluster())
        return Clone(
            trial_id=uuid.uuid4().hex[:8],
            number=self.planned + len(self.clones) + 1,
            branch=parent.branch,
            spec=spec,
            varied={**parent.varied, **{path: value_at(spec, path) for path in wish.changes}},
            warm_from=self._warm(history, spec) if wish.warm else None,
        )

    def _warm(self, history: TrialHistory, spec: TrialSpec) -> str:
        name = f"trial {history.started.number}"
        if history.best is None or history.best.checkpoint is None:
            raise Refused(f"{name} has no checkpoint yet; clone it without --warm, or after its first report")
        if not weights_fit(history.started.spec.method, spec.method):
            raise Refused(f"{name} has weights of another shape than the clone's method; clone it without --warm")
        if not folder_at(history.best.checkpoint).is_complete():
            raise Refused(f"{name} has a checkpoint that is still on its way to the storage; ask again in a minute")
        return history.best.checkpoint

    def _promise(self, told: TrialInstructed) -> str:
        number = self.histories[told.trial_id].started.number
        match told.instruction:
            case Stop():
                return f"trial {number} finishes its step, reports and ends"
            case Extension(target_tokens=tokens):
                return f"trial {number} may spend {tokens:,} target tokens; from its next report on it follows their schedule"
            case Clone() as clone:
                weights = ", and begins with its weights" if clone.warm_from else ""
                return f"trial {clone.number} is trial {number} with your changes{weights}; it runs before what waits"


def _alone(experiment: ExperimentSpec, branch: str, spec: TrialSpec) -> ExperimentSpec:
    """The experiment with nothing but trials of this spec's method."""
    search = experiment.search.model_copy(update={"space": {branch: {"method": {"kind": spec.method.kind}}}})
    return experiment.model_copy(update={"search": search, "trial": spec})


# Tune pickles its stoppers, schedulers and search algorithms; what listens in this process must stay out of that.
_directors: dict[str, TrialController] = {}


def direct(director: TrialController) -> None:
    """From now on Tune's parts in this process ask this one about its search."""
    _directors[director.context.search_id] = director


def controller_of(search_id: str) -> TrialController:
    return _directors[search_id]
