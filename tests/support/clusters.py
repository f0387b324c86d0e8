"""A real Ray head with a real autoscaler (v2, as `ray up` and KubeRay start it), whose nodes are simulated on this machine.

    with cluster(tmp_path, {"small": node_type(cpus=1), "wide": node_type(cpus=2)}) as head:
        ray_job = [RAY, "job", "submit", "--address", head.dashboard, "--working-dir", folder, "--", "python", "x.py"]
        subprocess.run(ray_job, env=head.environment())

The head has no CPU for trials; it carries the driver, the job server and the dashboard. A node of a type starts when
something waits for its resources, and goes when it has been idle for `idle_seconds`. A simulated node is a raylet of its own
on loopback, with all that belongs to one; that it has less memory or another disk is not simulated.

Every process is a descendant of one keeper (keeper.py), which ends them all by process id: when the block is left, and also
when the test's own process is killed. Several of these clusters can run on one machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import urllib.request
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.support.servers import UP_SECONDS, free_ports, until

RAY = str(Path(sys.executable).parent / "ray")
KEEPER = Path(__file__).parent / "keeper.py"
HEAD = "ray.head.default"  # this name and this id are fixed in the provider of simulated nodes
HEAD_NODE_ID = "f" * 51 + "00000"
OBJECT_STORE_BYTES = 100_000_000  # a node; the least that Ray takes is 78 MB
ENDED_SECONDS = 60


def node_type(
    *, cpus: float, most: int = 2, labels: Mapping[str, str] | None = None, **resources: float
) -> dict[str, Any]:
    """A type of nodes, of which the cluster may have from 0 up to `most`; resources are further ones, e.g. GPU=1."""
    return {
        "resources": {"CPU": cpus, "object_store_memory": OBJECT_STORE_BYTES, **resources},
        "labels": dict(labels or {}),
        "node_config": {},
        "min_workers": 0,
        "max_workers": most,
    }


@dataclass(frozen=True)
class Node:
    """A simulated node that runs. `pid` is its raylet's."""

    kind: str
    node_id: str
    pid: int


