"""Decides whether a command begins a new search or goes on with an unfinished one, so that any platform's retry works."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from components.errors import InputError
from components.experiment.space import num_trials
from components.experiment.spec import ExperimentSpec
from components.records.events import TrialState, num_clones, replay
from components.records.journal import Journal
from components.records.manifest import LAYOUT, SearchManifest, searches_in
from components.records.on_message import OnMessage, ignore_message
from components.search.find import NEWEST, differences, find_interrupted
from components.search.search_lock import SearchLock
from components.storage.folder import Folder


@dataclass(frozen=True, kw_only=True)
class ChosenSearch:
    """`manifest` is of the search to go on with, None for a new one; `lock` keeps others out, and must be closed.

    `keeps_data`: it goes on with the data that it began with, whatever the files hold now.
    """

    lock: SearchLock
    manifest: SearchManifest | None = None
    keeps_data: bool = False


def choose_search(
    experiment: ExperimentSpec,
    *,
    resume: str | None = None,
    new: bool = False,
    on_message: OnMessage = ignore_message,
) -> ChosenSearch:
    """The search that a command means.

    Args:
        resume: the id of an unfinished search, or NEWEST: the newest unfinished one if there is one.
        new: begin a new search, whatever there is. Without either, the newest search of this experiment goes on if it is
            unfinished; else a new one begins.

    Raises:
        InputError: the search is running; or the newest one is unfinished and was begun with another experiment; or there
            is no search of that id.
    """
    if new and resume is not None:
        raise InputError("a search is either new or resumed: give one of --new (new=True) and --resume (resume=)")
    lock = SearchLock(experiment.folder)
    if new:
        return ChosenSearch(lock=lock)
    try:
        if resume in (None, NEWEST):
            lock.begin_choice()
        while (manifest := _meant(experiment, resume, on_message)) is not None:
            folder = experiment.folder / manifest.search_id
            lock.take(folder)
            if not SearchManifest.read(folder).finished:
                break
            lock.leave()  # its driver has ended it between the look and the lock: look again
    except BaseException:
        lock.close()
        raise
    return ChosenSearch(lock=lock, manifest=manifest, keeps_data=resume is not None)


def how_far(folder: Folder, manifest: SearchManifest) -> str:
    """Says how far a search has come, for people."""
    histories = replay(Journal(folder).read()).values()
    planned = num_trials(manifest.experiment) + num_clones(histories)
    ended = sum(history.state is not TrialState.RUNNING for history in histories)
    return f"{ended} of {planned} trials have ended, {len(histories) - ended} are under way"


def _meant(experiment: ExperimentSpec, resume: str | None, on_message: OnMessage) -> SearchManifest | None:
    """The search to go on with, if any. --resume also goes on with one that a newer search has left behind."""
    if resume not in (None, NEWEST):
        return find_interrupted(experiment, str(resume))
    explicit = resume is not None
    found = searches_in(experiment.folder)
    equal = [manifest for manifest in found if not differences(manifest.experiment, experiment)]
    mine = [manifest for manifest in equal if not manifest.finished]
    if mine and (explicit or mine[-1] is equal[-1]):
        *older, newest = mine
        if newest.layout == LAYOUT:
            _mention(older, on_message)
            return newest
        on_message(
            f"search {newest.search_id} is unfinished, but another version of Turnwise began it and kept its state"
            " otherwise: a new search begins. What it has trained stays, and that version can go on with it"
        )
        return None
    if found and not found[-1].finished and found[-1] not in equal:
        _refuse_changes(experiment, found[-1])
    _mention(mine, on_message)
    if explicit:
        on_message(f"--resume: there is nothing to go on with in {experiment.folder} yet, so a new search begins")
    return None


def _refuse_changes(experiment: ExperimentSpec, manifest: SearchManifest) -> None:
    """Raises InputError. Nothing is lost where no trial has begun, or where this version cannot go on anyway."""
    if manifest.layout != LAYOUT or not Journal(experiment.folder / manifest.search_id).read():
        return
    changes = "\n".join(f"  {change}" for change in differences(manifest.experiment, experiment))
    raise InputError(
        f"search {manifest.search_id} is unfinished, and was begun with another experiment:\n{changes}\n"
        "Set these back to go on with it, or begin another search with --new; what it has trained stays"
    )


def _mention(manifests: Sequence[SearchManifest], on_message: OnMessage) -> None:
    for manifest in manifests:
        if manifest.layout == LAYOUT:
            search_id = manifest.search_id
            on_message(f"search {search_id} is unfinished, too; --resume {search_id} goes on with that one")
