"""What each Ray Train worker of a slot runs: a loop over commands, with the base model kept between trials."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray
import ray.train
import torch.distributed as dist

from components.cluster.ray_session import this_node
from components.cluster.slots.deaths import WAYS_OUT, Evidence
from components.cluster.slots.faults import noting_faults, take_faults
from components.cluster.slots.guests import Guests
from components.cluster.slots.oom_kills import oom_kills
from components.cluster.slots.protocol import (
    Advance,
    Done,
    EndSlot,
    Failed,
    Left,
    Load,
    Reported,
    Resume,
    SlotAnswer,
    SlotCommand,
    Start,
    Wait,
    Witness,
)
from components.cluster.slots.resume import newest_checkpoint
from components.cluster.slots.search_context import SearchBase, SearchContext
from components.cluster.slots.slot_signals import SlotSignals
from components.cluster.slots.train_workers import device_in_words, workers_of_this_run
from components.data.prepare import PreparedDataset
from components.experiment.base_precisions import base_variants
from components.experiment.space import Branch, branches_of, some_trial
from components.experiment.spec import WorkersSpec
from components.records.events import Extension, InterimCheckpoint
from components.storage.open_folder import folder_at
from components.storage.retry import StorageError
from components.training.budget_units import ranked_by
from components.training.co_training import SharedTraining
from components.training.out_of_memory import RowsExceedMemory, is_out_of_memory
from components.training.pace import Pace
from components.training.rung_sample import RungSample
from components.training.training_data import TrainingData
from components.training.trial_runner import TrialRunner
from components.training.workers import UnfitWorkersError, Workers

LOOK_SECONDS = 1.0  # how often a worker that waits for a command looks whether it is still needed


@dataclass(frozen=True, slots=True)
class _TrialSignals:
    """The signals of the slot for the trial that it runs (training/signals.py)."""

    slot: SlotSignals
    trial_id: str
    extensions: Sequence[Extension]

    def preempted(self) -> bool:
        return self.slot.must_leave()

    def stop_requested(self) -> bool:
        return self.slot.must_report(self.trial_id)


@dataclass(frozen=True, kw_only=True)
class _Service:
    """What a worker needs to know to serve one slot.

    Args:
        first: whether it is the worker that talks with the board.
        shared: with the other slots that this process serves.
        gone: whether the slot needs this process no more, or this process must end for a reason of another slot's.
        check: raises that reason.
    """

    context: SearchContext
    spec: WorkersSpec
    board: Any
    slot: str
    first: bool = True
    shared: SharedTraining | None = None
    gone: Callable[[], bool] = lambda: False
    check: Callable[[], None] = lambda: None


def serve_commands(config: dict[str, Any]) -> None:
    """The train loop of a slot. config: context (SearchContext), board (actor handle), slot (str), workers (WorkersSpec)."""
    first = ray.train.get_context().get_world_rank() == 0
    own = _Service(
        context=config["context"], spec=config["workers"], board=config["board"], slot=config["slot"], first=first
    )
    if own.spec.trials_at_once > 1:
        shared = replace(own, shared=SharedTraining())
        guests = Guests(own.board, own.slot, lambda slot, gone: _serve(replace(shared, slot=slot, gone=gone)))
        own = replace(shared, check=guests.check, gone=guests.failed)
    faults = take_faults(own.slot)
    with noting_faults(own.slot):
        # Whose trial it was that brought a shared process down, nobody knows: a strike might be another one's.
        _serve(own, faults if own.shared is None else ())


def _serve(service: _Service, faults: Sequence[str] = ()) -> None:
    board, slot, first, pace = service.board, service.slot, service.first, Pace()
    if first:
        ray.get(board.register_worker_group.remote(slot))
    try:
        workers = workers_of_this_run(service.spec)
        resume = _take_over(workers, board, slot, faults)
        signals = SlotSignals(board, slot, pace, first=first, gone=service.gone)
        runners = Runners(service.context, workers, pace, service.shared)
        _restore_runners(runners, service.spec, workers, resume)
    except Exception as error:
        if not _is_broken_collective(error):
            ray.get(board.testify.remote(slot, _evidence_of(error)))
        raise
    with contextlib.closing(signals), contextlib.closing(runners):
        _carry_out_all(service, runners, workers, signals)


def _carry_out_all(service: _Service, runners: Runners, workers: Workers, signals: SlotSignals) -> None:
    """Carries out commands until the slot ends, or has died."""
    board, slot = service.board, service.slot
    answer: SlotAnswer | None = None
    done: SlotAnswer | None = None
    while True:
        service.check()
        if service.gone():
            return
        command = workers.from_first(_next_command(service, answer) if service.first else None)
        if isinstance(command, EndSlot):
            runners.wait_for_uploads()
            if service.first:
                ray.get(board.next_command.remote(slot, Done(number=command.number)))
            return
        if not isinstance(command, Wait) and (done is None or done.number != command.number):
            done = carry_out(command, runners, workers, signals, board, slot)
        answer = None if isinstance(command, Wait) else done  # a board that replaces another may ask a second time


def _next_command(service: _Service, answer: SlotAnswer | None) -> SlotCommand:
    asked = service.board.next_command.remote(service.slot, answer)
    while not ray.wait([asked], timeout=LOOK_SECONDS)[0]:
        if service.gone():  # or another thread of this process has failed
            return Wait()
    command: SlotCommand = ray.get(asked)
    return command


def _take_over(workers: Workers, board: Any, slot: str, faults: Sequence[str]) -> Resume:
    """Tells the board what this worker's node knows of the group before. Returns the trial to go on with."""
    runtime = ray.get_runtime_context()
    witness = Witness(worker=runtime.current_actor, node=runtime.get_node_id(), oom_kills=oom_kills(), faults=faults)
    ray.get(board.bear_witness.remote(slot, witness))
    workers.barrier()
    resume: Resume = workers.from_first(ray.get(board.take_over.remote(slot)) if workers.worker_rank == 0 else None)
    return resume


