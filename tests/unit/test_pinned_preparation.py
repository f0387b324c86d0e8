"""Prepared data is the same, to the last token and word, as what the first versions of this code made of these records.

A change that makes preparing faster must not change it; one that means to must raise a VERSION and the digests here.
"""

import hashlib
import json

import pytest

from components.data import process_pool
from components.data.prepare import prepare
from components.experiment.spec import DataSpec
from components.storage.open_folder import folder_at
from tests.support.odd_records import odd_lines
from tests.support.template_kinds import KINDS

PINNED = {
    "appends": "1059ca60a0d08011",
    "thought_in_newest": "c35018296b7eeaf1",
    "thought_opened": "c3e91f10929f7a22",
    "next_role_stops": "14f80318ac5ac9df",
    "parts": "337315f0c395dfb2",
}


def all_of(dataset):
    """Everything that prepared data says, but digests of files, which an Arrow of another version writes otherwise."""
    yield [dataset.counts, dataset.verdict_note, dataset.left_out, dataset.mended, dataset.mended_kinds]
    yield [dataset.unused_keys, dataset.ignored_keys, dataset.summary().partition(":")[2]]
    for name, store in dataset.stores.items():
        for row in range(len(store)):
            token_ids, weights = store[row]
            kept = store.conversation(row)
            yield [
                name,
                store.source(row),
                token_ids.tolist(),
                weights.tolist(),
                store.forks(row),
                store.turn_ends(row),
            ]
            yield [store.keys[row], store.is_truncated(row), int(store.target_bytes[row]), int(store.num_targets[row])]
            yield repr(kept)


@pytest.mark.parametrize(("kind", "processes"), [*((kind, 1) for kind in PINNED), ("thought_in_newest", 2)])
def test_prepared_data_is_what_it_has_always_been(tmp_path, monkeypatch, kind, processes):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(process_pool, "FEWER_IN_PROCESS", 100)
    KINDS[kind].tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "train.jsonl").write_text(odd_lines(), encoding="utf-8")
    dataset = prepare(
        DataSpec(train="train.jsonl", on_bad_row="drop", max_tokens=700, tag="topic", eval_fraction=0.2),
        model_path=tmp_path / "model",
        chat_format="auto",
        storage=folder_at(tmp_path / "storage"),
        context=600,
        processes=processes,
    )
    hashed = hashlib.sha256()
    for part in all_of(dataset):
        hashed.update(json.dumps(part).encode())
    assert hashed.hexdigest()[:16] == PINNED[kind], dataset.summary()
