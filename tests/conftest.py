"""What every test gets by its folder, and the fixtures that several test modules use."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.servers import MlflowServer, S3Server

# Some machines set it. The processes that tests start would compile all of the project's modules, each for itself.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

TESTS = Path(__file__).parent
MARKED_FOLDERS = ("ray", "end_to_end")  # each gives its name as a marker to all of its tests
# Seconds, with the fixtures that a test is the first to use. Some ten times what the slowest takes on a quiet machine.
TIMEOUTS = {"unit": 300, "ray": 1200, "end_to_end": 1800}

LORA_ONLY = """
data: {eval_fraction: null}
trial: {batch: {rows_per_step: 64}}
search:
  trials: 2
  space:
    lora: {method: {kind: lora, rank: {choice: [2, 4]}}, optimizer: {learning_rate: {log_uniform: [1.0e-3, 1.0e-2]}}}
"""


@pytest.hookimpl(tryfirst=True)  # before -m chooses by markers
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        folder = item.path.relative_to(TESTS).parts[0]
        if folder in MARKED_FOLDERS:
            item.add_marker(folder)
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(TIMEOUTS[folder]))


@pytest.fixture(scope="module")
def trials(tmp_path_factory):
    """A tiny base model, prepared data and a trained trial of each method, made when it is first asked for."""
    from tests.support.trials import Trials  # not above: torch takes seconds, which many tests do without

    return Trials(tmp_path_factory.mktemp("trials"))


@pytest.fixture(scope="module")
def mlflow_server(tmp_path_factory) -> Iterator[MlflowServer]:
    server = MlflowServer(tmp_path_factory.mktemp("mlflow"))
    try:
        server.start()
        yield server
    finally:
        server.kill()


@pytest.fixture(scope="module")
def s3_server(tmp_path_factory) -> Iterator[S3Server]:
    """A server with an empty bucket, found by all that runs in the environment of this process."""
    server = S3Server(tmp_path_factory.mktemp("s3"))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in server.client_environment().items():
            patch.setenv(name, value)
        try:
            server.start()
            yield server
        finally:
            server.kill()


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """(model directory, prepared data directory, pad token id), for sessions.session()."""
    from tests.support.sessions import prepared_toy

    return prepared_toy(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory):
    """The directory of a tiny model with tied embeddings and the letter tokenizer."""
    from tests.support.toy import tiny_model_directory

    folder = tmp_path_factory.mktemp("model")
    tiny_model_directory(folder)
    return folder


@pytest.fixture
def toy_search(tmp_path, monkeypatch, tiny_model):
    """A folder with a toy search of LoRA trials, its model and eight conversations; the working directory."""
    from tests.support.toy import toy_conversations, write_messages_jsonl
    from tests.support.toy_search import toy_experiment

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "model").symlink_to(tiny_model)
    (tmp_path / "toy.yaml").write_text(toy_experiment(LORA_ONLY))
    write_messages_jsonl(tmp_path / "data.jsonl", toy_conversations(8))
    return tmp_path


@pytest.fixture(scope="module")
def versions(trials, tmp_path_factory):
    """A folder with a version of each method, each as it is once it has been downloaded."""
    from components.registry.chat_model import PACKAGE
    from components.registry.model_package import save_packaged

    folder = tmp_path_factory.mktemp("versions")
    for method in ("lora", "full", "nf4"):
        save_packaged(trials.packaged(method, folder / f"{method}-packaged" / PACKAGE), folder / method)
    return folder


@pytest.fixture
def asked(trials, versions):
    """Makes the request to verify a version of a method."""
    from components.registry.probes import Probe
    from components.registry.verification_messages import VerificationRequest
    from tests.support.trials import MAX_TOKENS

    def asked(method, phase="candidate", **fields):
        request = VerificationRequest(
            phase=phase,
            model=versions / method,
            incumbent=None,
            judged_store=trials.dataset.eval.path,
            max_tokens=MAX_TOKENS,
            rows_per_batch=4,
            probes=(Probe(messages=({"role": "user", "content": "say ab"},)),),
        )
        return request.model_copy(update=fields)

    return asked
