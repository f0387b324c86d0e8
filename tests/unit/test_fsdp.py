"""Full fine-tuning with every weight shared out over two real workers: what one process does, they do."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from components.data.prepare import PreparedDataset
from components.experiment.spec import BatchSpec, OptimizerSpec
from components.models.load_trained import load_trained, package
from components.storage.open_folder import folder_at
from components.training.evaluate import score
from components.training.workers import TorchWorkers
from tests.support.sessions import FULL, MAX_TOKENS, curve, prepared_toy, reports, session
from tests.support.toy import tiny_model_directory

SMALL_BATCHES = FULL.model_copy(update={"batch": BatchSpec(rows_per_step=4, rows_per_micro_batch=1)})
CASES = {
    "several micro-batches": SMALL_BATCHES,
    # Of 3 rows the first worker has two: the other one computes an empty micro-batch.
    "unequal shares": FULL.model_copy(update={"batch": BatchSpec(rows_per_step=3, rows_per_micro_batch=1)}),
    "clipped": FULL.model_copy(update={"optimizer": OptimizerSpec(learning_rate=1e-2, max_grad_norm=0.05)}),
    "gradient checkpointing": SMALL_BATCHES.model_copy(update={"gradient_checkpointing": True}),
    "bf16": FULL.model_copy(update={"precision": "bf16"}),
    "after all others": FULL,
}


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """Its model has tied embeddings; beside it lies one that has not, and was published in bf16."""
    toy = prepared_toy(tmp_path_factory.mktemp("toy"))
    tiny_model_directory(other_model(toy)[0], tied=False)
    AutoModelForCausalLM.from_pretrained(other_model(toy)[0], dtype=torch.bfloat16).save_pretrained(other_model(toy)[0])
    return toy


def other_model(toy):
    return toy[0].with_name("other"), *toy[1:]


def in_two_workers(work, *arguments, folder):
    """work(session, *arguments) in each of two gloo workers with a sharded session; what they return, as JSON."""
    multiprocessing.spawn(_as_worker, args=(work, arguments, folder), nprocs=2)
    return [json.loads((folder / f"worker_{rank}.json").read_text()) for rank in (0, 1)]


def _as_worker(rank, work, arguments, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    workers = TorchWorkers(torch.device("cpu"), parallel="fsdp")
    (folder / f"worker_{rank}.json").write_text(json.dumps(work(workers, folder, *arguments)))
    dist.destroy_process_group()


def one_report(of, spec, trial_id, resume_from=None):
    """The trial's next report and its checkpoint's folder."""
    of.start(trial_id, spec)
    if resume_from is not None:
        of.load(folder_at(resume_from))
    report = of.advance()
    return report, Path(report.checkpoint)


def train_all(workers, folder, toy):
    """Every case; and of one more trial the first report."""
    of = session(toy, folder, workers)
    curves = {name: curve(reports(of, spec, name)) for name, spec in CASES.items()}
    curves["another model"] = curve(reports(session(other_model(toy), folder, workers), FULL, "other"))
    offloading = TorchWorkers(torch.device("cpu"), parallel="fsdp", cpu_offload=True)
    curves["offloaded"] = curve(reports(session(toy, folder, offloading), FULL, "offloaded"))
    report, checkpoint = one_report(of, FULL, "stopped")
    return {"curves": curves, "checkpoint": str(checkpoint), "eval_loss": report.eval_loss}


@pytest.fixture(scope="module")
def two(toy, tmp_path_factory):
    """What two workers trained, one trial after the other in one session."""
    first, second = in_two_workers(train_all, toy, folder=tmp_path_factory.mktemp("two"))
    assert first == second
    return first


@pytest.mark.parametrize("name", CASES)
def test_two_workers_that_share_out_every_weight_have_the_loss_curve_of_one_process(toy, tmp_path, two, name):
    # In bf16 the sharded model computes all of it in bf16, where autocast leaves some in float32.
    near = 1e-2 if name == "bf16" else 1e-5
    assert two["curves"][name] == pytest.approx(curve(reports(session(toy, tmp_path), CASES[name])), abs=near)


def test_a_head_of_its_own_a_file_in_bf16_and_shares_in_cpu_memory_change_nothing(toy, tmp_path, two):
    other = curve(reports(session(other_model(toy), tmp_path), FULL))
    assert two["curves"]["another model"] == pytest.approx(other, abs=1e-5)
    assert two["curves"]["offloaded"] == two["curves"]["after all others"]


def test_each_worker_writes_its_own_rows_of_a_checkpoint(two):
    folder = Path(two["checkpoint"])
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == {
        "spec.json",
        "base.json",
        "state.json",
        "weights/model_00001_of_00002_001.safetensors",
        "weights/model_00002_of_00002_001.safetensors",
        "optimizer_00001_of_00002_001.safetensors",
        "optimizer_00002_of_00002_001.safetensors",
    }
    parts = [load_file(path) for path in sorted((folder / "weights").iterdir())]
    assert [len(part["model.norm.weight"]) for part in parts] == [16, 16]  # of a hidden size of 32


def eval_loss_of(directory, store):
    """Of what one process loads from a checkpoint or package."""
    losses = score(load_trained(directory), store, max_tokens=MAX_TOKENS, rows_per_batch=4)
    return sum(loss.loss_sum for loss in losses) / sum(loss.num_targets for loss in losses)


def test_what_two_workers_trained_is_packaged_as_one_model_that_loads_plainly(toy, tmp_path, two):
    checkpoint, package_folder = Path(two["checkpoint"]), tmp_path / "package"
    package(checkpoint, package_folder)
    names = sorted(path.name for path in (package_folder / "weights").iterdir())
    assert names == [
        "config.json",
        "generation_config.json",
        "model-00001-of-00001.safetensors",
        "model.safetensors.index.json",
    ]
    plain = AutoModelForCausalLM.from_pretrained(package_folder / "weights").state_dict()
    parts = [load_file(path) for path in sorted((checkpoint / "weights").iterdir())]
    assert parts[0].keys() == parts[1].keys() == plain.keys() - {"lm_head.weight"}  # tied to the embeddings
    assert all(torch.equal(torch.cat([parts[0][name], parts[1][name]]), plain[name]) for name in parts[0])
    store = PreparedDataset.open(toy[1]).eval
    for directory in (checkpoint, package_folder):
        assert eval_loss_of(directory, store) == pytest.approx(two["eval_loss"], abs=1e-5)


def go_on(workers, folder, toy, checkpoints):
    """From each checkpoint of one worker, the next report of two."""
    of = session(toy, folder, workers)
    resumed = [one_report(of, FULL, f"from {number}", Path(path)) for number, path in enumerate(checkpoints)]
    return [[curve([report]), str(checkpoint)] for report, checkpoint in resumed]


def test_a_checkpoint_is_resumed_by_any_number_of_workers(toy, tmp_path, two):
    """Two workers, then one, then two; and one, then two, then one. Each trains up to one of the three reports."""
    whole = reports(session(toy, tmp_path / "whole"), FULL)
    one = session(toy, tmp_path / "one")
    first, after_first = one_report(one, FULL, "first")
    second, after_second = one_report(one, FULL, "second", Path(two["checkpoint"]))
    assert curve([first, second]) == pytest.approx(curve(whole[:2]), abs=1e-5)
    (tmp_path / "two").mkdir()
    from_first, from_second = in_two_workers(
        go_on, toy, [str(after_first), str(after_second)], folder=tmp_path / "two"
    )[0]
    last, _ = one_report(one, FULL, "last", Path(from_first[1]))
    assert from_first[0] == pytest.approx(curve([whole[1]]), abs=1e-5)
    assert from_second[0] == pytest.approx(curve([whole[2]]), abs=1e-5)
    assert curve([last]) == pytest.approx(curve([whole[2]]), abs=1e-5)


def test_a_checkpoint_without_one_workers_rows_is_refused(toy, tmp_path, two):
    shutil.copytree(two["checkpoint"], tmp_path / "step")
    (tmp_path / "step" / "weights" / "model_00002_of_00002_001.safetensors").unlink()
    of = session(toy, tmp_path)
    of.start("trial", FULL)
    with pytest.raises(ValueError, match=r"weights: rows of .* are missing; a file of another worker is not there"):
        of.load(folder_at(tmp_path / "step"))
