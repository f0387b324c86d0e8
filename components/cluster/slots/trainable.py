"""A slot: part of the cluster that runs one trial after another and keeps the base model loaded.

To Tune it is a class Trainable with actor reuse. It is a stub in front of one long-lived Ray Train run: it sends commands
over the search's board (command_board.py), which the Train workers execute (worker.py). So only the first trial of a slot
pays for processes, imports and the loading of the model.

Slots whose trials are trained together (search.trials_per_slot) share a run: the first one on a node hosts it, and others
have seats there.
"""

from __future__ import annotations

import time
import uuid
from dataclasses import replace
from typing import Any

import ray
from ray import tune
from ray.util import get_current_placement_group, placement_group_table

from components.cluster.capacity.node_history import SLOT
from components.cluster.slots.death_witness import evidence_in
from components.cluster.slots.hang_guard import HangGuard
from components.cluster.slots.protocol import (
    Advance,
    EndSlot,
    Failed,
    Left,
    Load,
    Reported,
    Resume,
    SlotAnswer,
    SlotCommand,
    Start,
)
from components.cluster.slots.search_context import SearchContext
from components.cluster.slots.seats import Seat
from components.cluster.slots.slot_result import ExitReason, SlotResult
from components.cluster.slots.train_run import HostedRun, OwnRun, TrainRun
from components.cluster.slots.trial_config import TrialConfig
from components.records.events import Progress

EXIT_SECONDS, LAST_UPLOAD_SECONDS = 5.0, 540.0  # Tune ends what has not ended after 600, a host of others much later
PLACEMENT_LOST_SECONDS = 10.0  # for another node to take the place of one that is gone


