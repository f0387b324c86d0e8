"""How much room a trial needs, and how much the cluster has at its largest. Plain arithmetic; nodes.py asks the cluster."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from components.experiment.space import branches_of, some_trial
from components.experiment.spec import ExperimentSpec, WorkersSpec


class InsufficientCapacityError(RuntimeError):
    """The cluster can never hold a trial of this experiment."""


@dataclass(frozen=True, kw_only=True)
class NodeType:
    """Nodes that are alike. `most`: how many of them there can be at once. `head`: the one node that is always up."""

    name: str
    most: int
    resources: Mapping[str, float]
    labels: Mapping[str, str] = field(default_factory=dict)
    head: bool = False


@dataclass(frozen=True, kw_only=True)
class ClusterCapacity:
    """A cluster at its largest.

    `most_workers` is how many nodes of all types there can be together, beside the head. `grows`: an autoscaler starts and
    stops them.
    """

    types: tuple[NodeType, ...]
    most_workers: int
    grows: bool

    def places(self, workers: WorkersSpec) -> int:
        """How many of these workers the cluster can hold at once. A worker never spans nodes."""
        return self._count(lambda kind: places_on(kind, workers))

    def trials_at_once(self, workers: WorkersSpec) -> int:
        """How many trials with these workers the cluster can hold at once, if it holds nothing else."""
        if workers.placement == "strict_pack":
            return self._count(lambda kind: places_on(kind, workers) // workers.fewest)
        return self.places(workers) // workers.fewest

    def _count(self, on_one: Callable[[NodeType], int]) -> int:
        """Over as many nodes as there can be, the best ones first."""
        total, left = sum(on_one(kind) for kind in self.types if kind.head), self.most_workers
        workers = [(on_one(kind), kind.most) for kind in self.types if not kind.head]
        for count, most in sorted(workers, reverse=True):
            total, left = total + count * min(most, left), left - min(most, left)
        return total


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """For workers of one kind: free ones on nodes that are up, and those of nodes that an autoscaler could start."""

    free: int
    to_come: int = 0


def check_capacity(experiment: ExperimentSpec, room: ClusterCapacity) -> None:
    """Raises InsufficientCapacityError, with the arithmetic of each node type, if a trial of some branch fits nowhere."""
    problems = []
    for branch in branches_of(experiment).values():
        method = some_trial(experiment, branch).method
        workers = experiment.resources.of(method)
        if not room.trials_at_once(workers):
            problems += [f"  resources.{method.kind} (branch {branch.name}): {_wanted(workers)}"]
            problems += [f"    {_offered(kind, workers)}" for kind in room.types]
    if problems:
        largest = f", even at its largest ({room.most_workers} nodes beside the head)" if room.grows else ""
        way_out = "raise max_workers, or add a type of nodes" if room.grows else "or add nodes"
        raise InsufficientCapacityError(
            "\n".join([f"the cluster has no room for a trial{largest}; ask for less, {way_out}", *problems])
        )


def _wanted(workers: WorkersSpec) -> str:
    labels = f" labelled {_labels(workers.node_labels)}" if workers.node_labels else ""
    where = f"on one node{labels} (strict_pack)" if workers.placement == "strict_pack" else f"on nodes{labels}"
    return f"{workers.fewest} workers with {_amounts(bundle(workers))} each need {workers.fewest} places {where}"


def _offered(kind: NodeType, workers: WorkersSpec) -> str:
    nodes = f"{kind.name}, {kind.most} x ({_amounts(kind.resources)})"
    unmet = {key: value for key, value in workers.node_labels.items() if not selects(value, kind.labels.get(key))}
    if unmet:
        return f"{nodes}: not labelled {_labels(unmet)}"
    return f"{nodes}: {kind.most} x {places_on(kind, workers)} places"


def bundle(workers: WorkersSpec) -> dict[str, float]:
    """What one worker reserves."""
    resources = {"CPU": workers.cpus_per_worker}
    return resources | {"GPU": workers.gpus_per_worker} if workers.gpus_per_worker else resources


def places_on(kind: NodeType, workers: WorkersSpec) -> int:
    """How many of these workers one node of this type holds."""
    if not all(selects(value, kind.labels.get(key)) for key, value in workers.node_labels.items()):
        return 0
    # A little more than a whole number, because 1.0 // 0.1 is 9.
    return min(int(kind.resources.get(name, 0.0) / amount + 1e-6) for name, amount in bundle(workers).items())


def selects(selector: str, value: str | None) -> bool:
    """Ray's label selectors: `a`, `!a`, `in(a, b)`, `!in(a, b)`. A node without the label has none of the values."""
    listed = re.fullmatch(r"in\((.*)\)", selector.removeprefix("!"))
    values = re.split(r", ?", listed[1]) if listed else [selector.removeprefix("!")]
    return (value in values) != selector.startswith("!")


def _amounts(resources: Mapping[str, float]) -> str:
    """CPUs and GPUs, GPUs also if there are none, because that is what people want to know of a node."""
    return " + ".join(f"{resources.get(name, 0.0):g} {name}" for name in ("CPU", "GPU") if name in resources) or "0 CPU"


def _labels(labels: Mapping[str, str]) -> str:
    return ", ".join(f"{key}: {value}" for key, value in labels.items())
