"""A few real steps of one trial, in a new process: how fast they are, and how much memory they need.

A new process, so that only the trial's memory is measured, and only this process dies if the trial is too large.
"""

from __future__ import annotations

import importlib
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from pydantic import BaseModel, ConfigDict, Field

from components.data.layout import Layout
from components.data.prepare import PreparedDataset
from components.data.sampler import Position
from components.errors import InputError
from components.experiment.spec import ChatFormatSpec, ModelSpec, TrialSpec
from components.models.base.reference import BaseReference
from components.models.precision import computing
from components.storage.folder import Folder
from components.storage.open_folder import folder_at
from components.training.evaluate import evaluate
from components.training.training_data import TrainingData
from components.training.trial_runner import TrialRunner
from components.training.workers import OneWorker


class Calibration(BaseModel):
    """`process_bytes` is held before the trial (libraries, the CUDA context), `peak_bytes` is what the trial adds.

    Counted are, on a CPU, resident memory by the kernel, and on a GPU what torch has reserved.
    """

    model_config = ConfigDict(frozen=True)

    device: str
    steps: int
    tokens_per_second: float = Field(description="Computed ones, padding counted, of one worker.")
    peak_bytes: int
    process_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationRequest:
    """The trial to run. largest_step: the index of its largest step in the first epoch; only that step is taken."""

    model: ModelSpec
    spec: TrialSpec
    prepared: Folder
    max_tokens: int
    pad_token_id: int
    largest_step: int
    tokens_in_step: int
    on_gpu: bool
    threads: int = 1
    layout: Layout = "trees"


def calibrate_trial(request: CalibrationRequest, *, steps: int = 3, evaluates: bool = False) -> Calibration:
    """Takes `steps` steps; the first one warms up and is not timed.

    Args:
        evaluates: then evaluates the model, which may need more memory than a step.

    Raises:
        InputError: the trial cannot run on this machine.
    """
    if request.on_gpu and not torch.cuda.is_available():
        raise InputError("--calibrate: these trials run on GPUs, and torch sees none here")
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        try:
            return process.submit(_measure_steps, request, steps, evaluates).result()
        except BrokenProcessPool:
            why = "the machine's memory is not enough for it"
        except torch.OutOfMemoryError as error:
            why = str(error).splitlines()[0]
    raise InputError(f"--calibrate: a trial of {request.spec.method.kind} died within {steps} steps: {why}")


def _measure_steps(request: CalibrationRequest, steps: int, evaluates: bool) -> Calibration:
    torch.set_num_threads(request.threads)
    device = torch.device("cuda" if request.on_gpu else "cpu")
    load_kernels(device, request.spec.precision)
    process_bytes = _reserved(device)
    with TemporaryDirectory() as scratch:
        data = TrainingData(
            dataset=PreparedDataset.open(request.prepared),
            max_tokens=request.max_tokens,
            pad_token_id=request.pad_token_id,
            layout=request.layout,
        )
        base = BaseReference(model=request.model, digest="not asked for", chat_format=ChatFormatSpec())
        runner = TrialRunner(request.model, data, OneWorker(device), base, folder_at(scratch))
        runner.start("calibration", request.spec)
        run, seconds = runner.running, 0.0
        for number in range(steps):
            run.position = Position(epoch=0, step=request.largest_step)
            began = time.perf_counter()
            run.step()
            if number > 0 or steps == 1:
                seconds += time.perf_counter() - began
        if evaluates:
            evaluate(
                run.scored,
                run.eval_store,
                run.workers,
                max_tokens=request.max_tokens,
                rows_per_batch=request.spec.batch.rows_per_micro_batch,
                pad_token_id=request.pad_token_id,
            )
        return Calibration(
            device=torch.cuda.get_device_name(device) if request.on_gpu else "cpu",
            steps=steps,
            tokens_per_second=request.tokens_in_step * max(1, steps - 1) / seconds,
            peak_bytes=_peak_reserved(device) - process_bytes,
            process_bytes=process_bytes,
        )


def load_kernels(device: torch.device, precision: str) -> None:
    """Libraries allocate memory on their first use: a tiny layer uses them before the measurement begins."""
    importlib.import_module("pandas")  # pyarrow loads it with the first column that is read
    layer = torch.nn.Linear(8, 8, device=device)
    with computing(precision, device):
        hidden = layer(torch.ones(1, 1, 8, 8, device=device))
        loss = torch.nn.functional.scaled_dot_product_attention(hidden, hidden, hidden).float().logsumexp(-1).sum()
    loss.backward()  # type: ignore[no-untyped-call]
    torch.optim.AdamW(layer.parameters(), fused=True).step()


def _reserved(device: torch.device) -> int:
    return torch.cuda.memory_reserved(device) if device.type == "cuda" else resident("VmRSS")


def _peak_reserved(device: torch.device) -> int:
    return torch.cuda.max_memory_reserved(device) if device.type == "cuda" else resident("VmHWM")


def resident(what: str) -> int:
    """Bytes of this process by Linux's count: VmRSS is the present value, VmHWM the peak."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    (line,) = [line for line in status.splitlines() if line.startswith(f"{what}:")]
    return int(line.split()[1]) * 1024
