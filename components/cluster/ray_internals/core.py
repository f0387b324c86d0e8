"""What the cluster's head knows, and Ray tells its own libraries only."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from typing import Any

import ray
from ray._private import utils, worker
from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR
from ray._private.state import available_resources_per_node, state

_HEAD_RESOURCE = "node:__internal_head__"
_AUTOSCALERS = ("autoscaler/v2/monitor.py", "autoscaler/_private/monitor.py")
_SUBMISSION = "job_submission_id"


@contextlib.contextmanager
def sigterm_left_alone() -> Iterator[None]:
    """Inside, `ray.init` puts no handler of its own on SIGTERM, so that the program's own one ends it.

    Public way: none. The handler that `ray.init` installs ends the process with status 15, without a word; one that is put
    back afterwards misses what comes in the seconds that Ray takes to start.
    Test: tests/ray/test_starting_ray.py::test_sigterm_while_ray_starts_is_the_programs_own
    """
    install = utils.set_sigterm_handler
    utils.set_sigterm_handler = lambda handler: None
    try:
        yield
    finally:
        utils.set_sigterm_handler = install


def ended_processes() -> list[str]:
    """Returns which processes of the cluster that this driver has started have ended: `raylet`, `gcs_server` and others.

    Public way: none. `ray.nodes()` waits for a head that has ended, and the driver lives on for a minute without them.
    Test: tests/ray/test_starting_ray.py::test_a_cluster_of_its_own_that_ends_is_named
    """
    node = worker._global_node
    return [] if node is None else [name for name, _ in node.dead_processes()]


def head_node_id() -> str:
    """Returns the id of the node that the cluster's head runs on: the node with a resource that Ray gives to no other.

    Public way: `ray.util.state.list_nodes` has `is_head_node`, but asks the dashboard, which a cluster may lack.
    Test: tests/ray/test_ray_internals.py::test_the_head_is_known_by_its_node
    """
    (head,) = [node["NodeID"] for node in ray.nodes() if node["Alive"] and _HEAD_RESOURCE in node["Resources"]]
    return str(head)


def free_resources() -> dict[str, dict[str, float]]:
    """Returns what each node has free, by node id, as the head knows it. It learns of a lost node seconds later.

    Public way: `ray.available_resources()` adds up all nodes, and a worker must fit on one.
    Issue: https://github.com/ray-project/ray/issues/60134
    Test: tests/ray/test_ray_internals.py::test_each_node_says_what_it_has_free
    """
    free: dict[str, dict[str, float]] = available_resources_per_node()
    return free


def draining_nodes() -> set[str]:
    """Returns the ids of the nodes that are about to be taken away (`ray drain-node`, or the autoscaler's own decision).

    Public way: none. `ray.nodes()` and the state API list such a node like any other.
    Test: tests/ray/test_ray_internals.py::test_each_node_says_what_it_has_free
    """
    return set(state.get_draining_nodes())


def submission_id() -> str | None:
    """Returns the id under which `ray job submit` started this driver; None if it did not.

    Public way: `JobSubmissionClient.list_jobs` knows it, but needs the dashboard and its token, and searches all jobs.
    Test: tests/unit/test_ray_internals.py::test_a_submitted_job_knows_its_submission
    """
    config = json.loads(os.environ.get(RAY_JOB_CONFIG_JSON_ENV_VAR, "{}"))
    submission: str | None = config.get("metadata", {}).get(_SUBMISSION)
    return submission


def autoscaler_options(command_line: Sequence[str]) -> dict[str, str] | None:
    """Returns the options of a process by name if it is an autoscaler, None for every other process.

    Public way: none. A driver cannot ask which nodes the autoscaler may start: `ray status` tells what runs and waits.
    Test: tests/ray/test_autoscaling.py::test_a_trial_that_does_not_fit_the_largest_cluster_is_refused_at_once
    """
    if not any(word.endswith(_AUTOSCALERS) for word in command_line):
        return None
    return dict(word.removeprefix("--").split("=", 1) for word in command_line if word.startswith("--") and "=" in word)


def ray_cluster_resource(name: str, namespace: str) -> dict[str, Any]:
    """Returns the RayCluster of that name in Kubernetes. Raises requests.HTTPError if this process may not read it.

    Public way: none in Ray. The `kubernetes` package could, and would be needed for this one request.
    Test: tests/unit/test_ray_internals.py::test_the_client_of_kubernetes_is_where_it_was
    """
    from ray.autoscaler._private.kuberay.node_provider import KubernetesHttpApiClient

    resource: dict[str, Any] = KubernetesHttpApiClient(namespace).get(f"rayclusters/{name}")
    return resource


def autoscaling_config(ray_cluster: dict[str, Any]) -> dict[str, Any]:
    """Returns the autoscaler's configuration that KubeRay's autoscaler derives from a RayCluster.

    Public way: none. A derivation of our own would have to follow Ray's in every detail.
    Test: tests/unit/test_cluster_capacity.py::test_the_cluster_files_hold_8_lora_trials_and_2_full_ones
    """
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    config: dict[str, Any] = _derive_autoscaling_config_from_ray_cr(ray_cluster)
    return config
