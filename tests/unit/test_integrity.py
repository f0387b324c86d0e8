"""Prepared data is what its digest says, however files change while they are read and after they were written."""

import itertools
import os
from pathlib import Path

import pytest

from components.data import prepare as prepare_module
from components.data import token_store as store_module
from components.data.prepare import PreparedDataset, prepare
from components.experiment.spec import DataSpec
from components.storage.open_folder import folder_at
from tests.support.toy import save_letter_tokenizer, toy_conversations, write_messages_jsonl


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    save_letter_tokenizer(folder)
    return folder


def prepared(folder, tokenizer):
    return prepare(
        DataSpec(train=str(folder / "train.jsonl"), max_tokens=128),
        model_path=tokenizer,
        chat_format="auto",
        storage=folder_at(folder / "storage"),
        processes=1,
    )


def test_a_file_that_grows_while_it_is_read_is_read_again(tmp_path, tokenizer, monkeypatch):
    """Else the digest would be that of other conversations than the ones that lie under it."""
    write_messages_jsonl(tmp_path / "train.jsonl", toy_conversations(10))
    more = toy_conversations(14)
    read, times = prepare_module.read_records, []

    def grows(*arguments):
        if not times:
            write_messages_jsonl(tmp_path / "train.jsonl", more)
        records = read(*arguments)
        times.append(len(records.train.conversations))
        return records

    monkeypatch.setattr(prepare_module, "read_records", grows)
    found = prepared(tmp_path, tokenizer)
    assert times == [14, 14]
    monkeypatch.undo()
    assert prepared(tmp_path, tokenizer).reused
    assert len(found.train) + len(found.eval) == 14


def test_a_file_that_never_rests_is_an_error(tmp_path, tokenizer, monkeypatch):
    write_messages_jsonl(tmp_path / "train.jsonl", toy_conversations(10))
    read, counts = prepare_module.read_records, itertools.count(11)

    def grows(*arguments):
        write_messages_jsonl(tmp_path / "train.jsonl", toy_conversations(next(counts)))
        return read(*arguments)

    monkeypatch.setattr(prepare_module, "read_records", grows)
    with pytest.raises(ValueError, match=r"data: files of .*train\.jsonl changed each of the 3 times they were read"):
        prepared(tmp_path, tokenizer)


def exchanged(folder):
    (folder / "train.arrow").rename(folder / "other")
    (folder / "eval.arrow").rename(folder / "train.arrow")
    (folder / "other").rename(folder / "eval.arrow")


def flipped(folder):
    file = folder / "eval.arrow"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def cut(folder):
    file = folder / "train.arrow"
    os.truncate(file, file.stat().st_size - 8)


def gone(folder):
    (folder / "eval.arrow").unlink()


def torn_manifest(folder):
    file = folder / "manifest.json"
    file.write_text(file.read_text()[:40])


@pytest.mark.parametrize("harm", [exchanged, flipped, cut, gone, torn_manifest])
def test_prepared_data_that_was_changed_is_refused_when_it_is_reused(tmp_path, tokenizer, harm):
    write_messages_jsonl(tmp_path / "train.jsonl", toy_conversations(10))
    folder = Path(prepared(tmp_path, tokenizer).directory.uri)
    assert prepared(tmp_path, tokenizer).reused
    harm(folder)
    with pytest.raises(ValueError, match=f"remove {folder}, and start again: the data is prepared anew"):
        prepared(tmp_path, tokenizer)


def test_a_store_that_has_been_checked_is_not_read_again_until_it_changes(tmp_path, tokenizer, monkeypatch):
    write_messages_jsonl(tmp_path / "train.jsonl", toy_conversations(10))
    found = prepared(tmp_path, tokenizer)
    read = []
    digest_of = store_module.digest_of
    monkeypatch.setattr(store_module, "digest_of", lambda path: read.append(path.name) or digest_of(path))
    PreparedDataset.open(found.directory).verify()
    assert read == []
    os.utime(found.train.path, ns=(1, 1))
    PreparedDataset.open(found.directory).verify()
    PreparedDataset.open(found.directory).verify()
    assert read == ["train.arrow"]
