"""Finds the search that a person names: to look at it, to ask something of it, or to go on with it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from components.errors import InputError
from components.experiment.space import num_trials
from components.experiment.spec import ExperimentSpec
from components.records.manifest import LAYOUT, SearchManifest, searches_in, unreadable_searches
from components.storage.folder import Folder
from components.storage.open_folder import folder_at

NEWEST = "newest"  # in place of a search's id
MAY_CHANGE: dict[str, Any] = {"tracking": True, "storage": {"budget_gb"}, "data": {"on_cluster_from"}}


def find_search(experiment: ExperimentSpec, search_id: str = NEWEST, *, unfinished: bool = False) -> SearchManifest:
    """By its id, or the newest; `unfinished` leaves out those that have ended. Raises InputError if there is none."""
    found = searches_in(experiment.folder)
    wanted = _named(found, search_id)
    candidates = [manifest for manifest in wanted if not (unfinished and manifest.finished)]
    if candidates:
        return candidates[-1]
    if wanted and search_id != NEWEST:
        raise InputError(f"search {search_id} has ended; what it left can be seen with --watch {search_id}")
    known = _listed(found[-10:], experiment.folder)
    what = "search is running" if search_id == NEWEST and unfinished else f"search {search_id}"
    raise InputError(
        f"no {what} in {experiment.folder} (there: {known}); storage.path and name must be those it was started with"
    )


def find_in_folder(folder: str | Path, search_id: str = NEWEST, *, unfinished: bool = False) -> SearchManifest:
    """As find_search, by the folder of the experiment, STORAGE/NAME, in place of the experiment."""
    where = folder_at(str(folder))
    found = searches_in(where)
    candidates = [manifest for manifest in _named(found, search_id) if not (unfinished and manifest.finished)]
    if not candidates:
        what = "such interrupted search" if unfinished else f"search {search_id}"
        raise InputError(f"no {what} in {folder} (there: {_listed(found, where)}); a folder is named STORAGE/NAME")
    experiment = candidates[-1].experiment
    if str(experiment.folder) != str(where):
        raise InputError(
            f"{folder}: its searches were started with storage.path={experiment.storage.path}; work in the directory that"
            " this is relative to, or give the experiment in place of its folder"
        )
    return candidates[-1]


def find_interrupted(experiment: ExperimentSpec, search_id: str) -> SearchManifest:
    """The unfinished search of that id, which must be of the same experiment; only `tracking` may have changed.

    Raises InputError if there is none, or if it cannot go on.
    """
    found = searches_in(experiment.folder)
    wanted = _named(found, search_id)
    if not wanted:
        there = _listed(found, experiment.folder)
        raise InputError(
            f"--resume {search_id}: no search of this id has begun in {experiment.folder} (there: {there}); without an id,"
            " the command goes on with what is unfinished, or begins"
        )
    manifest = wanted[-1]
    if manifest.finished:
        there = _listed(found, experiment.folder)
        raise InputError(
            f"--resume {search_id}: that search has ended (there: {there}); without --resume, another one begins"
        )
    if manifest.layout != LAYOUT:
        raise InputError(
            f"--resume {manifest.search_id}: it was begun by another version of Turnwise, which kept its state otherwise; go"
            " on with that version, or begin another search with --new (its trials and checkpoints stay)"
        )
    if changes := differences(manifest.experiment, experiment):
        raise InputError(
            f"--resume {manifest.search_id}: it was started with another experiment; set these back, or begin another"
            " search with --new\n" + "\n".join(f"  {change}" for change in changes)
        )
    return manifest


def differences(began: ExperimentSpec, now: ExperimentSpec) -> list[str]:
    """`path: was X, is Y` for each leaf in which they differ; defaults of `trials` count as written.

    Tracking aside, the disk budget, and where data is prepared: these may change while a search is unfinished.
    """
    before, after = (
        {
            **leaves(spec.model_dump(mode="json", exclude=MAY_CHANGE)),
            "search.trials": num_trials(spec),
        }
        for spec in (began, now)
    )
    paths = sorted(before.keys() | after.keys())
    return [
        f"{path}: was {before.get(path)!r}, is {after.get(path)!r}"
        for path in paths
        if before.get(path) != after.get(path)
    ]


def _named(manifests: Sequence[SearchManifest], search_id: str) -> list[SearchManifest]:
    """All that the id may mean, the likeliest last."""
    return [manifest for manifest in manifests if search_id in (NEWEST, manifest.search_id)]


def _listed(manifests: Sequence[SearchManifest], folder: Folder) -> str:
    """The searches by their ids, and those that cannot be read with the reason."""
    known = [f"{manifest.search_id}{' (ended)' * manifest.finished}" for manifest in manifests]
    unreadable = [f"{name}, which cannot be read: {reason}" for name, reason in unreadable_searches(folder).items()]
    return ", ".join([*known, *unreadable]) or "none"


def leaves(tree: object, path: str = "") -> dict[str, object]:
    """Returns the values of nested mappings by dotted path."""
    if not isinstance(tree, dict):
        return {path: tree}
    return {
        leaf: value
        for key, child in tree.items()
        for leaf, value in leaves(child, f"{path}.{key}" if path else key).items()
    }
