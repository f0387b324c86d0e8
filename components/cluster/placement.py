"""Ray Train workers inside the placement group that Ray Tune made for the trial.

Tune reserves one bundle per worker (and nothing for itself), so admission, waiting and autoscaling are Tune's alone and
nothing is reserved twice. Ray Train has no public way to use a given placement group: this replaces a class attribute of
its controller, inside the controller's own process. tests/test_cluster_search.py fails loudly if a new Ray moves it.
"""

from __future__ import annotations

from typing import Any

import ray.util
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.train.v2._internal.execution.controller.controller import TrainController
from ray.train.v2._internal.execution.worker_group import WorkerGroup
from ray.train.v2._internal.execution.worker_group.placement_group_handle import DefaultPlacementGroupHandle
from ray.tune import PlacementGroupFactory

from components.experiment.spec import WorkersSpec


def bundle(workers: WorkersSpec) -> dict[str, float]:
    """What one worker reserves."""
    resources = {"CPU": workers.cpus_per_worker}
    return resources | {"GPU": workers.gpus_per_worker} if workers.gpus_per_worker else resources


def placement_of(workers: WorkersSpec) -> PlacementGroupFactory:
    """An empty head (the slot itself costs nothing), then bundle i for worker i."""
    return PlacementGroupFactory([{}] + [bundle(workers)] * workers.workers, strategy="PACK")


class SlotTrainer(TorchTrainer):  # type: ignore[misc]
    """A Train run whose workers live in the placement group it was started in.

    It goes without two actors that other runs start before their workers: the one that removes the group of a dead
    controller (Tune does that), and the one that hands out Ray Data (the workers read prepared data themselves). Each
    is a process: a second or two, where cores are few.
    """

    def _create_default_callbacks(self) -> list[Any]:
        useless = (PlacementGroupCleanerCallback, DatasetsCallback)
        callbacks = [callback for callback in super()._create_default_callbacks() if not isinstance(callback, useless)]
        return [*callbacks, _AdoptPlacementGroup()]


class _AdoptPlacementGroup(ControllerCallback):  # type: ignore[misc]
    def after_controller_start(self, train_run_context: Any) -> None:
        TrainController.worker_group_cls = _AdoptingWorkerGroup


class _BorrowedPlacementGroup(DefaultPlacementGroupHandle):  # type: ignore[misc]
    def shutdown(self) -> None:
        """Tune made it and Tune removes it."""


class _AdoptingWorkerGroup(WorkerGroup):  # type: ignore[misc]
    def _create_placement_group(self, scaling_config: Any, worker_group_context: Any) -> _BorrowedPlacementGroup:
        return _BorrowedPlacementGroup(ray.util.get_current_placement_group())
