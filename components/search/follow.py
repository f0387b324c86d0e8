"""Follows a search that runs elsewhere by reading its storage. It needs no reply from the driver and takes no lock."""

from __future__ import annotations

import time
from dataclasses import dataclass

from components.experiment.space import num_trials
from components.experiment.spec import ExperimentSpec
from components.records.driver_presence import SILENT_SECONDS, DriverHeartbeat
from components.records.histories import TrialHistories
from components.records.journal import Journal
from components.records.manifest import SearchManifest
from components.records.outcome import Outcome
from components.reports.search_state import SearchSnapshot, SearchState
from components.storage.foreign_files import explain_foreign
from components.storage.free_room import lack_of_room
from components.storage.open_folder import folder_at


@dataclass(frozen=True, kw_only=True)
class SearchStatus:
    """The state of a search, and a sentence about it. `outcome` is what its last driver came to, if that has ended."""

    state: SearchState
    sentence: str
    outcome: str | None = None


class FollowedSearch:
    """A search's folder, read again and again. `histories` is the state of its trials at the last `poll`."""

    def __init__(self, experiment: ExperimentSpec, manifest: SearchManifest) -> None:
        self.folder, self.manifest = experiment.folder / manifest.search_id, manifest
        self.planned, self.budget = num_trials(manifest.experiment), _budget(manifest)
        self.metrics = manifest.experiment.search.metrics
        self._journal = Journal(self.folder)
        events = self._journal.read()
        with explain_foreign(self._journal.place, "no journal of a search"):
            self.histories, self._events = TrialHistories(events), len(events)
        self._heartbeat, self._checkpoint_bytes = 0.0, 0
        self._heard = time.monotonic()

    def poll(self) -> None:
        """Records the events that are new; subscribers of `histories` get them."""
        events = self._journal.read(after=self._events)
        self._events += len(events)
        for event in events:
            self.histories.record(event)

    def headline(self) -> str:
        heartbeat = DriverHeartbeat.read(self.folder)
        links = [f"{name} {link}" for name, link in heartbeat.links.items()] if heartbeat else []
        return ", ".join([f"search {self.manifest.search_id} in {self.folder}", *links])

    def remark(self) -> str:
        """What a person should know, as of the last `status`; mostly nothing. By the disk as this machine sees it."""
        return lack_of_room(self.folder, self._checkpoint_bytes)

    def snapshot(self) -> SearchSnapshot:
        return SearchSnapshot.of(
            self.manifest, DriverHeartbeat.read(self.folder), self.histories, self.planned, self.budget
        )

    def status(self) -> SearchStatus:
        """A driver is silent once its heartbeat has not changed for SILENT_SECONDS of this machine's clock."""
        heartbeat, resume = DriverHeartbeat.read(self.folder), f"go on with --resume {self.manifest.search_id}"
        if SearchManifest.read(self.folder).finished:
            outcome = (heartbeat and heartbeat.outcome) or Outcome.FINISHED.value
            sentence = f"search {self.manifest.search_id} has ended: {outcome}"
            return SearchStatus(state=SearchState.ENDED, sentence=sentence, outcome=outcome)
        if heartbeat is not None and heartbeat.outcome is not None:
            sentence = f"its driver on {heartbeat.host} has ended: {heartbeat.outcome}; {resume}"
            return SearchStatus(state=SearchState.INTERRUPTED, sentence=sentence, outcome=heartbeat.outcome)
        if heartbeat is not None:
            self._checkpoint_bytes = heartbeat.checkpoint_bytes
        if heartbeat is not None and heartbeat.last_beat != self._heartbeat:
            self._heartbeat, self._heard = heartbeat.last_beat, time.monotonic()
        if time.monotonic() - self._heard < SILENT_SECONDS:
            return SearchStatus(state=SearchState.RUNNING, sentence="the search goes on")
        driver = f"its driver, process {heartbeat.pid} on {heartbeat.host}," if heartbeat else "its driver"
        sentence = f"{driver} has given no sign for {SILENT_SECONDS:.0f} seconds; if it is dead, {resume}"
        return SearchStatus(state=SearchState.SILENT, sentence=sentence)


def _budget(manifest: SearchManifest) -> int:
    """The budget of each trial, in target tokens."""
    if manifest.budget is not None:
        return manifest.budget
    from components.data.prepare import PreparedDataset  # seconds of torch, for manifests that do not have the budget

    targets = PreparedDataset.open(folder_at(manifest.prepared)).train.total_targets
    return manifest.experiment.trial.budget.in_target_tokens(targets)