def make_runner(
    context: SearchContext,
    workers: Workers,
    base: SearchBase | None = None,
    pace: Pace | None = None,
    shared: SharedTraining | None = None,
) -> TrialRunner:
    """`base`: by default the experiment's. `pace`: that of its trials. `shared`: with other runners of this process."""
    base = base or context.base_of("")
    dataset = PreparedDataset.open(base.prepared)
    data = TrainingData(
        dataset=dataset,
        max_tokens=context.experiment.data.max_tokens,
        pad_token_id=base.pad_token_id,
        layout=base.layout,
        by_bytes=bool(context.other_bases),
        metric=ranked_by(context.experiment.search.metric, by_bytes=bool(context.other_bases)),
        generation=context.generation,
        general=base.general,
        sample=RungSample.of(dataset.eval, context.experiment.evaluation.conversations_at_rungs),
    )
    return TrialRunner(base.model, data, workers, base.reference, context.checkpoints, context.rungs, pace, shared)


class Runners:
    """The runner of one base model at a time: two might not fit beside each other."""

    def __init__(
        self, context: SearchContext, workers: Workers, pace: Pace, shared: SharedTraining | None = None
    ) -> None:
        self.context = context
        self._workers, self._pace, self._shared = workers, pace, shared
        self._held: tuple[SearchBase, TrialRunner] | None = None

    @property
    def current(self) -> TrialRunner:
        if self._held is None:
            raise RuntimeError("no base model has been chosen")
        return self._held[1]

    def of(self, branch: str) -> TrialRunner:
        """Returns the runner for a branch. All references to that of another base must have been dropped before."""
        base = self.context.base_of(branch)
        if self._held is not None and self._held[0] != base:
            self.wait_for_uploads()
            self._held = None
            gc.collect()  # the hooks of models make reference cycles
        if self._held is None:
            self._held = base, make_runner(self.context, self._workers, base, self._pace, self._shared)
        return self._held[1]

    def wait_for_uploads(self) -> None:
        if self._held is not None:
            self._held[1].wait_for_uploads()

    def close(self) -> None:
        """Forgets the last trial: where others go on in this process, it takes no memory."""
        if self._held is not None:
            self._held[1].end()


