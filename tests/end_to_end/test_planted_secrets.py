"""A whole search whose environment holds a secret of each kind: none is in anything that the search, Ray or MLflow writes."""

import shutil
import tempfile
from pathlib import Path

import pytest

from tests.support.judge_server import judge_server
from tests.support.programs import new_folder, ran, summary_of

PLANTED = {
    name: f"planted-{name.lower().replace('_', '-')}-9b1f"
    for name in (
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "MLFLOW_TRACKING_USERNAME",
        "MLFLOW_TRACKING_PASSWORD",
        "MLFLOW_TRACKING_TOKEN",
        "HF_TOKEN",
        "JUDGE_KEY",
    )
}


@pytest.fixture
def temporary(monkeypatch):
    """Where the search, and Ray with it, keeps what is temporary: a short path, for Ray's sockets."""
    folder = Path(tempfile.mkdtemp(prefix="s", dir="/tmp"))
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setenv("RAY_TMPDIR", str(folder))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def test_no_secret_of_the_environment_is_in_anything_that_a_search_leaves(
    tmp_path, mlflow_server, temporary, monkeypatch
):
    for name, value in PLANTED.items():
        monkeypatch.setenv(name, value)
    new_folder(tmp_path, trials=2)
    with judge_server(lambda first, second, number: "A") as judge:
        settings = {
            "tracking.uri": mlflow_server.uri,
            "registry.judge": f"{{url: '{judge.url}', model: rule, key_env: JUDGE_KEY}}",
            "trial.budget.epochs": 4,
        }
        words = [word for path, value in settings.items() for word in ("--set", f"{path}={value}")]
        done = ran(tmp_path, "tune", "toy.yaml", "--json", *words)
    summary_of(done)
    # What was planted was in use, and what is searched is what was written.
    assert f"Bearer {PLANTED['JUDGE_KEY']}" in {headers.get("Authorization") for headers, _ in judge.requests}
    logs = {path.name for path in temporary.rglob("session_2*/logs/*")}
    assert {"raylet.out", "gcs_server.out"} <= logs
    assert list(tmp_path.rglob("journal.jsonl"))
    assert mlflow_server.folder.joinpath("mlflow.db").exists()
    assert [name for name in PLANTED if PLANTED[name] in done.stdout + done.stderr] == []
    assert found_in(temporary) | found_in(tmp_path) | found_in(mlflow_server.folder) == {}


def found_in(folder):
    """Name of a file -> names of the secrets that are in it."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            content = path.read_bytes()
            if names := [name for name, value in PLANTED.items() if value.encode() in content]:
                found[str(path)] = names
    return found
