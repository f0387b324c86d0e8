"""Each private part of Ray that needs a cluster: a Ray that has moved one fails here, by its name."""

import os
import stat
from pathlib import Path

import pytest
import ray

from components.cluster.private_session import GLOO_INTERFACE, session_folder
from components.cluster.ray_internals.core import draining_nodes, free_resources, head_node_id
from components.cluster.ray_session import connected
from tests.support.servers import until


@pytest.fixture(scope="module", autouse=True)
def cluster():
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        with connected(num_cpus=2):
            yield


def test_the_head_is_known_by_its_node():
    assert head_node_id() == ray.get_runtime_context().get_node_id()


def test_a_cluster_of_this_machine_keeps_to_its_user_and_to_loopback():
    session = Path(ray._private.worker.global_worker.node.get_session_dir_path())
    assert session.parent == session_folder()
    assert stat.S_IMODE(session.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE((Path.home() / ".ray" / "auth_token").stat().st_mode) == 0o600
    interface = ray.remote(lambda: os.environ.get(GLOO_INTERFACE)).options(num_cpus=0)
    assert ray.get(interface.remote()) == "lo"


def test_each_node_says_what_it_has_free():
    @ray.remote(num_cpus=1)
    class Occupant:
        def ready(self):
            return True

    (node,) = ray.nodes()
    assert free_resources()[node["NodeID"]]["CPU"] == 2.0
    occupant = Occupant.remote()
    ray.get(occupant.ready.remote())
    until(lambda: free_resources()[node["NodeID"]]["CPU"] == 1.0, seconds=30)
    assert draining_nodes() == set()
