"""How many workers fit into the cluster at this moment, and on the nodes that could still start."""

from __future__ import annotations

import functools
from typing import Any

import ray

from components.cluster.capacity.autoscaler_config import capacity_of_cluster
from components.cluster.capacity.cluster_capacity import Available, ClusterCapacity, NodeType, workers_on_node
from components.cluster.ray_internals.core import draining_nodes, free_resources
from components.experiment.spec import WorkersSpec


class ClusterAvailability:
    """Call it with the workers of a trial. Ray must be up."""

    def __call__(self, workers: WorkersSpec) -> Available:
        return available_workers(workers, self._capacity)

    @functools.cached_property
    def _capacity(self) -> ClusterCapacity:
        """Read once, and not before the first call: Tune pickles its schedulers before a search has begun."""
        return capacity_of_cluster()


def available_workers(workers: WorkersSpec, capacity: ClusterCapacity) -> Available:
    """As the cluster's head knows it: it learns of a lost node seconds later."""
    leaving, free = draining_nodes(), free_resources()
    nodes = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] not in leaving]
    in_all = sum(_workers_on(node, node["Resources"], workers) for node in nodes)
    free_now = [_workers_on(node, free.get(node["NodeID"], {}), workers) for node in nodes]
    more_could_start = capacity.workers_that_fit(workers) - in_all if capacity.grows else 0
    if workers.placement == "strict_pack":  # all of them on one node
        largest = max((workers_on_node(kind, workers) for kind in capacity.types), default=0)
        now = max(free_now, default=0)
        return Available(free=now, startable=max(0, largest - now) if more_could_start > 0 else 0)
    return Available(free=sum(free_now), startable=max(0, more_could_start))


def _workers_on(node: dict[str, Any], resources: dict[str, float], workers: WorkersSpec) -> int:
    return workers_on_node(NodeType(name="", max_count=1, resources=resources, labels=node["Labels"]), workers)
