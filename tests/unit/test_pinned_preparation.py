"""Prepared data is the same, to the last token and word, as what the first versions of this code made of these records.

A change that makes preparing faster must not change it; one that means to must raise a VERSION and the digests here.
"""

import hashlib
import json
import random

import pytest

from components.data import process_pool
from components.data.prepare import prepare
from components.experiment.spec import DataSpec
from components.storage.open_folder import folder_at
from tests.support.template_kinds import KINDS, WORDS

PINNED = {
    "appends": "1059ca60a0d08011",
    "thought_in_newest": "c35018296b7eeaf1",
    "thought_opened": "c3e91f10929f7a22",
    "next_role_stops": "14f80318ac5ac9df",
    "parts": "337315f0c395dfb2",
}
SPOKEN = sorted(word for word in WORDS if len(word) > 1)


def said(drawn, least=3, most=12):
    return " ".join(drawn.choices(SPOKEN, k=drawn.randint(least, most)))


def records():
    """Of every kind that is read, mended, left out, cut or kept apart."""
    drawn = random.Random(0)
    made = []
    for number in range(240):
        messages = [{"role": "system", "content": said(drawn)}] if number % 5 == 0 else []
        for _ in range(drawn.randint(1, 4)):
            messages.append({"role": "user", "content": said(drawn, 12, 30)})
            answer = {"role": "assistant", "content": said(drawn, 12, 30)}
            if number % 7 == 0:
                answer["weight"] = drawn.choice([0, 0.5, 2])
            if number % 3 == 0:
                answer["reasoning_content"] = said(drawn)
            messages.append(answer)
        messages[-1].pop("weight", None)
        record = {"messages": messages, "id": number}
        if number % 11 == 0:
            record["group"] = f"group {number % 4}"
        if number % 13 == 0:
            record["topic"] = drawn.choice(["a", "b"])
        made.append(record)
    for number in range(0, 40, 2):
        made.append(made[number])
        near = json.loads(json.dumps(made[number + 1]))
        near["messages"][-1]["content"] += " " + said(drawn, 1, 2)
        made.append(near)
    drawn.shuffle(made)
    made[7]["messages"].append({"role": "user", "content": "hm"})
    made[9]["messages"][-1]["content"] = said(drawn, 400, 400)
    made[12]["messages"] = [{"role": "user", "content": said(drawn, 300, 300)}, {"role": "assistant", "content": "ok"}]
    return made


def lines():
    written = [json.dumps(record) for record in records()]
    written[20] = '{"messages": [{"role": "user"'
    misspelt = "wieght"  # codespell:ignore
    messages = [{"role": "user", "content": 5}, {"role": "assistant", "content": "hi", misspelt: 2}]
    written[30] = json.dumps({"messages": messages})
    written.insert(40, "")
    return "\n".join(written) + "\n"


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
    (tmp_path / "train.jsonl").write_text(lines(), encoding="utf-8")
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
