"""What every test of this folder may use, and what holds for it: none of them starts a Ray cluster."""

import sys

import pytest

from tests.support import experiment_file


@pytest.fixture(autouse=True)
def _no_ray_cluster():
    yield
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        pytest.fail("this test started a Ray cluster: it belongs in tests/ray/")


@pytest.fixture
def path(tmp_path):
    """An experiment file whose model and data need not exist."""
    file = tmp_path / "toy.yaml"
    file.write_text(experiment_file.EXPERIMENT)
    return file
