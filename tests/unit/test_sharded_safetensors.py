"""Tensors that several wrote, each some rows, and that as many or as few read again."""

import itertools
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from components.models import sharded_safetensors as tensor_files
from components.models.sharded_safetensors import Rows, StoredTensors, write_model, write_rows
from tests.support.toy import tiny_model_directory

TABLE = torch.arange(10.0).view(5, 2)


def write_table(folder, writers=2):
    """Each writer has the rows that torch.chunk gives it; the first also has a number, which nobody shares."""
    first = 0
    for writer, rows in enumerate(torch.chunk(TABLE, writers)):
        named = [("table", Rows(rows, first, len(TABLE)))]
        named += [("step", Rows.all(torch.tensor(3.0)))] if writer == 0 else []
        write_rows(named, folder, "some", writer=writer, writers=writers)
        first += len(rows)
    return sorted(folder.glob("*.safetensors"))


@pytest.mark.parametrize("writers", [1, 2, 3])
@pytest.mark.parametrize("cuts", [(0, 5), (0, 3, 5), (0, 2, 4, 5), (0, 1, 2, 3, 4, 5, 5)])
def test_what_any_number_wrote_any_number_reads(tmp_path, writers, cuts):
    stored = StoredTensors(write_table(tmp_path, writers))
    assert (sorted(stored.names), stored.shape("table"), stored.shape("step")) == (["step", "table"], [5, 2], [])
    for first, last in itertools.pairwise(cuts):
        assert torch.equal(stored.rows("table", first, last), TABLE[first:last])
    assert float(stored.whole("step")) == 3.0


def test_a_file_says_which_rows_it_has_and_is_an_ordinary_safetensors_file(tmp_path):
    first, second = write_table(tmp_path)
    assert [first.name, second.name] == ["some_00001_of_00002_001.safetensors", "some_00002_of_00002_001.safetensors"]
    assert load_file(second)["table"].tolist() == [[6.0, 7.0], [8.0, 9.0]]
    header = second.read_bytes()
    metadata = json.loads(header[8 : 8 + int.from_bytes(header[:8], "little")])["__metadata__"]
    assert json.loads(metadata["rows"]) == {"table": [3, 5]}


def test_files_of_others_hold_whole_tensors(tmp_path):
    save_file({"table": TABLE}, tmp_path / "model.safetensors")
    assert torch.equal(StoredTensors([tmp_path / "model.safetensors"]).rows("table", 1, 3), TABLE[1:3])


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_missing_rows_are_noticed_before_anything_is_read(tmp_path, lost):
    files = write_table(tmp_path, writers=3)
    with pytest.raises(ValueError, match="rows of table are missing; a file of another worker is not there"):
        StoredTensors([file for number, file in enumerate(files) if number != lost])


def test_a_writer_has_no_more_in_memory_than_one_of_its_files(tmp_path, monkeypatch):
    monkeypatch.setattr(tensor_files, "BYTES_AT_ONCE", TABLE.nbytes + 4)
    named = [(name, Rows(TABLE, 0, 10)) for name in "abc"]
    write_rows(named, tmp_path, "some", writer=0, writers=2)
    assert [sorted(load_file(file)) for file in sorted(tmp_path.iterdir())] == [["a"], ["b"], ["c"]]


def test_whole_tensors_become_files_with_an_index_that_transformers_loads(tmp_path):
    tiny_model_directory(tmp_path / "model")
    weights = load_file(tmp_path / "model" / "model.safetensors")
    (tmp_path / "model" / "model.safetensors").unlink()
    write_model(weights.items(), tmp_path / "model", max_bytes=20_000)
    files = sorted((tmp_path / "model").glob("*.safetensors"))
    assert [file.name for file in files] == [
        f"model-{n + 1:05d}-of-{len(files):05d}.safetensors" for n in range(len(files))
    ]
    assert len(files) > 1
    assert all(sum(tensor.nbytes for tensor in load_file(file).values()) <= 20_000 for file in files)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model").state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in weights.items())
