"""The provider of simulated nodes that the autoscaler of clusters.py loads: each node has a folder of its own."""

import functools
from pathlib import Path
from typing import Any
from unittest import mock

import ray._private.parameter
from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider


class SimulatedNodes(FakeMultiNodeProvider):  # type: ignore[misc]
    """Ray's own nodes share the head's folder; then the second node to unpack a job's files removes those of the first."""

    def _create_node_with_resources_and_labels(self, *arguments: Any) -> None:
        parameter = ray._private.parameter
        with self.lock:
            folder = Path(self.provider_config["folder"]) / str(self._next_node_id + 1)
            folder.mkdir()
            own_folder = functools.partial(parameter.RayParams, temp_dir=str(folder))
            with mock.patch.object(parameter, "RayParams", own_folder):
                super()._create_node_with_resources_and_labels(*arguments)
