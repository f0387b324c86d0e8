"""Which nodes a cluster had when, and which trials of a search ran on them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass

from components.cluster.capacity.node_history import NodeTime, node_history
from components.experiment.spec import ExperimentSpec
from components.records.journal import Journal
from components.records.slot_timeline import SlotInterval, slot_intervals
from components.reports.text_timeline import TimelineBar, TimelineRow
from components.search.find import NEWEST, find_search


@dataclass(frozen=True, kw_only=True)
class NodeTrials:
    """A node's time in the cluster, and the trials of the search that ran on it meanwhile."""

    node: NodeTime
    intervals: tuple[SlotInterval, ...]

    def as_json(self) -> dict[str, object]:
        return {
            "type": self.node.kind,
            "node_id": self.node.node_id,
            "began": self.node.began,
            "ended": self.node.ended,
            "trials": [asdict(interval) for interval in self.intervals],
        }

    def rows(self, *, now: float) -> Iterator[TimelineRow]:
        """A row for the node, and one for each of its trials."""
        node = self.node
        up = TimelineBar(began=node.began, ended=node.ended or now, mark="-")
        yield TimelineRow(label=f"{node.kind} {node.node_id[-6:]}", bars=(up,))
        for number in sorted({interval.number for interval in self.intervals}):
            bars = (
                TimelineBar(began=max(interval.began, node.began), ended=interval.ended, mark="#")
                for interval in self.intervals
                if interval.number == number
            )
            yield TimelineRow(label=f"  trial {number}", bars=tuple(bars))


def search_timeline(
    experiment: ExperimentSpec, search_id: str = NEWEST, *, address: str | None = None
) -> list[NodeTrials]:
    """All nodes since the cluster began, oldest first. `address` is its dashboard's, by default that of RAY_ADDRESS.

    Raises InputError if there is no such search.
    """
    events = Journal(experiment.folder / find_search(experiment, search_id).search_id).read()
    return list(trials_on(node_history(address), slot_intervals(events)))


def trials_on(nodes: Iterable[NodeTime], intervals: Iterable[SlotInterval]) -> Iterator[NodeTrials]:
    intervals = list(intervals)
    for node in nodes:
        yield NodeTrials(node=node, intervals=tuple(each for each in intervals if each.slot in node.slots))
