"""Ray Train workers inside the placement group that Ray Tune made for the trial.

Tune reserves one bundle per worker (and nothing for itself), so admission, waiting and autoscaling are Tune's alone and
nothing is reserved twice. Ray Train has no public way to use a given placement group: this replaces a class attribute of
its controller, inside the controller's own process. tests/ray/test_search_on_ray.py fails loudly if a new Ray moves it.
"""

from __future__ import annotations

from typing import Any

import ray.util
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.train.v2._internal.execution.controller.controller import TrainController
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
from ray.train.v2._internal.execution.worker_group import WorkerGroup
from ray.train.v2._internal.execution.worker_group.placement_group_handle import DefaultPlacementGroupHandle
from ray.tune import PlacementGroupFactory

from components.cluster.capacity.node_types import bundle
from components.experiment.spec import WorkersSpec


class SlotPlacement(PlacementGroupFactory):  # type: ignore[misc]
    """Of a trial with `count` workers: an empty head (the slot itself costs nothing), then bundle i for worker i.

    Ray puts what has an empty head onto the node of the first worker. Tune hands a slot on to trials whose placement is
    equal: of one WorkersSpec and as many workers, then, for a slot that shards its model has no whole one for others.
    """

    def __init__(self, workers: WorkersSpec, count: int) -> None:
        super().__init__(
            [{}] + [bundle(workers)] * count,
            strategy=workers.placement.upper(),
            bundle_label_selector=[workers.node_labels] * count,
        )
        self.workers, self.count = workers, count

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SlotPlacement) and (self.workers, self.count) == (other.workers, other.count)

    __hash__ = PlacementGroupFactory.__hash__


class SlotTrainer(TorchTrainer):  # type: ignore[misc]
    """A Train run whose workers live in the placement group it was started in.

    It goes without three actors that other runs start before their workers: the one that removes the group of a dead
    controller (Tune does that), the one that hands out Ray Data (the workers read prepared data themselves), and the one
    that asks the autoscaler for nodes (the placement group does). Each is a process: a second or two, where cores are few.
    """

    def _create_default_callbacks(self) -> list[Any]:
        useless = (PlacementGroupCleanerCallback, DatasetsCallback)
        callbacks = [callback for callback in super()._create_default_callbacks() if not isinstance(callback, useless)]
        return [*callbacks, _AdoptPlacementGroup()]

    def _initialize_and_run_controller(self, **settings: Any) -> Any:
        return super()._initialize_and_run_controller(**settings | {"scaling_policy": _AsPlaced(self.scaling_config)})


class _AsPlaced(FixedScalingPolicy):  # type: ignore[misc]
    """Asks for no nodes.

    The actor that others ask is detached and stands on the node of whoever asked first: that node would never be idle
    again. And what it asks for holds nodes that fit, whether or not the trial is on them.
    """

    def after_controller_start(self, train_run_context: Any) -> None:
        """Makes no such actor."""

    def _maybe_send_resource_request(self) -> None:
        """The placement group stands already."""


class _AdoptPlacementGroup(ControllerCallback):  # type: ignore[misc]
    def after_controller_start(self, train_run_context: Any) -> None:
        TrainController.worker_group_cls = _AdoptingWorkerGroup


class _BorrowedPlacementGroup(DefaultPlacementGroupHandle):  # type: ignore[misc]
    def shutdown(self) -> None:
        """Tune made it and Tune removes it."""


class _AdoptingWorkerGroup(WorkerGroup):  # type: ignore[misc]
    def _create_placement_group(self, scaling_config: Any, worker_group_context: Any) -> _BorrowedPlacementGroup:
        return _BorrowedPlacementGroup(ray.util.get_current_placement_group())
