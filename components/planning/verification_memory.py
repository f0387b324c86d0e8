"""Checks before a search whether this machine could verify the winner: it must hold the whole model."""

from __future__ import annotations

from components.errors import InputError
from components.experiment.space import Branch, branches_of, corner_trials, some_trial
from components.experiment.spec import ExperimentSpec, FullMethod
from components.models.base.load_base import config_of, resolve_model
from components.models.dtypes import DTYPES
from components.planning.memory import CPU_PROCESS, physical_memory
from components.planning.meta_model import meta_model
from components.storage.size import GB


def check_verifiable(experiment: ExperimentSpec) -> None:
    """Raises InputError, with the arithmetic, if this machine cannot hold the model of a winner that it would verify.

    Trials on GPUs are verified on a GPU machine, which may not have been started yet: only a plan knows those.
    """
    weight_bytes = {
        branch.name: _weight_bytes(experiment, branch)
        for branch in branches_of(experiment).values()
        if not experiment.resources.of(some_trial(experiment, branch).method).gpus_per_worker
    }
    if not weight_bytes:
        return
    config, room = config_of(resolve_model(experiment.model)), physical_memory()
    count = sum(
        parameter.numel()
        for parameter in meta_model(config, FullMethod(), dtype="fp32", attention="eager").parameters()
    )
    problems = [
        f"search.space.{name}: a winner is proven on this machine, which cannot hold it: {count:,} weights x {each} bytes ="
        f" {count * each / GB:.1f} GB + {CPU_PROCESS / GB:.1f} GB of the process, and it has {room / GB:.1f} GB; start the"
        " search on a larger machine, or take a smaller model or dtype: bf16"
        for name, each in weight_bytes.items()
        if count * each + CPU_PROCESS > room
    ]
    if problems:
        raise InputError("\n".join(problems))


def _weight_bytes(experiment: ExperimentSpec, branch: Branch) -> int:
    """Bytes of one weight of the base in the widest dtype of the branch's trials."""
    return max(DTYPES[experiment.model.dtype_of(trial)].itemsize for trial in corner_trials(experiment, branch))