class Slot(tune.Trainable):  # type: ignore[misc]
    """Tune starts a trial by setup() or reset_config(), and steps it report by report.

    Tune saves nothing of it: where a trial goes on, the journal says (through the board) and its checkpoints.
    """

    def setup(self, config: dict[str, Any], context: SearchContext, board: Any) -> None:
        self.context, self.board = context, board
        self.slot = uuid.uuid4().hex[:8]
        self.train_run: TrainRun | None = None  # begun by the first step: Tune never steps some slots
        self.seat: Seat | None = None  # in a shared run
        self.placement_lost = False
        self.num_commands, self.resume = 0, Resume()
        self._new_trial(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._new_trial(new_config)
        return True

    def __repr__(self) -> str:
        return f"{SLOT}{self.slot}"  # Ray's state shows it, so that the slot's node can be found

    def _new_trial(self, config: dict[str, Any]) -> None:
        self.trial = TrialConfig.of(config)
        self.workers = self.context.experiment.workers_of(self.trial.spec.method)
        self.started = False
        self.last: Progress | None = None
        self.node: str | None = None
        self.device: str | None = None

    def step(self) -> dict[str, Any]:
        answer = None if self.started else self._start_trial()
        if not isinstance(answer, Failed | Left):
            answer = self._execute(Advance())
        match answer:
            case Failed():
                # An exception would make Tune discard the slot; this result keeps it for the next trial.
                return self._result(failure=answer.reason, ends_search=answer.ends_search, lost=answer.lost, done=True)
            case Left():
                return self._result(exit_reason=answer.reason)
            case Reported():
                self.last, self.node, self.device = answer.progress, answer.node, answer.device
                return self._result(done=self.last.done, restarts=answer.restarts)
        return self._result(done=self.last is not None and self.last.done)

    def cleanup(self) -> None:
        if self.train_run is None:
            return
        if self.train_run.alive and not self.placement_lost:
            self._end_run(self.train_run)
        if self.seat is not None:
            ray.get(self.board.leave_seat.remote(self.slot))
            ray.cancel(self.seat.alive[0])

    def _end_run(self, run: TrainRun) -> None:
        if isinstance(run, OwnRun) and self.seat is not None:
            while run.alive and not ray.get(self.board.close_seats.remote(self.slot)):
                time.sleep(1.0)  # its guests go on, and others may come
        # Once the workers have left their loop nothing is lost with them: the Train run ends with this process, its owner.
        # It would also end by itself, seconds later; the trials that wait for its resources would wait for that.
        exited = self._submit(EndSlot())
        timeout = EXIT_SECONDS if self.context.folder.complete_on_commit else LAST_UPLOAD_SECONDS
        deadline = time.monotonic() + timeout
        while not ray.wait([exited], timeout=1.0)[0] and run.alive and time.monotonic() < deadline:
            pass

    def _result(self, **values: Any) -> dict[str, Any]:
        where = {"slot": self.slot, "node": self.node, "device": self.device}
        return SlotResult(**{**where, "progress": self.last, **values}).to_tune()

    def _start_trial(self) -> SlotAnswer:
        start = Start(
            trial_id=self.trial_id, spec=self.trial.spec, branch=self.trial.branch, warm_from=self.trial.warm_from
        )
        answer = self._execute(start)
        reported: int = ray.get(self.board.last_report.remote(self.trial_id))
        has_begun = reported or (self.context.checkpoints / self.trial_id).list_names()
        if has_begun and not isinstance(answer, Failed | Left):
            answer = self._execute(Load(reported_step=reported))
        self.started = True
        return answer

    def _execute(self, command: SlotCommand) -> SlotAnswer:
        """Raises RuntimeError if the slot's Train run has ended: Tune restarts the trial in another slot.

        A node that is gone takes its part of the placement with it, and Ray looks for a replacement without end. Then the
        trial leaves: it can be placed elsewhere as a whole or, if it is elastic, with fewer workers. So does a guest whose
        host has died.
        """
        if self.train_run is None:
            self.train_run = self._begin_run()
        answer, last_placed, guard = self._submit(command), time.monotonic(), HangGuard(self.board, self.slot)
        while not ray.wait([answer], timeout=1.0)[0]:
            if not self.train_run.alive:
                if isinstance(self.train_run, HostedRun):
                    return Left(reason=ExitReason.PREEMPTED)
                if evidence := evidence_in([self.train_run.error]):
                    ray.get(self.board.lose_slot.remote(self.slot, evidence))
                raise RuntimeError(f"the workers of slot {self.slot} are gone: {self.train_run.error}")
            guard.poll()
            if is_placed():
                last_placed = time.monotonic()
            elif time.monotonic() - last_placed > PLACEMENT_LOST_SECONDS:
                self.placement_lost = True
                return Left(reason=ExitReason.PREEMPTED)
        result: SlotAnswer = ray.get(answer)
        self.resume = self.resume.after(command, result)
        return result

    def _begin_run(self) -> TrainRun:
        if self.workers.trials_at_once > 1:
            self.seat, host = self._take_seat(self.workers.trials_at_once)
            if host is not None:
                return HostedRun(host)
        return OwnRun(self.context, self.board, self.slot, self.workers, self.trial_resources.count)

    def _take_seat(self, count: int) -> tuple[Seat, Seat | None]:
        """Returns this slot's seat, and that of its host; None if this slot is the host."""
        node, kind = ray.get_runtime_context().get_node_id(), self.trial_resources.kind
        wanted = Seat(slot=self.slot, kind=kind, node=node, count=count, alive=[self.board.keep_waiting.remote()])
        while True:
            seat, host = ray.get(self.board.take_seat.remote(wanted))
            if seat.host == self.slot:
                return seat, None
            if not host.has_died():
                return seat, host
            ray.get(self.board.leave_seat.remote(seat.host))

    def _submit(self, command: SlotCommand) -> Any:
        """Returns Ray's promise of an answer. The board that gives it may be another one than the one that is asked."""
        self.num_commands += 1
        return self.board.submit.remote(self.slot, replace(command, number=self.num_commands), self.resume, self.seat)


def is_placed() -> bool:
    """Whether all nodes of this process' placement group are up, as far as the cluster's head knows."""
    return bool(placement_group_table(get_current_placement_group())["state"] == "CREATED")
