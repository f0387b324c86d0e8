"""One search over two base models of two tokenizers: equal words, equal budgets in bytes, compared in bits per byte."""

import math

import pytest
from mlflow import MlflowClient

from components.data.prepare import PreparedDataset
from components.inference.score import score
from components.models.base.reference import BaseReference
from components.models.load_trained import load_trained
from components.records.evaluation_record import EvaluationRecord
from components.records.events import replay
from components.records.journal import Journal
from components.records.manifest import searches_in
from components.storage.open_folder import folder_at
from tests.support.programs import ran, summary_of
from tests.support.toy import pair_tokenizer, tiny_model_directory
from tests.support.toy_search import toy_search_folder

pytestmark = pytest.mark.long  # two minutes; unit/test_several_bases.py trains and compares them

CHANGES = """
trial: {budget: {epochs: 4, evaluations: 2}}
search:
  trials: 4
  space:
    letters: {method: {kind: full}, optimizer: {learning_rate: {log_uniform: [2.0e-3, 1.0e-2]}}}
    pairs: {model: {path: pairs}, method: {kind: full}, optimizer: {learning_rate: {log_uniform: [2.0e-3, 1.0e-2]}}}
registry: {name: toy}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = toy_search_folder(tmp_path_factory.mktemp("place"), CHANGES)
    tiny_model_directory(folder / "pairs", tokenizer=pair_tokenizer())
    return folder


@pytest.fixture(scope="module")
def searched(place):
    """On one slot, so that it changes its base between trials."""
    done = ran(place, "tune", "toy.yaml", "--json", "--set", "search.max_concurrent_trials=1")
    return {**summary_of(done), "told": done.stderr}


def trials_of(place):
    (manifest,) = searches_in(folder_at(place / "runs" / "toy"))
    folder = folder_at(place / "runs" / "toy") / manifest.search_id
    return manifest, folder, replay(Journal(folder).read()).values()


def test_a_search_over_two_bases_ends_with_a_champion_of_one(place, searched):
    assert [trial["state"] for trial in searched["trials"]] == ["completed"] * 4
    assert searched["outcome"] == "champion"
    ranked = [trial["bits_per_byte"] for trial in searched["trials"]]
    assert ranked == sorted(ranked)
    assert {trial["branch"] for trial in searched["trials"]} == {"letters", "pairs"}
    registry = searched["registry"]
    best = "pairs" if searched["trials"][0]["branch"] == "pairs" else "model"
    assert registry["base_model"].endswith(best)
    assert registry["weight_bytes"] == 4 * registry["parameters"] > 0
    assert f"{registry['parameters']:,} parameters" in searched["message"]
    assert "bits per byte)" in searched["message"]
    assert "target bytes" in searched["told"]
    finalists = searched["finalists"]
    assert (finalists["unit"], finalists["weights"]) == ("bits per byte", "weights to serve")
    counts = {each["branch"]: each["trained_weights"] for each in finalists["finalists"]}
    assert counts[searched["trials"][0]["branch"]] == registry["parameters"]
    assert counts["letters"] < counts["pairs"]  # which has more tokens
    assert registry["verdicts"][0]["unit"] == "bits per byte"


def test_all_trials_have_spent_the_same_bytes_of_the_same_words(place, searched):
    manifest, _, trials = trials_of(place)
    datasets = {name: PreparedDataset.open(folder_at(manifest.base_of(name).prepared)) for name in ("letters", "pairs")}
    assert datasets["letters"].digest != datasets["pairs"].digest
    letters, pairs = (datasets[name].train for name in datasets)
    assert letters.target_bytes.tolist() == pairs.target_bytes.tolist()
    assert manifest.budget == 4 * letters.target_bytes.sum()
    for trial in trials:
        assert (trial.last.counted, trial.last.metric.name) == ("target bytes", "bits_per_byte")
        assert trial.last.target_tokens == pytest.approx(manifest.budget, rel=0.05)
        assert trial.last.epoch == pytest.approx(4.0, rel=0.05)


def test_bits_per_byte_beside_nats_by_hand_on_one_conversation(place, searched):
    """The nats of the checkpoint on it, over ln 2, over the letters that the assistant says in it."""
    manifest, folder, trials = trials_of(place)
    for trial in trials:
        dataset = PreparedDataset.open(folder_at(manifest.base_of(trial.started.branch).prepared))
        talk = dataset.eval.conversation(0)
        loaded = load_trained(folder_at(trial.last.checkpoint).download())
        assert ("ab" in loaded.tokenizer.get_vocab()) == (trial.started.branch == "pairs")
        nats = score(loaded, [talk]).losses[0].loss_sum
        letters = sum(len(message.content) for message in talk.messages if message.role == "assistant")
        record = EvaluationRecord.read(folder, trial.trial_id, trial.last.step).metrics
        assert record["eval_loss"].sums[0] == pytest.approx(nats, rel=1e-4)
        assert record["bits_per_byte"].sums[0] / record["bits_per_byte"].weights[0] == pytest.approx(
            nats / math.log(2) / letters, rel=1e-4
        )


def test_runs_and_the_version_say_their_base(place, searched):
    client = MlflowClient(tracking_uri=f"sqlite:///{place / 'mlflow.db'}")
    version = client.get_model_version_by_alias("toy", "champion")
    assert version.tags["turnwise.base_model"] == searched["registry"]["base_model"]
    _, _, trials = trials_of(place)
    for trial in trials:
        assert BaseReference.read(folder_at(trial.last.checkpoint).download()).model.path.endswith(
            "pairs" if trial.started.branch == "pairs" else "model"
        )
    runs = client.search_runs([client.get_experiment_by_name("toy").experiment_id], "tags.`turnwise.branch` = 'pairs'")
    assert {run.data.tags["turnwise.base_model"].rpartition("/")[2] for run in runs} == {"pairs"}
    assert all(run.data.metrics["eval/bits_per_byte"] > 0 for run in runs)