@dataclass(frozen=True, kw_only=True)
class Head:
    """A running cluster.

    address: for ray.init and RAY_ADDRESS of a driver on this machine. dashboard: for `ray job submit --address`.
    """

    address: str
    dashboard: str
    token: str
    keeper: subprocess.Popen[bytes]
    session: Path

    def environment(self) -> dict[str, str]:
        """For clients: this process's, without what other tests have set for Ray, with the token of this cluster.

        Ray reads the token once in a process: a process that has been in another cluster cannot become a client of this one.
        """
        return without_ray(os.environ) | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token}

    def nodes(self, kind: str | None = None) -> list[Node]:
        """The simulated nodes that run now, of this type or of all; the head is none of them. Oldest first."""
        found = []
        for process in psutil.Process(self.keeper.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                if process.name() == "raylet" and process.status() != psutil.STATUS_ZOMBIE:
                    said = process.environ()
                    node_id, of_type = said["RAY_OVERRIDE_NODE_ID_FOR_TESTING"], said.get("RAY_NODE_TYPE_NAME")
                    if of_type is not None and kind in (None, of_type):  # the head's does not say
                        found.append(Node(of_type, node_id, process.pid))
        return sorted(found, key=lambda node: node.node_id)

    def kill_node(self, kind: str) -> Node:
        """As if the machine had lost its power: SIGKILL to the oldest node of this type and to all that runs on it."""
        node = self.nodes(kind)[0]
        raylet = psutil.Process(node.pid)
        for process in [raylet, *raylet.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        return node

    def log(self, name: str = "monitor.log") -> str:
        """What a part of the cluster has logged, by default the autoscaler."""
        return (self.session / "session_latest" / "logs" / name).read_text(errors="replace")


@contextlib.contextmanager
def cluster(folder: Path, node_types: Mapping[str, dict[str, Any]], *, idle_seconds: float = 5.0) -> Iterator[Head]:
    """Inside, the cluster is up, and has no node but its head.

    Args:
        folder: for the autoscaler's configuration and the head's output.
        node_types: name -> node_type(...).
        idle_seconds: how long a node may do nothing before the autoscaler takes it.
    """
    # AF_UNIX paths are short: what pytest calls a temporary folder is too long for Ray's sockets.
    session = Path(tempfile.mkdtemp(prefix="r"))
    ports = dict(zip(PORTS, free_ports(len(PORTS) + 2), strict=False))
    address = f"127.0.0.1:{ports['port']}"
    config = folder / "autoscaler.json"
    config.write_text(json.dumps(autoscaling(node_types, session, address, idle_seconds)))
    token = uuid.uuid4().hex
    with (folder / "head.log").open("ab") as log:
        keeper = subprocess.Popen(
            [sys.executable, str(KEEPER), str(session), *head_command(session, config, ports)],
            env=head_environment(token),
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            start_new_session=True,  # a Ctrl-C is for the test; it leaves the block, and that ends the cluster
        )
    head = Head(
        address=address,
        dashboard=f"http://127.0.0.1:{ports['dashboard-port']}",
        token=token,
        keeper=keeper,
        session=session,
    )
    try:
        until(lambda: _is_up(head, folder), UP_SECONDS)
        yield head
    finally:
        assert keeper.stdin is not None
        keeper.stdin.close()
        keeper.wait(ENDED_SECONDS)


def autoscaling(
    node_types: Mapping[str, dict[str, Any]], session: Path, address: str, idle_seconds: float
) -> dict[str, Any]:
    """The cluster's configuration, as `ray up` would write it."""
    return {
        "cluster_name": "simulated",
        "max_workers": sum(kind["max_workers"] for kind in node_types.values()),
        "upscaling_speed": 100,
        "idle_timeout_minutes": idle_seconds / 60,
        "provider": {
            # Not by its name, fake_multinode: that one needs an example.yaml, which Ray's wheel lacks.
            "type": "external",
            "module": "node_provider.SimulatedNodes",
            "folder": str(session),
            "gcs_address": address,
            "head_node_id": HEAD_NODE_ID,
            "launch_multiple": True,
            "disable_launch_config_check": True,
            "disable_node_updaters": True,  # nothing to install over ssh
        },
        "auth": {},
        "available_node_types": {
            HEAD: {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            **{name: _labelled(name, kind) for name, kind in node_types.items()},
        },
        "head_node_type": HEAD,
        **{key: [] for key in ("initialization_commands", "setup_commands", "cluster_synced_files")},
        **{key: [] for key in ("head_setup_commands", "worker_setup_commands")},
        **{key: [] for key in ("head_start_ray_commands", "worker_start_ray_commands")},
        "file_mounts": {},
    }


def _labelled(name: str, kind: dict[str, Any]) -> dict[str, Any]:
    """With the label that Ray takes from a node's environment, which simulated nodes share with their autoscaler."""
    return kind | {"labels": {"ray.io/node-group": name, **kind["labels"]}}


# All that would otherwise stand at a fixed number, the same for every cluster of the machine.
PORTS = (
    "port",
    "dashboard-port",
    "dashboard-agent-listen-port",
    "dashboard-agent-grpc-port",
    "runtime-env-agent-port",
    "ray-client-server-port",
    "metrics-export-port",
    "node-manager-port",
    "object-manager-port",
)


def head_command(session: Path, config: Path, ports: Mapping[str, int]) -> list[str]:
    start = [RAY, "start", "--head", "--block", "--disable-usage-stats", "--node-ip-address=127.0.0.1", "--num-cpus=0"]
    where = [f"--temp-dir={session}", f"--autoscaling-config={config}", f"--object-store-memory={OBJECT_STORE_BYTES}"]
    return [*start, *where, "--min-worker-port=0", "--max-worker-port=0", *(f"--{k}={v}" for k, v in ports.items())]


def head_environment(token: str) -> dict[str, str]:
    autoscaler_port, dashboard_port = free_ports(2)
    return without_ray(os.environ) | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",  # a job's `python` is this one
        "PYTHONPATH": os.pathsep.join(
            filter(None, [str(KEEPER.parent), os.environ.get("PYTHONPATH")])
        ),  # node_provider
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": token,
        # A killed node is known to be dead after 3 seconds and not after 15; one that is only slow has 30.
        "RAY_health_check_period_ms": "1000",
        "RAY_health_check_failure_threshold": "3",
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": HEAD_NODE_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_NODE_ID,
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "AUTOSCALER_METRIC_PORT": str(autoscaler_port),
        "DASHBOARD_METRIC_PORT": str(dashboard_port),
    }


def without_ray(variables: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in variables.items() if not name.startswith(("RAY_", "TUNE_"))}


def _is_up(head: Head, folder: Path) -> bool:
    assert head.keeper.poll() is None, (folder / "head.log").read_text()[-2000:]
    request = urllib.request.Request(f"{head.dashboard}/api/jobs/", headers={"Authorization": f"Bearer {head.token}"})
    with contextlib.suppress(OSError):
        return bool(urllib.request.urlopen(request, timeout=5).status == 200)
    return False
