"""Registration on a real MLflow server: a version gets an alias once a fresh process has loaded it and it beat the others."""

import json
import subprocess
import sys
import sysconfig
import urllib.request
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import mlflow.pyfunc
import pytest
from mlflow.exceptions import MlflowException

import components
from components.conversations.messages import Message
from components.data.trained_on import keys_digest, training_keys
from components.errors import VerificationError
from components.experiment.spec import DataSpec, ExperimentSpec, ModelSpec, RegistrySpec, SearchSpec
from components.inference.generate import generate_reply
from components.models.digest import model_digest
from components.models.load_trained import load_base, load_trained
from components.records.events import replay
from components.registry.candidate import RegistryCandidate
from components.registry.probes import Probe
from components.registry.promotion import register_best, run_locally
from components.registry.versions import create_version, download_package
from components.tracking.mlflow_access import open_store
from components.tracking.mlflow_runs import SearchRuns
from tests.support.servers import ModelServer
from tests.support.trials import MAX_TOKENS, cut_short

QUESTION = "say ab"
GENERAL = ("the sea was calm", "ab ab", "say it again, please")
PROBES = (Probe(messages=({"role": "user", "content": QUESTION},), expect="ab"),)


class Registry:
    """A real MLflow server, and searches whose best trial is the one of a method."""

    def __init__(self, server, trials):
        self.server, self.trials, self.client = server, trials, open_store(server.uri)

    def experiment(self, **registry):
        return ExperimentSpec(
            name="toy",
            model=ModelSpec(path=str(self.trials.model)),
            data=DataSpec(train="conversations.jsonl", max_tokens=MAX_TOKENS),
            search=SearchSpec(space={"lora": {"method": {"kind": "lora"}}}),
            registry=RegistrySpec(**registry),
        )

    def candidate(self, method, search_id, **registry):
        experiment = self.experiment(**registry)
        runs = SearchRuns(open_store(self.server.uri), self.server.uri, experiment, search_id)
        records = self.trials.records(method, f"{search_id}-trial")
        for record in records:
            runs.apply(record)
        (trial,) = replay(records).values()
        return RegistryCandidate(
            runs=runs,
            uri=self.server.uri,
            experiment=experiment,
            trial=trial,
            report=trial.best,
            dataset=self.trials.dataset,
        )

    def register(self, candidate, executor=run_locally):
        return register_best(
            candidate.runs,
            candidate.uri,
            candidate.experiment,
            candidate.trial,
            candidate.dataset,
            PROBES,
            executor,
            general=GENERAL,
        )

    def holder(self, name, alias):
        try:
            return self.client.get_model_version_by_alias(name, alias).version
        except MlflowException:
            return None

    def versions(self, name):
        return self.client.search_model_versions(f"name = '{name}'")

    def files(self, name, number):
        """Where the server keeps a version's files."""
        source = self.client.get_model_version(name, number).source
        return self.server.folder / "artifacts" / source.removeprefix("mlflow-artifacts:/").lstrip("/")


@pytest.fixture(scope="module")
def registry(mlflow_server, trials):
    return Registry(mlflow_server, trials)


@pytest.fixture(scope="module")
def first(registry):
    """The first candidate of a model, registered by a search that had died once it had made the version."""
    candidate = registry.candidate("lora", "search-1")
    assert create_version(candidate) == "1"
    assert registry.holder("turnwise-toy", "champion") is None
    return candidate, registry.register(candidate)


@pytest.fixture(scope="module")
def champion(registry, first):
    """A better one, which takes the first one's place. It is proven from a process that knows nothing but what it is told."""
    candidate = registry.candidate("full", "search-2")
    with ProcessPoolExecutor(1, get_context("spawn")) as elsewhere:
        return candidate, registry.register(candidate, lambda work: elsewhere.submit(work).result())


def test_the_first_candidate_that_beats_the_base_is_champion_with_one_version(registry, first):
    _, result = first
    assert (result.version, result.promoted) == ("1", True)
    assert [version.version for version in registry.versions("turnwise-toy") if version.version == "1"] == ["1"]
    assert [found.other for found in result.verdicts] == ["base"]
    assert result.candidate_loss == pytest.approx(registry.trials.trained("lora")[1], abs=1e-6)
    base = load_base(ModelSpec(path=str(registry.trials.model)))
    assert result.base_loss == pytest.approx(registry.trials.loss_of(base), abs=1e-6)
    question = [Message(role="user", content=QUESTION)]
    assert result.base_answers == (generate_reply(base, question, max_new_tokens=64),)
    trained = load_trained(registry.trials.trained("lora")[0])
    assert result.candidate_answers == (generate_reply(trained, question, max_new_tokens=64),)


