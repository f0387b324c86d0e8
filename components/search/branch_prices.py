"""What an hour of each branch's workers costs: the user's price, else that of the table of machines."""

from __future__ import annotations

from collections.abc import Iterator

from components.cluster.capacity.cluster_capacity import ClusterCapacity, workers_on_node
from components.errors import InputError
from components.experiment.space import branches_of, some_trial
from components.experiment.spec import ExperimentSpec, WorkersSpec
from components.planning.instance_types import load_node_table
from components.planning.worker_prices import price_by_table

ACCELERATOR = "accelerator_type:"  # Ray's resource of a node that has such a GPU
TABLE = "the price table"


def branch_prices(experiment: ExperimentSpec, capacity: ClusterCapacity) -> dict[str, float]:
    """Returns dollars of a worker-hour by branch, without the branches for which no price is known.

    Raises InputError, naming those, if the experiment limits dollars.
    """
    limits = experiment.search.budget
    given = limits.dollars_per_worker_hour if limits is not None else None
    workers = {
        name: experiment.resources.of(some_trial(experiment, branch).method)
        for name, branch in branches_of(experiment).items()
    }
    if isinstance(given, dict) and (unknown := sorted(given.keys() - workers.keys())):
        raise InputError(
            f"search.budget.dollars_per_worker_hour: no branch {', '.join(unknown)}; there are {', '.join(workers)}"
        )
    table = load_node_table()
    prices = {}
    for branch, needed in workers.items():
        own = given.get(branch) if isinstance(given, dict) else given
        price = own or price_by_table(needed, _accelerators(capacity, needed), table)
        if price is not None:
            prices[branch] = price
    missing = [branch for branch in workers if branch not in prices]
    if limits is not None and limits.dollars is not None and missing:
        raise InputError(
            f"search.budget.dollars={limits.dollars:g}: no price is known for workers of {', '.join(missing)}"
            f" ({'; '.join(_why(workers[branch]) for branch in missing)}); give search.budget.dollars_per_worker_hour, or"
            " limit hours or worker_seconds instead"
        )
    return prices


def priced_by(experiment: ExperimentSpec) -> str:
    """Whose prices they are, for the sentence about them."""
    limits = experiment.search.budget
    return (
        TABLE if limits is None or limits.dollars_per_worker_hour is None else "search.budget.dollars_per_worker_hour"
    )


def _accelerators(capacity: ClusterCapacity, workers: WorkersSpec) -> Iterator[str]:
    """Yields Ray's names of the GPUs that such a worker may get; an empty name where Ray does not know one."""
    for kind in capacity.types:
        if workers_on_node(kind, workers):
            names = [name.removeprefix(ACCELERATOR) for name in kind.resources if name.startswith(ACCELERATOR)]
            yield from names or [""]


def _why(workers: WorkersSpec) -> str:
    return (
        "its GPU is not in the table of machines"
        if workers.gpus_per_worker
        else "a CPU is not in the table of machines"
    )
