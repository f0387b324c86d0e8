"""The Ray Train run in which a slot's trials are trained: its own, or that of another slot on its node."""

from __future__ import annotations

import threading
from typing import Any, Protocol

from ray.train import FailureConfig, RunConfig, ScalingConfig

from components.cluster.capacity.cluster_capacity import bundle
from components.cluster.ray_internals.train import BorrowedGroupTrainer
from components.cluster.slots.death_witness import DeathWitness
from components.cluster.slots.search_context import SearchContext
from components.cluster.slots.seats import Seat
from components.experiment.spec import WorkersSpec


class TrainRun(Protocol):
    """`error` says why it is not alive, as far as is known."""

    error: BaseException | None

    @property
    def alive(self) -> bool: ...


class OwnRun:
    """Begins at once, in a thread of the slot's process, its owner: it ends with that process."""

    def __init__(self, context: SearchContext, board: Any, slot: str, workers: WorkersSpec, count: int) -> None:
        self.error: BaseException | None = None
        self._context, self._board, self._slot, self._workers, self._count = context, board, slot, workers, count
        self._thread = threading.Thread(target=self._run, name=f"slot-{slot}", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def _run(self) -> None:
        config = {"context": self._context, "board": self._board, "slot": self._slot, "workers": self._workers}
        trainer = BorrowedGroupTrainer(
            _serve_commands,
            train_loop_config=config,
            scaling_config=ScalingConfig(
                num_workers=self._count,
                use_gpu=self._workers.gpus_per_worker > 0,
                resources_per_worker=bundle(self._workers),
            ),
            run_config=RunConfig(
                name=f"slot-{self._slot}",
                storage_path=str(self._context.folder / "slots"),
                # A dead worker always restarts the group: the board judges why, and what follows for the trial.
                failure_config=FailureConfig(max_failures=-1),
                callbacks=[DeathWitness(self._board, self._slot)],
            ),
        )
        try:
            trainer.fit()
        except BaseException as error:  # noqa: BLE001 - the slot raises it again, in Tune's thread
            self.error = error


class HostedRun:
    """That of another slot, in which this one has a seat."""

    error: BaseException | None = None

    def __init__(self, host: Seat) -> None:
        self._host = host

    @property
    def alive(self) -> bool:
        return not self._host.has_died()


def _serve_commands(config: dict[str, Any]) -> None:
    """The train loop. It is imported where it runs: neither the slot nor Train's controller needs transformers, and each
    would spend seconds of CPU on that import before the first trial."""
    from components.cluster.slots.worker import serve_commands

    serve_commands(config)
