"""Nothing reads a copy from a device before it has arrived."""

import ast
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.fsdp import CPUOffloadPolicy

from components.experiment.spec import BatchSpec, OptimizerSpec
from components.storage.open_folder import folder_at
from components.training import fsdp
from components.training.workers import TorchWorkers
from tests.support.late_copies import LateCopies
from tests.support.sessions import FULL, LORA, curve, reports, session

COMPONENTS = Path(fsdp.__file__).parents[1]
# Gradients are clipped at each step, and added up over micro-batches.
CLIPPED = {
    "optimizer": OptimizerSpec(learning_rate=1e-2, max_grad_norm=0.05),
    "batch": BatchSpec(rows_per_step=4, rows_per_micro_batch=2),
}


def test_a_late_copy_is_nothing_until_it_is_waited_for():
    on_device = torch.arange(3.0)
    with LateCopies() as late:
        copy, kept = on_device.to("cpu", non_blocking=True), torch.zeros(3)
        kept.copy_(on_device, non_blocking=True)
        event = torch.cpu.current_stream().record_event()
        assert copy.isnan().all()
        assert kept.isnan().all()
        event.synchronize()
        assert (copy.tolist(), kept.tolist(), late.made) == ([0, 1, 2], [0, 1, 2], 2)
        assert on_device.to("cpu").tolist() == [0, 1, 2]
        assert on_device.pin_memory().to("cpu", non_blocking=True).tolist() == [0, 1, 2]


def whole_life(of, spec):
    """A trial up to its second checkpoint, that is loaded into another trial, which ends."""
    of.start("trial", spec)
    first, second = of.advance(), of.advance()
    of.start("resumed", spec)
    of.load(folder_at(second.checkpoint))
    return [first, second, of.advance()]


@pytest.mark.parametrize("spec", [FULL, LORA], ids=["full", "lora"])
def test_a_trial_of_one_worker_waits_for_every_copy(toy, tmp_path, spec):
    spec = spec.model_copy(update=CLIPPED)
    plain = curve(whole_life(session(toy, tmp_path / "plain"), spec))
    with LateCopies() as late:
        assert curve(whole_life(session(toy, tmp_path / "late"), spec)) == plain
    assert late.made == 0


@pytest.fixture
def offloading(tmp_path, monkeypatch):
    """A worker whose shares lie in pinned CPU memory, as beside a GPU."""
    monkeypatch.setattr(fsdp, "CPUOffloadPolicy", lambda pin_memory: CPUOffloadPolicy(pin_memory=True))
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield lambda: TorchWorkers(torch.device("cpu"), parallel="fsdp", cpu_offload=True)
    dist.destroy_process_group()


def test_gradients_that_are_offloaded_have_arrived_when_they_are_clipped(toy, tmp_path, offloading):
    """FSDP copies them without blocking, and waits for them at the end of each backward pass."""
    spec = FULL.model_copy(update=CLIPPED)
    plain = curve(whole_life(session(toy, tmp_path / "plain"), spec))
    with LateCopies() as late:
        assert curve(whole_life(session(toy, tmp_path / "late", offloading()), spec)) == pytest.approx(plain, abs=1e-5)
    assert late.made > 0


def test_a_trial_that_would_not_wait_for_them_diverges(toy, tmp_path, offloading):
    with LateCopies(arrive=False):
        (report,) = reports(session(toy, tmp_path, offloading()), FULL.model_copy(update=CLIPPED))
    assert "gradient norm nan" in report.diverged


def test_no_component_asks_for_a_copy_that_does_not_block():
    """Whoever adds one must also wait for it, and runs it above. A batch is too small for it to be worth that."""
    asking = [
        f"{path.relative_to(COMPONENTS)}:{node.value.lineno}"
        for path in COMPONENTS.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.keyword) and node.arg == "non_blocking"
    ]
    assert asking == []
