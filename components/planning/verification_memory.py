"""Whether a winner could be proven on the machine that would do it, asked before the search is paid for."""

from __future__ import annotations

from components.experiment.space import Branch, branches_of, corner_trials, some_trial
from components.experiment.spec import ExperimentSpec, FullMethod
from components.models.base.load import config_of, resolve_model
from components.models.dtypes import DTYPES
from components.planning.memory import CPU_PROCESS
from components.planning.meta_model import skeleton
from components.planning.planner import GB, physical_memory


def check_provable(experiment: ExperimentSpec) -> None:
    """Raises ValueError, with the arithmetic, if this machine cannot hold the model of a winner that it would have to prove.

    What is trained on GPUs is proven on one of their machines, which may not have been started yet: `--plan` knows those.
    """
    here = {
        branch.name: _weight_bytes(experiment, branch)
        for branch in branches_of(experiment).values()
        if not experiment.resources.of(some_trial(experiment, branch).method).gpus_per_worker
    }
    if not here:
        return
    config, room = config_of(resolve_model(experiment.model)), physical_memory()
    count = sum(
        parameter.numel() for parameter in skeleton(config, FullMethod(), dtype="fp32", attention="sdpa").parameters()
    )
    problems = [
        f"search.space.{name}: a winner is proven on this machine, which cannot hold it: {count:,} weights x {each} bytes ="
        f" {count * each / GB:.1f} GB + {CPU_PROCESS / GB:.1f} GB of the process, and it has {room / GB:.1f} GB; start the"
        " search on a larger machine, or take a smaller model or dtype: bf16"
        for name, each in here.items()
        if count * each + CPU_PROCESS > room
    ]
    if problems:
        raise ValueError("\n".join(problems))


def _weight_bytes(experiment: ExperimentSpec, branch: Branch) -> int:
    """Of one weight of the base, by the widest dtype that a trial of the branch may have it in."""
    return max(DTYPES[experiment.model.dtype_of(trial)].itemsize for trial in corner_trials(experiment, branch))
