"""What Ray reserves for a trial: one placement group, in which its slot and all its workers live."""

from __future__ import annotations

from ray.tune import PlacementGroupFactory

from components.cluster.capacity.cluster_capacity import bundle
from components.experiment.spec import WorkersSpec


class SlotPlacement(PlacementGroupFactory):  # type: ignore[misc]
    """Of a trial with `count` workers: an empty head (the slot itself costs nothing), then bundle i for worker i.

    Ray puts what has an empty head onto the node of the first worker. Tune hands a slot on to trials whose placement is
    equal: the same WorkersSpec and number of workers. A slot that shards its model has no whole one for other trials.
    """

    def __init__(self, workers: WorkersSpec, count: int, kind: str = "") -> None:
        """`kind`: of the trials that may share these workers (shared_slots.py); they get no others."""
        super().__init__(
            [{}] + [bundle(workers)] * count,
            strategy=workers.placement.upper(),
            bundle_label_selector=[workers.node_labels] * count,
        )
        self.workers, self.count, self.kind = workers, count, kind

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SlotPlacement) and self._facts == other._facts

    @property
    def _facts(self) -> tuple[WorkersSpec, int, str]:
        return self.workers, self.count, self.kind

    __hash__ = PlacementGroupFactory.__hash__
