"""Resources that a trial needs and the cluster has at its largest. Arithmetic only; autoscaler_config.py asks Ray."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from components.errors import TurnwiseError
from components.experiment.space import branches_of, some_trial
from components.experiment.spec import ExperimentSpec, WorkersSpec

RAY_UNIT = 1e-4  # Ray counts resources in ten-thousandths


class InsufficientCapacityError(TurnwiseError):
    """The cluster can never hold a trial of this experiment."""


@dataclass(frozen=True, kw_only=True)
class NodeType:
    """Nodes that are alike. `max_count`: how many of them there can be at once. `head`: the one node that is always up."""

    name: str
    max_count: int
    resources: Mapping[str, float]
    labels: Mapping[str, str] = field(default_factory=dict)
    head: bool = False


@dataclass(frozen=True, kw_only=True)
class ClusterCapacity:
    """A cluster at its largest.

    `max_nodes` is how many nodes of all types there can be together, beside the head. `grows`: an autoscaler starts and
    stops them.
    """

    types: tuple[NodeType, ...]
    max_nodes: int
    grows: bool

    def workers_that_fit(self, workers: WorkersSpec) -> int:
        """Returns how many of these workers the cluster can hold at once. A worker never spans nodes."""
        return self._count(lambda kind: workers_on_node(kind, workers))

    def trials_at_once(self, workers: WorkersSpec) -> int:
        """Returns how many trials with these workers the cluster can hold at once, if it holds nothing else."""
        if workers.placement == "strict_pack":
            return self._count(lambda kind: workers_on_node(kind, workers) // workers.min_workers)
        return self.workers_that_fit(workers) // workers.min_workers

    def _count(self, on_one: Callable[[NodeType], int]) -> int:
        """Adds up `on_one` over as many nodes as there can be, the best ones first."""
        total, left = sum(on_one(kind) for kind in self.types if kind.head), self.max_nodes
        nodes = [(on_one(kind), kind.max_count) for kind in self.types if not kind.head]
        for each, count in sorted(nodes, reverse=True):
            total, left = total + each * min(count, left), left - min(count, left)
        return total


@dataclass(frozen=True, slots=True, kw_only=True)
class Available:
    """How many workers of one kind fit: on what is free now, and on nodes that an autoscaler could start."""

    free: int
    startable: int = 0


def check_capacity(experiment: ExperimentSpec, capacity: ClusterCapacity) -> None:
    """Raises InsufficientCapacityError, with the arithmetic of each node type, if a trial of some branch fits nowhere."""
    problems = []
    for branch in branches_of(experiment).values():
        method = some_trial(experiment, branch).method
        workers = experiment.resources.of(method)  # all of it, also where trials share it
        if not capacity.trials_at_once(workers):
            problems += [f"  resources.{method.kind} (branch {branch.name}): {_needs(workers)}"]
            problems += [f"    {_offers(kind, workers)}" for kind in capacity.types]
    if problems:
        largest = f", even at its largest ({capacity.max_nodes} nodes beside the head)" if capacity.grows else ""
        way_out = "raise max_workers, or add a type of nodes" if capacity.grows else "or add nodes"
        raise InsufficientCapacityError(
            "\n".join([f"the cluster has no room for a trial{largest}; ask for less, {way_out}", *problems])
        )


def _needs(workers: WorkersSpec) -> str:
    labels = f" labelled {_labels(workers.node_labels)}" if workers.node_labels else ""
    where = f"on one node{labels} (strict_pack)" if workers.placement == "strict_pack" else f"on nodes{labels}"
    return (
        f"{workers.min_workers} workers with {_amounts(bundle(workers))} each need {workers.min_workers} places {where}"
    )


def _offers(kind: NodeType, workers: WorkersSpec) -> str:
    nodes = f"{kind.name}, {kind.max_count} x ({_amounts(kind.resources)})"
    unmet = {key: value for key, value in workers.node_labels.items() if not selects(value, kind.labels.get(key))}
    if unmet:
        return f"{nodes}: not labelled {_labels(unmet)}"
    return f"{nodes}: {kind.max_count} x {workers_on_node(kind, workers)} places"


def bundle(workers: WorkersSpec) -> dict[str, float]:
    """Returns what a trial reserves of one worker: all of it, or its share where trials share workers."""
    resources = {"CPU": workers.cpus_per_worker}
    if workers.gpus_per_worker:
        resources["GPU"] = workers.gpus_per_worker
    return {name: _share(amount, workers.trials_at_once) for name, amount in resources.items()}


def _share(amount: float, trials: int) -> float:
    """Rounded down to what Ray counts in, so that all shares of a worker fit into it."""
    return amount if trials == 1 else math.floor(round(amount / RAY_UNIT) / trials) * RAY_UNIT


def workers_on_node(kind: NodeType, workers: WorkersSpec) -> int:
    """Returns how many of these workers one node of this type holds."""
    if not all(selects(value, kind.labels.get(key)) for key, value in workers.node_labels.items()):
        return 0
    # A little more than a whole number, because 1.0 // 0.1 is 9.
    return min(int(kind.resources.get(name, 0.0) / amount + 1e-6) for name, amount in bundle(workers).items())


def selects(selector: str, value: str | None) -> bool:
    """Whether one of Ray's label selectors (`a`, `!a`, `in(a, b)`, `!in(a, b)`) selects a node's label; None: it has none."""
    listed = re.fullmatch(r"in\((.*)\)", selector.removeprefix("!"))
    values = re.split(r", ?", listed[1]) if listed else [selector.removeprefix("!")]
    return (value in values) != selector.startswith("!")


def _amounts(resources: Mapping[str, float]) -> str:
    """Names CPUs and GPUs. A GPU count of 0 is named too, if the type states it."""
    return " + ".join(f"{resources.get(name, 0.0):g} {name}" for name in ("CPU", "GPU") if name in resources) or "0 CPU"


def _labels(labels: Mapping[str, str]) -> str:
    return ", ".join(f"{key}: {value}" for key, value in labels.items())
