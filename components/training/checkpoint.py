"""A trial's resumable state on disk: safetensors and JSON, written completely or not at all, without pickle.

    spec.json               the TrialSpec
    base.json               the base model: path, revision, digest; and the chat format
    state.json              counters, data position, the interval since the last report, the optimizer's plain numbers
    adapter/                LoRA: adapter_config.json and adapter_model.safetensors, as peft reads them
    weights/                full: model.safetensors with every weight, tied ones once
    optimizer.safetensors   the optimizer's tensors, by parameter name

Each worker of a sharded model writes its own rows of weights and optimizer state, in files whose names say which
(models/sharded_safetensors.py): model_00001_of_00002_001.safetensors and so on. Any number of workers can read them.
A checkpoint has no random state: randomness in a step is seeded by (seed, step, worker).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from components.models.adapters import load_adapter_state, save_adapter
from components.models.load_trained import ADAPTER, ADAPTER_FILE, WEIGHTS, check_stored, weights_of
from components.models.sharded_safetensors import StoredTensors, write_rows
from components.storage.background_upload import BackgroundUpload
from components.storage.folder import Folder
from components.storage.permissions import readable_as_usual
from components.training.fsdp import own_rows
from components.training.optimizer import trained_parameters
from components.training.workers import Workers

OPTIMIZER = "optimizer"
OPTIMIZER_FILES = f"{OPTIMIZER}*.safetensors"  # needed only to resume the trial


def write_checkpoint(
    directory: Folder, workers: Workers, write: Callable[[Path], None], uploads: BackgroundUpload
) -> None:
    """Every worker calls it; `write` writes this worker's own files. The folder appears complete or not at all.

    On a mounted file system the checkpoint is complete on return. On an object store its upload continues in the
    background; the previous one is complete. On a full disk a worker writes its files again once there is room, and the
    others wait for it: the trial stands still at its report.
    """
    pending = directory.begin(part=workers.worker_rank, of=workers.count, barrier=workers.barrier, uploads=uploads)
    pending.commit(write)


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def save_weights(model: nn.Module, directory: Path, workers: Workers) -> None:
    """Writes this worker's part of adapter/ if the model has adapters, else of weights/."""
    if hasattr(model, "peft_config"):
        if workers.worker_rank == 0:
            save_adapter(model, directory / ADAPTER)
            readable_as_usual(directory / ADAPTER / ADAPTER_FILE)
        return
    (directory / WEIGHTS).mkdir(exist_ok=True)
    _write_own(model.named_parameters(), directory / WEIGHTS, "model", workers)


def load_weights(model: nn.Module, directory: Path) -> None:
    """Loads what save_weights wrote into a model of the same method. Raises ValueError if names or shapes differ."""
    if hasattr(model, "peft_config"):
        load_adapter_state(model, load_file(directory / ADAPTER / ADAPTER_FILE))
        return
    stored = weights_of(directory)
    parameters = dict(model.named_parameters())
    check_stored(stored, parameters, directory / WEIGHTS)
    with torch.no_grad():
        for name, parameter in parameters.items():
            own = own_rows(parameter)
            own.tensor.copy_(stored.rows(name, own.first, own.last))


def save_optimizer(
    optimizer: torch.optim.Optimizer, model: nn.Module, directory: Path, workers: Workers
) -> dict[str, dict[str, Any]]:
    """Writes this worker's part of the tensors; returns the plain numbers for state.json, by parameter name."""
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, dict[str, Any]] = {}
    written: set[int] = set()
    for name, parameter in trained_parameters(model):
        for key, value in optimizer.state[parameter].items():
            if isinstance(value, Tensor):
                # The 8-bit optimizer shares one small table among all parameters; safetensors refuses shared memory.
                tensors[f"{name}/{key}"] = value.clone() if value.data_ptr() in written else value
                written.add(value.data_ptr())
            else:
                numbers.setdefault(name, {})[key] = value
    _write_own(tensors.items(), directory, OPTIMIZER, workers)
    return numbers


def load_optimizer(
    optimizer: torch.optim.Optimizer, model: nn.Module, directory: Path, numbers: dict[str, dict[str, Any]]
) -> None:
    stored = StoredTensors(sorted(directory.glob(OPTIMIZER_FILES)))
    keys: dict[str, list[str]] = {}
    for path in stored.names:
        name, _, key = path.rpartition("/")
        keys.setdefault(name, []).append(key)
    for name, parameter in trained_parameters(model):
        state = {key: _state_of(parameter, stored, f"{name}/{key}") for key in keys.get(name, [])}
        optimizer.state[parameter] = {**numbers.get(name, {}), **state}


def _write_own(named: Iterable[tuple[str, Tensor]], directory: Path, stem: str, workers: Workers) -> None:
    """Every worker writes its rows of sharded tensors. The first one also writes those that are the same on all workers."""
    first = workers.worker_rank == 0
    rows = ((name, own_rows(tensor)) for name, tensor in named if first or isinstance(tensor, DTensor))
    if workers.parallel == "fsdp":
        some = ((name, own) for name, own in rows if own.first < own.last)
        write_rows(some, directory, stem, writer=workers.worker_rank, writers=workers.count)
    elif first:
        write_rows(rows, directory, stem)


def _state_of(parameter: Tensor, stored: StoredTensors, path: str) -> Tensor:
    """Returns an optimizer's tensor of a parameter, on its device; sharded like the parameter if the shapes are equal."""
    if stored.shape(path) != list(parameter.shape):
        return stored.whole(path).to(parameter.device)
    own = own_rows(parameter)
    rows = stored.rows(path, own.first, own.last)
    if not isinstance(parameter, DTensor):
        return rows.to(parameter.device)
    state = torch.zeros_like(parameter, dtype=rows.dtype, requires_grad=False)
    own_rows(state).tensor.copy_(rows)
    return state
