"""Whether a winner could be proven on the machine that would do it, asked before the search is paid for."""

from __future__ import annotations

from components.experiment.space import branches_of, corners, trial_spec
from components.experiment.spec import ExperimentSpec, FullMethod
from components.models.load import config_of, resolve_model
from components.models.skeleton import skeleton
from components.training.memory import CPU_PROCESS
from workflows.planning import GB, physical_memory


def check_provable(experiment: ExperimentSpec) -> None:
    """Raises ValueError, with the arithmetic, if this machine cannot hold the model of a winner that it would have to prove.

    What is trained on GPUs is proven on one of their machines, which may not have been started yet: `--plan` knows those.
    """
    here = [
        branch.name
        for branch in branches_of(experiment).values()
        if not experiment.resources.of(
            trial_spec(experiment, branch, next(iter(corners(branch)))).method
        ).gpus_per_worker
    ]
    if not here:
        return
    model, room = experiment.model, physical_memory()
    whole = skeleton(
        config_of(resolve_model(model)), FullMethod(), dtype=model.dtype, attention=model.attention
    ).parameters()
    sizes = [(parameter.numel(), parameter.nbytes) for parameter in whole]
    count, size = sum(count for count, _ in sizes), sum(size for _, size in sizes)
    needed = size + CPU_PROCESS
    if needed > room:
        raise ValueError(
            f"search.space: a winner of {', '.join(here)} is proven on this machine, which cannot hold it: {count:,} weights"
            f" x {size // count} bytes = {size / GB:.1f} GB + {CPU_PROCESS / GB:.1f} GB of the process, and it has"
            f" {room / GB:.1f} GB; start the search on a larger machine, or take a smaller model or model.dtype: bf16"
        )
