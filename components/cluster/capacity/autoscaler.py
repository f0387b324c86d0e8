"""What the cluster may become: the node types of its autoscaler, or, where nothing starts nodes, those that are up.

Ray does not tell its drivers what the autoscaler may start. The autoscaler goes by a configuration that lies on the head
(`ray up` puts it there), or in Kubernetes' RayCluster; both are read where it reads them.
"""

from __future__ import annotations

import collections
import os
from pathlib import Path
from typing import Any

import psutil
import ray
import yaml
from ray._private.state import available_resources_per_node, state
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from components.cluster.capacity.node_types import ClusterCapacity, NodeType, Places, places_on
from components.experiment.spec import WorkersSpec

KUBERNETES_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
HEAD_RESOURCE = "node:__internal_head__"
AUTOSCALERS = ("autoscaler/v2/monitor.py", "autoscaler/_private/monitor.py")


def capacity_of_cluster() -> ClusterCapacity:
    """Ray must be up."""
    config = _on_head(_autoscaler_config)
    return capacity_of_nodes(ray.nodes()) if config is None else capacity_of_config(config)


def capacity_of_config(config: dict[str, Any]) -> ClusterCapacity:
    """From the configuration of an autoscaler: a node of the head's type, and workers of the others."""
    head, most_workers = config["head_node_type"], config.get("max_workers", 2)  # Ray's own default
    types = tuple(
        NodeType(
            name=name,
            most=1 if name == head else min(kind.get("max_workers", most_workers), most_workers),
            resources=kind.get("resources", {}),
            labels=kind.get("labels", {}),
            head=name == head,
        )
        for name, kind in config["available_node_types"].items()
    )
    return ClusterCapacity(types=types, most_workers=most_workers, grows=True)


def capacity_of_nodes(nodes: list[dict[str, Any]]) -> ClusterCapacity:
    """From ray.nodes(): those that are up, alike ones counted together."""
    counted = collections.Counter((_told(node["Resources"]), _told(node["Labels"])) for node in nodes if node["Alive"])
    types = tuple(
        NodeType(name="nodes that are up", most=count, resources=dict(resources), labels=dict(labels))
        for (resources, labels), count in counted.items()
    )
    return ClusterCapacity(types=types, most_workers=sum(counted.values()), grows=False)


def places_for(workers: WorkersSpec, room: ClusterCapacity) -> Places:
    """As the cluster's head knows it: seconds may pass before it knows of a node that went. `room` is room_of_cluster()."""
    leaving, free = state.get_draining_nodes(), available_resources_per_node()
    nodes = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] not in leaving]
    up = [_places_on(node, node["Resources"], workers) for node in nodes]
    free_now = [_places_on(node, free.get(node["NodeID"], {}), workers) for node in nodes]
    if workers.placement == "strict_pack":  # all of them on one node
        best = max((places_on(kind, workers) for kind in room.types), default=0)
        now = max(free_now, default=0)
        return Places(free=now, to_come=max(0, best - now) if room.grows and room.places(workers) > sum(up) else 0)
    return Places(free=sum(free_now), to_come=max(0, room.places(workers) - sum(up)) if room.grows else 0)


def _places_on(node: dict[str, Any], resources: dict[str, float], workers: WorkersSpec) -> int:
    return places_on(NodeType(name="", most=1, resources=resources, labels=node["Labels"]), workers)


def _told(properties: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    """Without what no two nodes share."""
    own = ("node:", "object_store_memory", "memory", "ray.io/node-id")
    return tuple(sorted((name, value) for name, value in properties.items() if not name.startswith(own)))


def _on_head(function: Any) -> Any:
    """There, where a job's driver stands already; a driver elsewhere asks by a task."""
    (head,) = [node["NodeID"] for node in ray.nodes() if node["Alive"] and HEAD_RESOURCE in node["Resources"]]
    if head == ray.get_runtime_context().get_node_id():
        return function(ray.get_runtime_context().gcs_address)
    there = NodeAffinitySchedulingStrategy(head, soft=False)
    task = ray.remote(function).options(num_cpus=0, scheduling_strategy=there)
    return ray.get(task.remote(ray.get_runtime_context().gcs_address))


def _autoscaler_config(gcs_address: str) -> dict[str, Any] | None:
    """What the autoscaler of this cluster goes by, None if it has none. Runs on the head."""
    if KUBERNETES_NAMESPACE.exists() and "RAY_CLUSTER_NAME" in os.environ:
        namespace = KUBERNETES_NAMESPACE.read_text(encoding="utf-8")
        return kubernetes_config(_ray_cluster(os.environ["RAY_CLUSTER_NAME"], namespace))
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        options = dict(word.removeprefix("--").split("=", 1) for word in words if word.startswith("--") and "=" in word)
        # A machine may carry several clusters, and may have several addresses, but a port has one owner.
        is_ours = options.get("gcs-address", "").rpartition(":")[2] == gcs_address.rpartition(":")[2]
        if is_ours and any(word.endswith(AUTOSCALERS) for word in words) and options.get("autoscaling-config"):
            file = Path(options["autoscaling-config"]).expanduser()
            config: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
            return config
    return None


def _ray_cluster(name: str, namespace: str) -> dict[str, Any]:
    """The RayCluster, which the head may read if KubeRay has given it an autoscaler; else one that says nothing."""
    import requests
    from ray.autoscaler._private.kuberay.node_provider import KubernetesHttpApiClient

    try:
        resource: dict[str, Any] = KubernetesHttpApiClient(namespace).get(f"rayclusters/{name}")
    except requests.HTTPError:
        return {"spec": {}}
    return resource


def kubernetes_config(ray_cluster: dict[str, Any]) -> dict[str, Any] | None:
    """What KubeRay's autoscaler makes of a RayCluster; None if it has none."""
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    if not ray_cluster["spec"].get("enableInTreeAutoscaling"):
        return None
    config: dict[str, Any] = _derive_autoscaling_config_from_ray_cr(ray_cluster)
    return config
