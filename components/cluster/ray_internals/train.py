"""Ray Train workers inside the placement group that Ray Tune made for the trial, and the notice that a node will go."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ray.util
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.train.v2._internal.execution.context import get_train_context
from ray.train.v2._internal.execution.controller.controller import TrainController
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
from ray.train.v2._internal.execution.worker_group import WorkerGroup
from ray.train.v2._internal.execution.worker_group.placement_group_handle import DefaultPlacementGroupHandle
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from components.cluster.ray_internals.late_torch import LateTorch


def preemption_notice() -> bool:
    """Whether a node on which this worker's group runs is to be taken away. For code inside a Train worker; costs nothing.

    Public way: `ray.train.get_preemption_info` tells the same, but is a barrier over all workers with a call to another
    process, and is needed after every optimizer step. The training loop agrees with all workers by a sum of its own.
    Test: tests/unit/test_ray_internals.py::test_the_notice_of_a_preemption_is_in_the_context_of_train
    """
    return get_train_context().preemption_context.preemption_info is not None


class BorrowedGroupTrainer(DataParallelTrainer):  # type: ignore[misc]
    """A Train run of torch whose workers live in the placement group it was started in.

    Tune reserves one bundle per worker and nothing for itself, so admission, waiting and autoscaling are Tune's alone, and
    nothing is reserved twice.

    It lacks three actors that other runs start before their workers: the one that removes the group of a dead controller
    (Tune does that), the one that hands out Ray Data (the workers read prepared data themselves), and the one that asks
    the autoscaler for nodes (the placement group does). Each is a process: a second or two where cores are few.

    Public way: none. `ScalingConfig` describes a group that the controller then makes itself, and the callbacks of
    `RunConfig` are added to Ray's own.
    Issue: https://github.com/ray-project/ray/issues/28924 (closed as stale)
    Test: tests/ray/test_search_on_ray.py::test_unequal_trials_share_one_search_and_all_end
    """

    def __init__(self, train_loop: Callable[[dict[str, Any]], None], **settings: Any) -> None:
        super().__init__(train_loop, backend_config=LateTorch(), **settings)

    def _create_default_callbacks(self) -> list[Any]:
        unneeded = (PlacementGroupCleanerCallback, DatasetsCallback)
        callbacks = [callback for callback in super()._create_default_callbacks() if not isinstance(callback, unneeded)]
        return [*callbacks, _AdoptPlacementGroup()]

    def _initialize_and_run_controller(self, **settings: Any) -> Any:
        return super()._initialize_and_run_controller(**settings | {"scaling_policy": _AsPlaced(self.scaling_config)})


class _AsPlaced(FixedScalingPolicy):  # type: ignore[misc]
    """Asks for no nodes.

    The actor that other runs ask is detached, on the node of the run that asked first: that node would never be idle
    again. And its requests keep nodes that fit the trial from being idle, whether or not the trial runs on them.
    """

    def after_controller_start(self, train_run_context: Any) -> None:
        """Makes no such actor."""

    def _maybe_send_resource_request(self) -> None:
        """Sends none: the placement group exists."""


class _AdoptPlacementGroup(ControllerCallback):  # type: ignore[misc]
    """Replaces a class attribute of the controller, inside the controller's own process, before it makes its workers."""

    def after_controller_start(self, train_run_context: Any) -> None:
        TrainController.worker_group_cls = _AdoptingWorkerGroup


class _BorrowedPlacementGroup(DefaultPlacementGroupHandle):  # type: ignore[misc]
    def shutdown(self) -> None:
        """Removes nothing: Tune made the group and Tune removes it."""


class _AdoptingWorkerGroup(WorkerGroup):  # type: ignore[misc]
    def _create_placement_group(self, scaling_config: Any, worker_group_context: Any) -> _BorrowedPlacementGroup:
        return _BorrowedPlacementGroup(ray.util.get_current_placement_group())
