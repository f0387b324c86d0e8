"""Searches that were started, as people name them."""

from __future__ import annotations

from components.experiment.spec import ExperimentSpec
from components.records.manifest import SearchManifest, searches_in
from workflows.cli import NEWEST


def find_search(experiment: ExperimentSpec, search_id: str = NEWEST, *, unfinished: bool = False) -> SearchManifest:
    """By its id, or the newest; `unfinished` leaves out those that have ended. Raises ValueError if there is none."""
    found = searches_in(experiment.folder)
    wanted = found if search_id == NEWEST else [manifest for manifest in found if manifest.search_id == search_id]
    living = [manifest for manifest in wanted if not (unfinished and manifest.finished)]
    if living:
        return living[-1]
    if wanted and search_id != NEWEST:
        raise ValueError(f"search {search_id} has ended; what it left can be seen with --watch {search_id}")
    known = ", ".join(f"{manifest.search_id}{' (ended)' * manifest.finished}" for manifest in found[-10:]) or "none"
    what = "search is running" if search_id == NEWEST and unfinished else f"search {search_id}"
    raise ValueError(
        f"no {what} in {experiment.folder} (there: {known}); storage.path and name must be those it was started with"
    )
