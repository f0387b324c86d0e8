"""Finds the search that a person names: to look at it, to ask something of it, or to go on with it."""

from __future__ import annotations

from components.errors import InputError
from components.experiment.space import num_trials
from components.experiment.spec import ExperimentSpec
from components.records.manifest import LAYOUT, SearchManifest, searches_in

NEWEST = "newest"  # in place of a search's id


def find_search(experiment: ExperimentSpec, search_id: str = NEWEST, *, unfinished: bool = False) -> SearchManifest:
    """By its id, or the newest; `unfinished` leaves out those that have ended. Raises InputError if there is none."""
    found = searches_in(experiment.folder)
    wanted = found if search_id == NEWEST else [manifest for manifest in found if manifest.search_id == search_id]
    candidates = [manifest for manifest in wanted if not (unfinished and manifest.finished)]
    if candidates:
        return candidates[-1]
    if wanted and search_id != NEWEST:
        raise InputError(f"search {search_id} has ended; what it left can be seen with --watch {search_id}")
    known = ", ".join(f"{manifest.search_id}{' (ended)' * manifest.finished}" for manifest in found[-10:]) or "none"
    what = "search is running" if search_id == NEWEST and unfinished else f"search {search_id}"
    raise InputError(
        f"no {what} in {experiment.folder} (there: {known}); storage.path and name must be those it was started with"
    )


def find_interrupted(experiment: ExperimentSpec, search_id: str) -> SearchManifest:
    """The search to go on with, which must be of the same experiment; only `tracking` may have changed.

    Raises InputError if there is none, or if it cannot go on.
    """
    unfinished = [manifest for manifest in searches_in(experiment.folder) if not manifest.finished]
    wanted = unfinished[-1:] if search_id == NEWEST else [each for each in unfinished if each.search_id == search_id]
    if not wanted:
        known = ", ".join(manifest.search_id for manifest in unfinished) or "none"
        raise InputError(f"--resume: no such interrupted search in {experiment.folder} (interrupted: {known})")
    manifest = wanted[0]
    if manifest.layout != LAYOUT:
        raise InputError(
            f"--resume {manifest.search_id}: it was begun by another version of Turnwise, which kept its state otherwise; go"
            " on with that version, or start again without --resume (its trials and checkpoints stay)"
        )
    if changes := differences(manifest.experiment, experiment):
        raise InputError(
            f"--resume {manifest.search_id}: it was started with another experiment; set these back, or start again"
            " without --resume\n" + "\n".join(f"  {change}" for change in changes)
        )
    return manifest


def differences(began: ExperimentSpec, now: ExperimentSpec) -> list[str]:
    """`path: was X, is Y` for each leaf in which they differ, tracking aside; defaults of `trials` count as written."""
    before, after = (
        {**_leaves(spec.model_dump(mode="json", exclude={"tracking"})), "search.trials": num_trials(spec)}
        for spec in (began, now)
    )
    paths = sorted(before.keys() | after.keys())
    return [
        f"{path}: was {before.get(path)!r}, is {after.get(path)!r}"
        for path in paths
        if before.get(path) != after.get(path)
    ]


def _leaves(tree: object, path: str = "") -> dict[str, object]:
    if not isinstance(tree, dict):
        return {path: tree}
    return {
        leaf: value
        for key, child in tree.items()
        for leaf, value in _leaves(child, f"{path}.{key}" if path else key).items()
    }
