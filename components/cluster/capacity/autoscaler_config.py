"""What the cluster may become: the node types of its autoscaler, or, where nothing starts nodes, those that are up.

Ray does not tell its drivers what the autoscaler may start. The autoscaler reads a configuration file on the head
(`ray up` puts it there), or in Kubernetes the RayCluster; both are read here from the same place.
"""

from __future__ import annotations

import collections
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import ray
import yaml
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from components.cluster.capacity.cluster_capacity import ClusterCapacity, NodeType
from components.cluster.ray_internals.core import (
    autoscaler_options,
    autoscaling_config,
    head_node_id,
    ray_cluster_resource,
)

KUBERNETES_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


def capacity_of_cluster() -> ClusterCapacity:
    """Ray must be up."""
    config = _call_on_head(_find_config)
    return capacity_of_nodes(ray.nodes()) if config is None else capacity_of_config(config)


def capacity_of_config(config: dict[str, Any]) -> ClusterCapacity:
    """From the configuration of an autoscaler: a node of the head's type, and workers of the others."""
    head, max_nodes = config["head_node_type"], config.get("max_workers", 2)  # Ray's own default
    types = tuple(
        NodeType(
            name=name,
            max_count=1 if name == head else min(kind.get("max_workers", max_nodes), max_nodes),
            resources=kind.get("resources", {}),
            labels=kind.get("labels", {}),
            head=name == head,
        )
        for name, kind in config["available_node_types"].items()
    )
    return ClusterCapacity(types=types, max_nodes=max_nodes, grows=True)


def capacity_of_nodes(nodes: list[dict[str, Any]]) -> ClusterCapacity:
    """From ray.nodes(): those that are up, alike ones counted together."""
    counted = collections.Counter(
        (_shared_features(node["Resources"]), _shared_features(node["Labels"])) for node in nodes if node["Alive"]
    )
    types = tuple(
        NodeType(name="nodes that are up", max_count=count, resources=dict(resources), labels=dict(labels))
        for (resources, labels), count in counted.items()
    )
    return ClusterCapacity(types=types, max_nodes=sum(counted.values()), grows=False)


def _shared_features(properties: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    """Drops what differs between any two nodes. The rest can be hashed."""
    own = ("node:", "object_store_memory", "memory", "ray.io/node-id")
    return tuple(sorted((name, value) for name, value in properties.items() if not name.startswith(own)))


def _call_on_head(function: Callable[[str], Any]) -> Any:
    """Calls with the address of Ray's control service: directly on the head, where a job's driver runs, else by a task."""
    head, address = head_node_id(), ray.get_runtime_context().gcs_address
    if head == ray.get_runtime_context().get_node_id():
        return function(address)
    there = NodeAffinitySchedulingStrategy(head, soft=False)
    task = ray.remote(function).options(num_cpus=0, scheduling_strategy=there)
    return ray.get(task.remote(address))


def _find_config(gcs_address: str) -> dict[str, Any] | None:
    """Returns the configuration of this cluster's autoscaler, None if it has none. Runs on the head."""
    if KUBERNETES_NAMESPACE.exists() and "RAY_CLUSTER_NAME" in os.environ:
        namespace = KUBERNETES_NAMESPACE.read_text(encoding="utf-8")
        return kubernetes_config(_read_ray_cluster(os.environ["RAY_CLUSTER_NAME"], namespace))
    for process in psutil.process_iter(["cmdline"]):
        options = autoscaler_options(process.info["cmdline"] or []) or {}
        # A machine may run several clusters, and may have several addresses, but a port has one owner.
        is_ours = options.get("gcs-address", "").rpartition(":")[2] == gcs_address.rpartition(":")[2]
        if is_ours and options.get("autoscaling-config"):
            file = Path(options["autoscaling-config"]).expanduser()
            config: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
            return config
    return None


def _read_ray_cluster(name: str, namespace: str) -> dict[str, Any]:
    """Returns the RayCluster. The head may read it if KubeRay has given it an autoscaler; else an empty one is returned."""
    import requests

    try:
        return ray_cluster_resource(name, namespace)
    except requests.HTTPError:
        return {"spec": {}}


def kubernetes_config(ray_cluster: dict[str, Any]) -> dict[str, Any] | None:
    """Returns the configuration of the autoscaler that KubeRay runs for a RayCluster, None if it runs none."""
    return autoscaling_config(ray_cluster) if ray_cluster["spec"].get("enableInTreeAutoscaling") else None