def test_what_was_forgotten_is_a_line_a_tag_and_a_metric_of_the_trial(registry, first, champion):
    for (candidate, result), others in ((first, ["base"]), (champion, ["base", "incumbent"])):
        general = result.sides.general
        assert [(change.other, change.passages) for change in general] == [(other, 3) for other in others]
        tags = registry.client.get_model_version("turnwise-toy", result.version).tags
        assert tags["turnwise.general_against_base"] == general[0].sentence() == result.sides.sentences()[0]
        metrics = registry.client.get_run(candidate.runs.trial_run(candidate.trial.trial_id)).data.metrics
        assert metrics["eval/general_loss"] == pytest.approx(general[0].candidate_loss)
        assert metrics["eval/general_change/base"] == pytest.approx(general[0].change)
        views = result.sides.candidate_views
        assert views.whole.loss == pytest.approx(result.candidate_loss)
        assert metrics["eval/token_accuracy"] == pytest.approx(views.whole.token_accuracy)
        assert metrics["eval/loss_by_turn/1"] == pytest.approx(views.sides["turn"][0].loss)
        assert result.sides.base_views.whole.loss == pytest.approx(result.base_loss)
    assert champion[1].sides.general[1].other_loss == pytest.approx(first[1].sides.general[0].candidate_loss)


def test_a_better_candidate_takes_the_alias_with_the_reason(registry, champion):
    _, result = champion
    assert (result.version, result.promoted) == ("2", True)
    assert [found.other for found in result.verdicts] == ["base", "incumbent"]
    assert result.verdicts[1].other_loss == pytest.approx(registry.trials.trained("lora")[1], abs=1e-6)
    assert result.verdicts[1].note == ""  # all held out are new to both
    assert registry.holder("turnwise-toy", "champion") == "2"
    assert registry.holder("turnwise-toy", "challenger") is None
    tags = registry.client.get_model_version("turnwise-toy", "2").tags
    assert tags["turnwise.replaces"] == "1"
    assert tags["turnwise.against_incumbent"].startswith("beats the incumbent on held-out conversations: 1.7906")
    assert tags["turnwise.gate"] == result.reason


def test_a_version_knows_where_it_comes_from(registry, champion):
    candidate, _ = champion
    version = registry.client.get_model_version("turnwise-toy", "2")
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    expected = {
        "turnwise.search_id": "search-2",
        "turnwise.trial_id": "search-2-trial",
        "turnwise.step": "30",
        "turnwise.experiment": "toy",
        "turnwise.branch": "full",
        "turnwise.method": "full",
        "turnwise.data_digest": registry.trials.dataset.digest,
        "turnwise.metric": "eval/loss",
        "turnwise.eval_loss": f"{registry.trials.trained('full')[1]:.6f}",
        "turnwise.base_model": str(registry.trials.model),
        "turnwise.base_digest": model_digest(registry.trials.model),
        "turnwise.chat_format": "auto",
        "turnwise.trained_on": keys_digest(training_keys(registry.trials.dataset.train)),
    }
    assert expected.items() <= version.tags.items()
    if head.returncode == 0:
        assert version.tags["mlflow.source.git.commit"] == head.stdout.strip()
    assert version.run_id == candidate.runs.trial_run("search-2-trial")


def test_a_version_has_a_signature_an_example_and_pinned_requirements(registry, champion):
    folder = registry.files("turnwise-toy", "2")
    model = mlflow.models.Model.load(folder)
    assert "messages" in model.signature.inputs.input_names()
    example = json.loads((folder / "input_example.json").read_text())
    assert example["messages"] == [{"role": "user", "content": "Who are you?"}]
    pinned = dict(line.split("==") for line in (folder / "requirements.txt").read_text().split())
    assert {"mlflow", "torch", "transformers", "peft"} <= pinned.keys()
    assert not list(folder.rglob("*.pkl")) + list(folder.rglob("*.bin")) + list(folder.rglob("*.pyc"))


def test_a_worse_candidate_stays_a_challenger_with_the_reason(registry, champion):
    result = registry.register(registry.candidate("lora", "search-3"))
    assert (result.version, result.promoted) == ("3", False)
    assert registry.holder("turnwise-toy", "champion") == "2"
    assert registry.holder("turnwise-toy", "challenger") == "3"
    assert result.reason.startswith("does not beat the incumbent on held-out conversations")
    assert registry.client.get_model_version("turnwise-toy", "3").tags["turnwise.gate"] == result.reason


