"""A search, its data grown, and a search again: what the first champion learned by heart judges no second one."""

import random

import pytest

from components.data.prepare import PreparedDataset
from components.data.split_membership import keys_of
from components.data.trained_on import read_trained_on
from components.records.manifest import searches_in
from components.registry.versions import download_package
from components.storage.open_folder import folder_at
from tests.support.programs import new_folder, ran, summary_of
from tests.support.toy import toy_conversations, write_messages_jsonl

pytestmark = pytest.mark.long  # five minutes: two searches; unit/test_verdict_split.py splits data that has grown

COUNT, GROWN = 60, 63  # by 5 %


@pytest.fixture(scope="module")
def searches(tmp_path_factory):
    """(folder, summary of a search with a small budget, summary of one with a larger budget over more data)"""
    folder = tmp_path_factory.mktemp("growing")
    new_folder(folder, trials=2)
    talks = toy_conversations(GROWN)
    write_messages_jsonl(folder / "data.jsonl", talks[:COUNT])
    first = summary_of(ran(folder, "tune", "toy.yaml", "--set", "trial.budget.epochs=2", "--json"))
    random.Random(0).shuffle(talks)
    write_messages_jsonl(folder / "data.jsonl", talks)
    second = summary_of(ran(folder, "tune", "toy.yaml", "--set", "trial.budget.epochs=12", "--json"))
    return folder, first, second


def prepared(folder):
    """The data of both searches, the earlier first."""
    found = sorted(searches_in(folder_at(folder / "runs" / "toy")), key=lambda manifest: manifest.created)
    return [PreparedDataset.open(folder_at(manifest.prepared)) for manifest in found]


def keys(store):
    return {key for keys in store.keys for key in keys}


def test_no_conversation_that_the_first_was_trained_on_is_held_out_from_the_second(searches):
    folder, _, _ = searches
    before, after = prepared(folder)
    known = {key for talk in toy_conversations(COUNT) for key in keys_of(talk)}
    assert (len(before.train) + len(before.eval), len(after.train) + len(after.eval)) == (COUNT, GROWN)
    assert keys(after.eval) & known == keys(before.eval)
    assert keys(after.train) & known == keys(before.train)
    trained_on = read_trained_on(download_package("models:/toy/1", f"sqlite:///{folder / 'mlflow.db'}"))
    assert trained_on == keys(before.train)
    assert trained_on.isdisjoint(keys(after.eval))


def test_a_better_candidate_takes_the_alias_on_conversations_new_to_both(searches):
    folder, first, second = searches
    assert (first["outcome"], second["outcome"]) == ("champion", "champion")
    against = {verdict["other"]: verdict for verdict in second["registry"]["verdicts"]}["incumbent"]
    assert (against["state"], against["note"]) == ("better", "")
    assert against["conversations"] == len(prepared(folder)[1].eval)
    write_messages_jsonl(folder / "fresh.jsonl", toy_conversations(40, seed=7))
    arguments = ("--against", "models:/toy/1", "--data", "fresh.jsonl", "--max-tokens", "128", "--json")
    fresh = summary_of(ran(folder, "evaluate", "models:/toy/2", *arguments))
    assert fresh["verdict"]["state"] == "better"
