"""A slot: a place in the cluster that runs one trial after another, with the base model kept warm.

To Tune it is a class Trainable with actor reuse; in truth it is a stub in front of one long-lived Ray Train run. It sends
commands over the search's board (board.py), the Train workers obey them (worker.py). So a trial costs no process start,
no import and no model load after the first in its slot.
"""

from __future__ import annotations

import json
import threading
import time
import uuid
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.util import get_current_placement_group, placement_group_table

from components.cluster.capacity.node_history import SLOT
from components.cluster.capacity.node_types import bundle
from components.cluster.ray_internals.train import BorrowedGroupTrainer
from components.cluster.slots.command_board import Answer, Command
from components.cluster.slots.context import SearchContext
from components.cluster.slots.resume import resume_point
from components.cluster.slots.slot_result import ExitReason, SlotResult
from components.cluster.slots.trial_config import TrialConfig
from components.records.events import Progress

POINTER = "pointer.json"
EXIT_SECONDS, LAST_UPLOAD_SECONDS = 5.0, 540.0  # Tune ends what has not ended after 600
HOMELESS_SECONDS = 10.0  # what another node may take to stand in for one that is gone


class Slot(tune.Trainable):  # type: ignore[misc]
    """Tune starts a trial by setup() or reset_config(), steps it report by report, and saves pointers to checkpoints."""

    def setup(self, config: dict[str, Any], context: SearchContext, board: Any) -> None:
        self.context, self.board = context, board
        self.slot = uuid.uuid4().hex[:8]
        self.train_run: threading.Thread | None = (
            None  # started by the first step: Tune also makes slots it never steps
        )
        self.train_error: BaseException | None = None
        self.homeless = False
        self._new_trial(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._new_trial(new_config)
        return True

    def __repr__(self) -> str:
        return f"{SLOT}{self.slot}"  # Ray's state shows it: so a slot's node can be told

    def _new_trial(self, config: dict[str, Any]) -> None:
        self.trial = TrialConfig.of(config)
        self.workers = self.context.experiment.resources.of(self.trial.spec.method)
        self.started = False
        self.resume_from: str | None = None
        self.last: Progress | None = None
        self.node: str | None = None

    def step(self) -> dict[str, Any]:
        if self.trial_id in self.context.ended:
            return self._result(self.context.ended[self.trial_id], done=True)
        answer = self._start_trial() if not self.started else None
        if answer is None or (answer.error is None and answer.leave is None):
            answer = self._ask(Command(kind="advance"))
        if answer.error is not None:
            # Tune throws a slot away whose trial raised; a result that says so keeps it.
            return self._result(self.last, done=True, failure=answer.error, ends_search=answer.ends_search)
        if answer.leave is not None:
            return self._result(self.last, exit_reason=answer.leave)
        self.last, self.node = Progress.model_validate(answer.progress), answer.node
        return self._result(self.last, done=self.last.done)

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """A pointer: the workers have written the checkpoint itself together with the last report."""
        pointer = {"checkpoint": self.last.checkpoint if self.last else self.resume_from}
        (Path(checkpoint_dir) / POINTER).write_text(json.dumps(pointer), encoding="utf-8")

    def load_checkpoint(self, checkpoint_dir: str) -> None:
        self.resume_from = json.loads((Path(checkpoint_dir) / POINTER).read_text(encoding="utf-8"))["checkpoint"]
        self.started, self.last = False, None

    def cleanup(self) -> None:
        if self.train_run is None or not self.train_run.is_alive() or self.homeless:
            return
        # Once the workers have left their loop nothing is lost with them: the Train run ends with this process, its owner.
        # It would end by itself too, seconds later, and the slots that wait for this one's place would wait for that.
        left = self.board.call.remote(self.slot, Command(kind="exit"))
        patience = EXIT_SECONDS if self.context.folder.complete_on_commit else LAST_UPLOAD_SECONDS
        deadline = time.monotonic() + patience
        while not ray.wait([left], timeout=1.0)[0] and self.train_run.is_alive() and time.monotonic() < deadline:
            pass

    def _result(self, progress: Progress | None, **outcome: Any) -> dict[str, Any]:
        return SlotResult(slot=self.slot, node=self.node, progress=progress, **outcome).to_tune()

    def _start_trial(self) -> Answer:
        spec = self.trial.spec.model_dump(mode="json")
        answer = self._ask(Command(kind="start", trial_id=self.trial_id, spec=spec, warm_from=self.trial.warm_from))
        place = resume_point(self.context.checkpoints / self.trial_id, self.resume_from)
        if answer.error is None and answer.leave is None and place is not None:
            answer = self._ask(Command(kind="load", checkpoint=str(place)))
        self.started = True
        return answer

    def _ask(self, command: Command) -> Answer:
        """Raises RuntimeError if the slot's Train run has ended: Tune restarts the trial in another slot.

        A node that is gone takes its part of the placement with it. Ray looks for another place for that part, for ever:
        then it is better to leave, for a place of the whole trial elsewhere, or, if it is elastic, for less.
        """
        if self.train_run is None:
            self.train_run = threading.Thread(target=self._run_train, name=f"slot-{self.slot}", daemon=True)
            self.train_run.start()
        answer, placed = self.board.call.remote(self.slot, command), time.monotonic()
        while not ray.wait([answer], timeout=1.0)[0]:
            if not self.train_run.is_alive():
                raise RuntimeError(f"the workers of slot {self.slot} are gone: {self.train_error}")
            if is_placed():
                placed = time.monotonic()
            elif time.monotonic() - placed > HOMELESS_SECONDS:
                self.homeless = True
                return Answer(number=0, leave=ExitReason.PREEMPTED)
        result: Answer = ray.get(answer)
        return result

    def _run_train(self) -> None:
        config = {"context": self.context, "board": self.board, "slot": self.slot, "workers": self.workers}
        trainer = BorrowedGroupTrainer(
            _serve,
            train_loop_config=config,
            scaling_config=ScalingConfig(
                num_workers=self.trial_resources.count,
                use_gpu=self.workers.gpus_per_worker > 0,
                resources_per_worker=bundle(self.workers),
            ),
            run_config=RunConfig(
                name=f"slot-{self.slot}",
                storage_path=str(self.context.folder / "slots"),
                # A dead worker restarts the group, for ever: the board counts a trial's strikes.
                failure_config=FailureConfig(max_failures=-1),
            ),
        )
        try:
            trainer.fit()
        except BaseException as error:  # noqa: BLE001 - whatever ended the run, _ask tells it to Tune
            self.train_error = error


def is_placed() -> bool:
    """Whether all nodes of the placement this process is in are up, as far as the cluster's head knows."""
    return bool(placement_group_table(get_current_placement_group())["state"] == "CREATED")


def _serve(config: dict[str, Any]) -> None:
    """The train loop, imported where it runs: neither the slot nor Train's controller needs transformers, and each would
    spend seconds of CPU on it before the first trial."""
    from components.cluster.slots.worker import serve_commands

    serve_commands(config)
