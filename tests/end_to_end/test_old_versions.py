"""A version that the code of an earlier commit made loads, talks and is compared by the present one."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
from io import BytesIO
from pathlib import Path

import pytest

from components.data.token_store import TokenStore
from components.models.load_trained import load_trained
from components.registry.chat_model import PACKAGE
from components.registry.load_version import load_version
from components.registry.verification_messages import VerificationRequest
from components.registry.verification_worker import verify
from components.tracking.mlflow_access import open_store

ROOT = Path(__file__).parents[2]
BEFORE_THE_MOVES = "f81a843"  # its versions bring a package `components` with other modules than the present one has

MAKE = """
import json, sys
from pathlib import Path
from components.tracking.registry import save_packaged
from tests.trials import Trials

folder = Path(sys.argv[1])
trials = Trials(folder)
save_packaged(trials.packaged("full", folder / "package"), folder / "version")
print(json.dumps({"eval_loss": trials.trained("full")[1], "eval_store": str(trials.dataset.eval.path)}))
"""


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    """(the version's folder, what its makers knew of it)"""
    archive = subprocess.run(["git", "archive", BEFORE_THE_MOVES], cwd=ROOT, capture_output=True, check=False)
    if archive.returncode != 0:
        pytest.skip(f"commit {BEFORE_THE_MOVES} is not in this clone, so its code cannot make a version")
    code, folder = tmp_path_factory.mktemp("code"), tmp_path_factory.mktemp("old")
    with tarfile.open(fileobj=BytesIO(archive.stdout)) as tree:
        tree.extractall(code, filter="data")
    made = subprocess.run(
        [sys.executable, "-c", MAKE, str(folder)],
        cwd=code,
        env=os.environ | {"PYTHONPATH": str(code)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert made.returncode == 0, made.stderr[-2000:]
    shutil.rmtree(code)  # the version brings all that it needs
    return folder / "version", json.loads(made.stdout.splitlines()[-1])


def test_it_talks_with_its_own_code_beside_the_present_one(old, tmp_path):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    client = open_store(uri)
    client.create_registered_model("old")
    client.create_model_version("old", str(old[0]))
    model = load_version("models:/old/1", uri)
    request = {"messages": [{"role": "user", "content": "say ab"}], "temperature": 0.0, "max_tokens": 8}
    (choice,) = model.predict(request)["choices"]
    assert choice["message"]["content"]
    assert type(model.get_raw_model().loaded).__module__.endswith(".models.trained")  # a module of that commit


def test_it_is_compared_as_an_incumbent_by_the_losses_that_it_was_trained_to(old):
    version, known = old
    request = VerificationRequest(
        phase="incumbent",
        model=version,
        incumbent=version,
        judged_store=known["eval_store"],
        max_tokens=128,
        rows_per_batch=4,
        probes=(),
        digest=load_trained(version / "artifacts" / PACKAGE).chat_format.digest(),
    )
    found = verify(request)
    assert found.incumbent_problem is None
    total_targets = TokenStore(request.judged_store).total_targets
    assert sum(found.incumbent_sums) / total_targets == pytest.approx(known["eval_loss"], abs=1e-6)
    assert found.incumbent_unseen is None  # that commit did not write what a version was trained on