def test_a_search_that_registers_again_finds_its_champion(registry, champion):
    candidate, before = champion
    count = len(registry.versions("turnwise-toy"))
    again = registry.register(candidate)
    assert (again.version, again.promoted, again.reason) == ("2", True, before.reason)
    assert len(registry.versions("turnwise-toy")) == count
    assert registry.holder("turnwise-toy", "champion") == "2"


def of_another_base(folder):
    file = folder / "artifacts" / "package" / "base.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"digest": "sha256:0"}))


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (cut_short, "its weights cannot be read"),
        (of_another_base, "is another one: its digest is"),
    ],
)
def test_a_version_that_came_to_harm_gets_no_alias(registry, harm, reason):
    name = f"harmed-{harm.__name__}"
    candidate = registry.candidate("lora", f"search-{name}", name=name)
    number = create_version(candidate)
    harm(registry.files(name, number))
    with pytest.raises(VerificationError, match=reason):
        registry.register(candidate)
    assert len(registry.versions(name)) == 1
    assert registry.client.get_registered_model(name).aliases == {}
    assert registry.client.get_model_version(name, number).tags["turnwise.gate"].startswith("not proven: models:/")


def test_a_checkpoint_without_its_base_model_makes_no_version(registry, monkeypatch, tmp_path):
    candidate = registry.candidate("lora", "search-baseless", name="baseless")
    monkeypatch.setenv("TURNWISE_BASE_MODEL", str(tmp_path))
    with pytest.raises(VerificationError, match=r"step_000010 cannot be packaged: the base model .* is not here"):
        registry.register(candidate)
    assert registry.versions("baseless") == []


def test_a_registry_that_does_not_answer_is_not_taken_for_an_empty_one(registry):
    candidate = registry.candidate("lora", "search-away")
    registry.server.kill()
    try:
        with pytest.raises(MlflowException):
            registry.register(candidate)
    finally:
        registry.server.start()


def test_a_version_is_downloaded_by_alias_and_a_missing_one_is_an_error(registry, champion):
    eval_loss = registry.trials.trained("full")[1]
    loaded = load_trained(download_package("models:/turnwise-toy@champion", registry.server.uri))
    assert registry.trials.loss_of(loaded) == pytest.approx(eval_loss, abs=1e-6)
    with pytest.raises(ValueError, match=r"models:/nobody@champion: not to be had from the registry: .*nobody"):
        download_package("models:/nobody@champion", registry.server.uri)


ALONE = """
import json, sys
sys.path.append(sys.argv[1])
try:
    import components
    sys.exit("components can be imported before the version is loaded")
except ImportError:
    pass
import mlflow
mlflow.set_tracking_uri(sys.argv[2])
model = mlflow.pyfunc.load_model("models:/turnwise-toy@champion")
request = {"messages": [{"role": "user", "content": sys.argv[3]}], "temperature": 0.0, "max_tokens": 64}
reply = model.predict(request)
(package,) = (name for name in sys.modules if name.startswith("turnwise_") and "." not in name)
chunks = model.predict_stream(request)
streamed = "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks)
print(json.dumps({"reply": reply, "streamed": streamed, "code": sys.modules[package].__path__[0]}))
"""


def expected_reply(registry):
    trained = load_trained(registry.trials.trained("full")[0])
    return generate_reply(trained, [Message(role="user", content=QUESTION)], max_new_tokens=64)


def test_a_champion_talks_where_this_repository_is_not_known(registry, champion, tmp_path):
    """Without site, and with it without the editable install of this repository: site-packages alone are added."""
    arguments = [sysconfig.get_path("purelib"), registry.server.uri, QUESTION]
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", ALONE, *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["reply"]["choices"][0]["message"] == {"role": "assistant", "content": expected_reply(registry)}
    assert said["streamed"] == expected_reply(registry)
    assert Path(said["code"]).parent.name == "code"
    assert not Path(said["code"]).is_relative_to(Path(components.__path__[0]).parent)


def test_a_champion_answers_behind_mlflows_model_server(registry, champion, tmp_path):
    server = ModelServer(tmp_path, "models:/turnwise-toy@champion", registry.server.uri)
    try:
        server.start()
        body = {"messages": [{"role": "user", "content": QUESTION}], "temperature": 0.0, "max_tokens": 64}
        request = urllib.request.Request(
            f"{server.uri}/invocations", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            reply = json.load(answer)
    finally:
        server.kill()
    assert reply["choices"][0]["message"]["content"] == expected_reply(registry)
    assert reply["choices"][0]["finish_reason"] == "length"  # so little training has not taught it to stop
    assert reply["usage"]["completion_tokens"] == 64
