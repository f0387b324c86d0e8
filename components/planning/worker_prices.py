"""What an hour of a trial's worker costs by the table of machines: its GPU's share of one."""

from __future__ import annotations

from collections.abc import Iterable

from components.experiment.spec import WorkersSpec
from components.planning.instance_types import NodeTable


def price_by_table(workers: WorkersSpec, accelerators: Iterable[str], table: NodeTable) -> float | None:
    """Returns dollars on demand of an hour of one worker, on the dearest GPU that it may get. None if one has no price."""
    if not workers.gpus_per_worker:
        return None
    dearest = 0.0
    for accelerator in accelerators:
        known = [node for node in table.nodes.values() if node.gpu.split("-")[0] == accelerator.split("-")[0]]
        if not known:
            return None
        dearest = max(dearest, *(node.dollars_per_gpu_hour * workers.gpus_per_worker for node in known))
    return dearest or None
