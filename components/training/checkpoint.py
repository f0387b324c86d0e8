"""A trial's resumable state on disk: safetensors and JSON, written whole or not at all, no pickle.

    spec.json               the TrialSpec
    base.json               the base model: path, revision, digest; and the chat format
    state.json              counters, data position, what has happened since the last report, the optimizer's plain numbers
    adapter/                LoRA: adapter_config.json and adapter_model.safetensors, as peft reads them
    weights/model.safetensors   full: every weight, tied ones once
    optimizer.safetensors   the optimizer's tensors, by parameter name

There is no random state in it: what is random in a step is seeded by (seed, step, worker).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from components.models.adapters import load_adapter_state, save_adapter
from components.models.trained import ADAPTER, WEIGHTS, WEIGHTS_FILE
from components.training.optimizer import trained_parameters
from components.training.workers import Workers

OPTIMIZER_FILE = "optimizer.safetensors"


def at_report(step: int) -> str:
    """The folder's name of the checkpoint that belongs to the report at `step`."""
    return f"step_{step:06d}"


def between_reports(reported_step: int, step: int) -> str:
    """The name of an interim checkpoint: at `step`, after the report at `reported_step` (0: before the first).

    Sorted by name, checkpoints are in the order of training.
    """
    return f"{at_report(reported_step)}+{step:06d}"


def write_together(directory: Path, workers: Workers, fill: Callable[[Path], None]) -> None:
    """Every worker calls it with the same `directory`, on storage they share, and all return once it stands.

    `fill` writes this worker's own files into a fresh folder, which then becomes `directory` in one rename: it is there
    whole or not at all. What a kill leaves is overwritten.
    """
    scratch = directory.with_name(f".{directory.name}")
    if workers.worker_rank == 0:
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
    workers.barrier()
    scratch.mkdir(exist_ok=True)  # a node that looked before may remember for seconds that there was none (NFS)
    fill(scratch)
    workers.barrier()
    if workers.worker_rank == 0:
        for file in scratch.rglob("*.safetensors"):
            file.chmod(0o644)  # safetensors lets nobody else read them, and storage is shared
        shutil.rmtree(directory, ignore_errors=True)
        scratch.rename(directory)
    workers.barrier()


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def save_weights(model: nn.Module, directory: Path) -> None:
    """adapter/ of a model with adapters, weights/ of any other."""
    if hasattr(model, "peft_config"):
        save_adapter(model, directory / ADAPTER)
        return
    (directory / WEIGHTS).mkdir()
    tensors = {name: parameter.detach().contiguous() for name, parameter in model.named_parameters()}
    save_file(tensors, directory / WEIGHTS / WEIGHTS_FILE, metadata={"format": "pt"})


def load_weights(model: nn.Module, directory: Path) -> None:
    """What save_weights wrote, into a model of the same method. Raises ValueError if the names differ."""
    if hasattr(model, "peft_config"):
        load_adapter_state(model, load_file(directory / ADAPTER / "adapter_model.safetensors"))
        return
    tensors = load_file(directory / WEIGHTS / WEIGHTS_FILE)
    parameters = dict(model.named_parameters())
    if tensors.keys() != parameters.keys():
        odd = sorted(tensors.keys() ^ parameters.keys())[:5]
        raise ValueError(f"{directory}: weights of another model; only one side has {', '.join(odd)}")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])


def save_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module, directory: Path) -> dict[str, dict[str, Any]]:
    """Writes the tensors; returns the plain numbers for state.json, by parameter name."""
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, dict[str, Any]] = {}
    written: set[int] = set()
    for name, parameter in trained_parameters(model):
        for key, value in optimizer.state[parameter].items():
            if isinstance(value, Tensor):
                tensor = value.detach().contiguous()
                # The 8-bit optimizer has one small table for all parameters; safetensors wants each tensor on its own.
                tensors[f"{name}/{key}"] = tensor.clone() if tensor.data_ptr() in written else tensor
                written.add(tensor.data_ptr())
            else:
                numbers.setdefault(name, {})[key] = value
    save_file(tensors, directory / OPTIMIZER_FILE)
    return numbers


def load_optimizer(
    optimizer: torch.optim.Optimizer, model: nn.Module, directory: Path, numbers: dict[str, dict[str, Any]]
) -> None:
    tensors = load_file(directory / OPTIMIZER_FILE)
    by_parameter: dict[str, dict[str, Any]] = {name: dict(plain) for name, plain in numbers.items()}
    for path, tensor in tensors.items():
        name, _, key = path.rpartition("/")
        by_parameter.setdefault(name, {})[key] = tensor
    for name, parameter in trained_parameters(model):
        state = by_parameter.get(name, {})
        # A step counter stays where the optimizer made it (fused AdamW wants it beside the parameter).
        optimizer.state[parameter] = {
            key: value.to(parameter.device) if isinstance(value, Tensor) else value for key, value in state.items()
        }