def _restore_runners(runners: Runners, spec: WorkersSpec, workers: Workers, resume: Resume) -> None:
    """Loads the base model. In a group that replaces a dead one, the dead one's trial is resumed."""
    context = runners.context
    mine = [each for each in branches_of(context.experiment).values() if _workers_of(context, each) == spec]
    kinds = base_variants(context.experiment, spec)
    if len(kinds) == 1 and len({branch.model for branch in mine}) == 1:  # else it depends on the first trial
        runners.of(mine[0].name).warm_up(*kinds)
    if resume.start is not None:
        _start(runners, resume.start)
        if resume.reported_step is not None:
            go_on_after(runners.current, resume.reported_step, workers, resume.extensions)


def _workers_of(context: SearchContext, branch: Branch) -> WorkersSpec:
    return context.experiment.workers_of(some_trial(context.experiment, branch).method)


def go_on_after(runner: TrialRunner, reported_step: int, workers: Workers, extensions: Sequence[Extension]) -> None:
    """Brings a trial that was started to its last report, or to an interim checkpoint after it.

    Where no checkpoint is so new, the steps from an earlier one on are repeated and not reported.
    """
    trial = runner.checkpoints / runner.trial_id
    checkpoint = workers.from_first(newest_checkpoint(trial, reported_step) if workers.worker_rank == 0 else None)
    if checkpoint is not None:
        runner.load(checkpoint)
    runner.replay_to(reported_step, extensions)


def carry_out(
    command: SlotCommand, runners: Runners, workers: Workers, signals: SlotSignals, board: Any, slot: str
) -> SlotAnswer:
    """Carries out a command. An error of the trial itself becomes an answer; any other error ends this worker group.

    ValueError is raised by this project for a spec that cannot be trained: it is the same on every worker, so they stay in
    step. Any other error may have hit this worker alone, so with several workers the group must restart. A broken
    collective means that another worker died, which is not an error of this one. A storage that is away for too long is not
    the trial's fault.
    """
    try:
        return _run_command(command, runners, workers, signals)
    except ValueError as error:
        unfit = isinstance(error, UnfitWorkersError)
        return Failed(number=command.number, reason=str(error), ends_search=unfit)
    except Exception as error:
        if _is_broken_collective(error):
            raise
        if isinstance(error, RowsExceedMemory):
            ray.get(board.testify.remote(slot, _evidence_of(error), command.number))
            raise
        reason, lost = _in_words(error), isinstance(error, StorageError)
        if workers.count == 1 and not is_out_of_memory(error):
            return Failed(number=command.number, reason=reason, lost=lost)
        ray.get(board.report_worker_error.remote(slot, command.number, reason, lost=lost))
        raise


def _run_command(command: SlotCommand, runners: Runners, workers: Workers, signals: SlotSignals) -> SlotAnswer:
    match command:
        case Start():
            _start(runners, command)
        case Load():
            go_on_after(runners.current, command.reported_step, workers, command.extensions)
        case Advance():
            runner = runners.current
            reached = runner.advance(_TrialSignals(signals, runner.trial_id, command.extensions))
            if isinstance(reached, InterimCheckpoint):
                return Left(number=command.number, reason=signals.exit_reason, checkpoint=reached.checkpoint)
            return Reported(
                number=command.number, progress=reached, node=this_node(), device=device_in_words(workers.device)
            )
    return Done(number=command.number)


def _start(runners: Runners, start: Start) -> None:
    warm_from = None if start.warm_from is None else folder_at(start.warm_from)
    runners.of(start.branch).start(start.trial_id, start.spec, warm_from, start.max_rows)


def _evidence_of(error: Exception) -> Evidence:
    rows = isinstance(error, RowsExceedMemory)
    return Evidence(reason=str(error) if rows else _in_words(error), out_of_memory=rows)


def _in_words(error: Exception) -> str:
    memory = f"; fewer rows at once do not help here: {WAYS_OUT}" if is_out_of_memory(error) else ""
    return f"{type(error).__name__}: {error}{memory}"


def _is_broken_collective(error: BaseException) -> bool:
    """gloo reports a dead peer as a plain RuntimeError, which only its text tells apart. Beside NCCL there is gloo, too."""
    words = ("gloo", "NCCL", "Connection closed by peer", "Connection reset")
    return isinstance(error, dist.DistError) or any(word in str(error) for word in words)
