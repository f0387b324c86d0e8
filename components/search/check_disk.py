"""Whether the storage has room for what a search will keep there: asked before it starts."""

from __future__ import annotations

from pathlib import Path

from components.cluster.capacity.cluster_capacity import ClusterCapacity
from components.cluster.scheduling.scheduler import places
from components.errors import InputError
from components.records.disk_use import DiskUse
from components.records.events import replay
from components.records.journal import Journal
from components.records.on_message import OnMessage
from components.search.prepare_search import PreparedSearch
from components.storage.size import size_in_words, tree_bytes


def check_disk(prepared: PreparedSearch, capacity: ClusterCapacity, on_message: OnMessage) -> DiskUse:
    """Returns what the search keeps at most, and says so; warns of a disk that has less room.

    Raises InputError, with the arithmetic, if it is more than storage.budget_gb.
    """
    experiment = prepared.experiment
    use = prepared.disk.on_cluster(places(experiment, capacity))
    use = use.with_clones(replay(Journal(prepared.folder).read()).values())
    if not use.is_within(experiment.storage.budget_gb):
        raise InputError(_refusal(prepared, use))
    on_message(use.sentence())
    if (free := prepared.folder.free_bytes()) is not None:
        there = tree_bytes(Path(prepared.folder.uri)) + use.prepared
        if use.peak - there > free:
            on_message(
                f"Warning: {prepared.folder} has {size_in_words(free)} of room left, and this search may take"
                f" {size_in_words(use.peak - there)} more; where the disk is full, trials wait until there is room again"
            )
    return use


def _refusal(prepared: PreparedSearch, use: DiskUse) -> str:
    folder, budget = prepared.experiment.folder, prepared.experiment.storage.budget_gb
    lines = [
        f"storage.budget_gb={budget:g}: this search may keep {size_in_words(use.peak)} in {folder} at a time:",
        *(f"  {line}" for line in use.arithmetic()),
        f"A trial that runs has up to {len(use.checkpoints)} checkpoints: {', '.join(use.checkpoints)}. Take fewer trials"
        " (search.trials), fewer at once (search.max_concurrent_trials), LoRA in place of full, or a larger budget",
    ]
    return "\n".join(lines)
