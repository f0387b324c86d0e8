"""The live view of a search that runs elsewhere, from what it leaves on its storage. It asks nobody and locks nothing."""

from __future__ import annotations

import time

from components.experiment.space import num_trials
from components.experiment.spec import ExperimentSpec
from components.records.events import TrialEvent, replay
from components.records.heartbeat import SILENT_SECONDS, DriverHeartbeat
from components.records.journal import Journal
from components.records.manifest import SearchManifest
from components.reports.leaderboard import leaderboard, ranked
from components.reports.live_view import LiveView
from components.reports.search_state import SearchState
from components.storage.open import folder_at
from workflows.cli import Exit, exit_on_error, make_console
from workflows.searches import find_search

POLL_SECONDS = 1.0


def watch(experiment: ExperimentSpec, search_id: str, *, as_json: bool) -> Exit:
    """Until the search ends or its driver is gone; Ctrl-C ends the view only. `as_json`: the present state, once."""
    with exit_on_error():
        seen = Seen(experiment, find_search(experiment, search_id))
    if as_json:
        print(seen.state().model_dump_json())
        return Exit.DONE
    console = make_console()
    console.print(seen.headline(), soft_wrap=True)
    live = LiveView(
        console, planned=seen.planned, budget=seen.budget, known=replay(seen.new_records()), began=seen.manifest.created
    )
    try:
        with live:
            while (over := seen.over()) is None:
                time.sleep(POLL_SECONDS)
                for record in seen.new_records():
                    live.show(record)
    except KeyboardInterrupt:
        over = Exit.DONE, "the search goes on"
    console.print(leaderboard(ranked(live.histories.values()), budget=seen.budget))
    status, why = over
    console.print(why, soft_wrap=True)
    return status


class Seen:
    """A search's folder, read again and again."""

    def __init__(self, experiment: ExperimentSpec, manifest: SearchManifest) -> None:
        self.folder, self.manifest = experiment.folder / manifest.search_id, manifest
        self.planned, self.budget = num_trials(manifest.experiment), _budget(manifest)
        self._journal, self._records = Journal(self.folder), 0
        self._beat, self._heard = 0.0, time.monotonic()

    def new_records(self) -> list[TrialEvent]:
        found = self._journal.read(after=self._records)
        self._records += len(found)
        return found

    def headline(self) -> str:
        sign = DriverHeartbeat.read(self.folder)
        links = [f"{name} {link}" for name, link in sign.links.items()] if sign else []
        return ", ".join([f"search {self.manifest.search_id} in {self.folder}", *links])

    def state(self) -> SearchState:
        return SearchState.of(
            self.manifest, DriverHeartbeat.read(self.folder), replay(self.new_records()), self.planned
        )

    def over(self) -> tuple[Exit, str] | None:
        """Why there is nothing more to see, if so."""
        sign, again = DriverHeartbeat.read(self.folder), f"go on with --resume {self.manifest.search_id}"
        if SearchManifest.read(self.folder).finished:
            return Exit.DONE, f"search {self.manifest.search_id} has ended: {sign.outcome if sign else 'finished'}"
        if sign is not None and sign.outcome is not None:
            return Exit.NO_REPLY, f"its driver on {sign.host} has ended: {sign.outcome}; {again}"
        if sign is not None and sign.beat != self._beat:
            self._beat, self._heard = sign.beat, time.monotonic()
        if time.monotonic() - self._heard < SILENT_SECONDS:
            return None
        who = f"its driver, process {sign.pid} on {sign.host}," if sign else "its driver"
        return Exit.NO_REPLY, f"{who} has given no sign for {SILENT_SECONDS:.0f} seconds; if it is dead, {again}"


def _budget(manifest: SearchManifest) -> int:
    """Of each trial, in target tokens."""
    if manifest.budget is not None:
        return manifest.budget
    from components.data.prepare import PreparedDataset  # seconds of torch, for searches of old only

    targets = PreparedDataset.open(folder_at(manifest.prepared)).train.total_targets
    return manifest.experiment.trial.budget.in_target_tokens(targets)
