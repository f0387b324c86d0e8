"""A few real steps of one trial, in a process of its own: how fast they are, and how much memory they take.

The process is new, so that nobody's memory but the trial's is measured, and that of a trial that is too large only it dies.
"""

from __future__ import annotations

import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from pydantic import BaseModel, ConfigDict, Field

from components.data.prepare import PreparedDataset
from components.data.sampler import Position
from components.experiment.spec import ModelSpec, TrialSpec
from components.models.base.reference import BaseReference
from components.storage.base import Folder
from components.storage.open import folder_at
from components.training.evaluate import evaluate
from components.training.precision import computing
from components.training.trainer import TrainingData
from components.training.trial_runner import TrialRunner
from components.training.workers import OneWorker


class Calibration(BaseModel):
    """`peak_bytes` is what the trial added to the process; `process_bytes` what was there before: libraries, CUDA's context.

    By the kernel's count of resident memory on a CPU, by torch's of what it has reserved on a GPU.
    """

    model_config = ConfigDict(frozen=True)

    device: str
    steps: int
    tokens_per_second: float = Field(description="Computed ones, padding counted, of one worker.")
    peak_bytes: int
    process_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """What is to be tried. largest_step: where in the first epoch it stands; it is taken again and again."""

    model: ModelSpec
    spec: TrialSpec
    prepared: Folder
    max_tokens: int
    pad_token_id: int
    largest_step: int
    tokens_in_step: int
    on_gpu: bool
    threads: int = 1


def calibrate(candidate: Candidate, *, steps: int = 3, evaluates: bool = False) -> Calibration:
    """The first step warms up and is not timed. Raises ValueError if the trial cannot run here.

    Args:
        evaluates: goes on to an evaluation, too; it may hold more than a step.
    """
    if candidate.on_gpu and not torch.cuda.is_available():
        raise ValueError("--calibrate: these trials run on GPUs, and torch sees none here")
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        try:
            return process.submit(_measured, candidate, steps, evaluates).result()
        except BrokenProcessPool:
            why = "the machine's memory is not enough for it"
        except torch.OutOfMemoryError as error:
            why = str(error).splitlines()[0]
    raise ValueError(f"--calibrate: a trial of {candidate.spec.method.kind} died within {steps} steps: {why}")


def _measured(candidate: Candidate, steps: int, evaluates: bool) -> Calibration:
    torch.set_num_threads(candidate.threads)
    device = torch.device("cuda" if candidate.on_gpu else "cpu")
    _load_kernels(device, candidate.spec)
    process_bytes = _reserved(device)
    with TemporaryDirectory() as scratch:
        data = TrainingData(
            dataset=PreparedDataset.open(candidate.prepared),
            max_tokens=candidate.max_tokens,
            pad_token_id=candidate.pad_token_id,
        )
        base = BaseReference(model=candidate.model, digest="not asked for", chat_format="auto")
        session = TrialRunner(candidate.model, data, OneWorker(device), base, folder_at(scratch))
        session.start("calibration", candidate.spec)
        run, seconds = session.running, 0.0
        for number in range(steps):
            run.position = Position(epoch=0, step=candidate.largest_step)
            began = time.perf_counter()
            run.step()
            if number > 0 or steps == 1:
                seconds += time.perf_counter() - began
        if evaluates:
            evaluate(
                run.scored,
                run.eval_store,
                run.workers,
                max_tokens=candidate.max_tokens,
                rows_per_batch=candidate.spec.batch.rows_per_micro_batch,
                pad_token_id=candidate.pad_token_id,
            )
        return Calibration(
            device=torch.cuda.get_device_name(device) if candidate.on_gpu else "cpu",
            steps=steps,
            tokens_per_second=candidate.tokens_in_step * max(1, steps - 1) / seconds,
            peak_bytes=_most_reserved(device) - process_bytes,
            process_bytes=process_bytes,
        )


def _load_kernels(device: torch.device, spec: TrialSpec) -> None:
    """Libraries take memory when they are first used: a tiny layer uses them before anything is measured."""
    layer = torch.nn.Linear(8, 8, device=device)
    with computing(spec.precision, device):
        hidden = layer(torch.ones(1, 1, 8, 8, device=device))
        loss = torch.nn.functional.scaled_dot_product_attention(hidden, hidden, hidden).float().logsumexp(-1).sum()
    loss.backward()  # type: ignore[no-untyped-call]
    torch.optim.AdamW(layer.parameters(), fused=True).step()


def _reserved(device: torch.device) -> int:
    return torch.cuda.memory_reserved(device) if device.type == "cuda" else resident("VmRSS")


def _most_reserved(device: torch.device) -> int:
    return torch.cuda.max_memory_reserved(device) if device.type == "cuda" else resident("VmHWM")


def resident(what: str) -> int:
    """Bytes of this process by Linux's count: VmRSS are those it holds, VmHWM the most it ever held."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    (line,) = [line for line in status.splitlines() if line.startswith(f"{what}:")]
    return int(line.split()[1]) * 1024
