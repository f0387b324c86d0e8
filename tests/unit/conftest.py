"""What holds for every test of this folder: none of them starts a Ray cluster."""

import sys

import pytest


@pytest.fixture(autouse=True)
def _no_ray_cluster():
    yield
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        pytest.fail("this test started a Ray cluster: it belongs in tests/ray/")
