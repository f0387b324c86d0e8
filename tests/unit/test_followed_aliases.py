"""An alias that moves is followed while clients ask: none of them fails, and what does not load does not serve."""

import threading

import openai
import pytest

from components.errors import InputError
from components.experiment.spec import LoraMethod
from components.inference.generate import reply_to
from components.models.load_trained import load_trained
from components.registry.chat_model import PACKAGE
from components.serving.limits import Limits
from components.serving.served_models import ServedModels
from components.tracking.mlflow_access import open_store
from tests.support.servers import until
from tests.support.serving import adapter_checkpoint, registered, serving
from tests.support.toy import tiny_model_directory, user

NAME, SECONDS, TOKENS = "support", 60, 16
QUESTION = "say ab"


class Registry:
    """Versions of a registered model, each an adapter of its own."""

    def __init__(self, folder):
        self.folder, self.uri = folder, f"sqlite:///{folder}/mlflow.db"
        tiny_model_directory(folder / "base")
        self.client = open_store(self.uri)
        self.said = {}

    def add(self, *, tags=None, method=LoraMethod(rank=4)):  # noqa: B008 - frozen
        seed = len(self.said) + 1
        checkpoint = adapter_checkpoint(self.folder / f"checkpoint{seed}", self.folder / "base", method, seed)
        version = registered(self.uri, NAME, checkpoint, self.place(seed), tags=tags)
        self.said[version] = reply_to(load_trained(checkpoint), [user(QUESTION)], max_new_tokens=TOKENS).text
        return version

    def place(self, version):
        return self.folder / f"version{version}"

    def point(self, version, alias="champion"):
        self.client.set_registered_model_alias(NAME, alias, version)


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    registry = Registry(tmp_path_factory.mktemp("registry"))
    for _ in range(3):
        registry.add()
    assert len(set(registry.said.values())) == 3
    return registry


@pytest.fixture
def server(registry):
    registry.point("1")
    with serving({"support": f"models:/{NAME}@champion"}, tracking=registry.uri) as running:
        yield running


def ask(server):
    client = openai.OpenAI(base_url=server.url, api_key="none", max_retries=0, timeout=SECONDS)
    completion = client.chat.completions.create(
        model="support", messages=[{"role": "user", "content": QUESTION}], temperature=0, max_tokens=TOKENS
    )
    return completion.choices[0].message.content


def version_of(server):
    return server.models.get("support").version


def test_an_alias_that_moves_under_load_drops_no_request(registry, server):
    said, failed, over = [], [], threading.Event()

    def keep_asking():
        while not over.is_set():
            try:
                said.append(ask(server))
            except openai.OpenAIError as error:
                failed.append(error)

    askers = [threading.Thread(target=keep_asking) for _ in range(4)]
    for asker in askers:
        asker.start()
    for version in ("2", "3", "1", "2"):
        registry.point(version)
        until(lambda version=version: version_of(server) == version, SECONDS)
        until(lambda version=version: said[-1:] == [registry.said[version]], SECONDS)
    over.set()
    for asker in askers:
        asker.join(SECONDS)
    assert failed == []
    assert set(said) == set(registry.said.values())
    thread = server.models.get("support").thread
    until(lambda: thread.models == 1, SECONDS)  # the others are forgotten


def test_a_version_whose_files_were_changed_does_not_serve(registry, server):
    changed = registry.add()
    tokenizer = registry.place(changed) / "artifacts" / PACKAGE / "tokenizer" / "tokenizer_config.json"
    tokenizer.write_text(tokenizer.read_text() + " ")
    registry.point(changed)
    until(lambda: "support" in server.models.problems, SECONDS)
    problem = server.models.problems["support"]
    assert f"version {changed} does not serve: models:/{NAME}/{changed}: its files are not those" in problem
    assert problem.endswith("; version 1 goes on")
    assert ask(server) == registry.said["1"]
    assert server.models.get("support").digest_checked
    registry.point("2")
    until(lambda: version_of(server) == "2", SECONDS)
    assert server.models.problems == {}


def test_a_version_that_cannot_be_put_on_the_base_leaves_the_base_as_it_was(registry, server):
    broken = registry.add(tags={})
    weights = registry.place(broken) / "artifacts" / PACKAGE / "adapter" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    registry.point(broken)
    until(lambda: "support" in server.models.problems, SECONDS)
    assert f"version {broken} does not serve" in server.models.problems["support"]
    assert ask(server) == registry.said["1"]
    old = registry.add(tags={})  # as registered before there were digests
    registry.point(old)
    until(lambda: version_of(server) == old, SECONDS)
    assert ask(server) == registry.said[old]
    assert not server.models.get("support").digest_checked


def test_a_registry_that_is_away_changes_nothing(registry, server, monkeypatch):
    monkeypatch.setattr(server.models, "tracking", "http://127.0.0.1:9")
    until(lambda: "support" in server.models.problems, SECONDS)
    assert "the registry does not have it, or does not answer" in server.models.problems["support"]
    assert ask(server) == registry.said["1"]
    monkeypatch.undo()
    until(lambda: server.models.problems == {}, SECONDS)


def test_all_models_that_cannot_be_served_are_named_at_once(registry, tmp_path):
    sources = {
        "a": f"models:/{NAME}@nobody",
        "b": f"models:/{NAME}/99",
        "c": str(tmp_path),
        "fine": str(registry.folder / "base"),
    }
    models = ServedModels(sources, Limits(), tracking=registry.uri)
    with pytest.raises(InputError) as error:
        models.open()
    lines = str(error.value).splitlines()
    assert [line.split(":")[0] for line in lines[:2]] == ["models", "models"]
    assert len(lines) == 3
    assert str(tmp_path) in lines[2]
    assert models.models == []
