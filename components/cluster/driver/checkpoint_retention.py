"""Which checkpoints of each trial are kept."""

from __future__ import annotations

from collections.abc import Mapping

from components.cluster.slots.search_context import SearchContext
from components.records.events import (
    Progress,
    TrialEnded,
    TrialEvent,
    TrialHistory,
    TrialProgressed,
    TrialState,
    best_report,
)
from components.records.unfinished_trials import has_succeeded, is_lost, lost_trials
from components.storage.open_folder import folder_at
from components.training.checkpoint import OPTIMIZER_FILES
from components.training.checkpoint_names import at_report


class CheckpointRetention:
    """Deletes checkpoints that no trial needs any more, by the histories of the trials.

    All it keeps itself is which checkpoints do not exist: deleted here, or lost with an earlier driver.
    """

    def __init__(self, context: SearchContext, histories: Mapping[str, TrialHistory]) -> None:
        self.context, self.histories = context, histories
        self._absent = {checkpoint for history in histories.values() for checkpoint in _absent(history)}
        self._ended: set[str] = set()
        self._clean_up()

    def update(self, event: TrialEvent) -> None:
        """Called with each event, once the histories and the journal have it."""
        if isinstance(event, TrialProgressed) and event.progress.checkpoint is not None:
            self._absent.discard(event.progress.checkpoint)
            self._prune_running(event.trial_id, event.progress)
        elif isinstance(event, TrialEnded):
            self._ended.add(event.trial_id)
            not_needed = {event.trial_id}
            if has_succeeded(self.histories[event.trial_id]):  # so none of the lost ones goes on
                not_needed |= {history.trial_id for history in self.histories.values() if is_lost(history)}
            for trial_id in not_needed - self._may_go_on():
                self._prune_ended(trial_id)

    def prune_late(self) -> None:
        """Deletes what was uploaded after its trial had ended. Called once no worker writes any more."""
        if not self.context.folder.complete_on_commit:
            for trial_id in self._ended - self._may_go_on():
                self._prune_ended(trial_id)

    def _may_go_on(self) -> set[str]:
        """The trials that were lost, and with which a resumed search may go on."""
        return {history.trial_id for history in lost_trials(self.histories.values())}

    def _clean_up(self) -> None:
        """Finishes what an earlier driver was about to delete when it was killed, and what its workers were writing."""
        for trial_id in self.histories:
            (self.context.checkpoints / trial_id).delete_unfinished()
        going_on = self._may_go_on()
        ended = [each for each in self.histories.values() if each.ended_at and each.trial_id not in going_on]
        if ended:
            self._prune_ended(max(ended, key=lambda history: history.ended_at or 0.0).trial_id)

    def _prune_running(self, trial_id: str, latest: Progress) -> None:
        """Keeps the best checkpoint and the latest complete one. Interim checkpoints before that are deleted.

        Where uploads end after their reports, the latest checkpoint may not be complete, but the one before it is.
        """
        reports = self._reports(trial_id)
        before = [report for report in reports if report.step != latest.step]
        trial = self.context.checkpoints / trial_id
        if (complete := trial.newest_complete([*before, latest])) is None:
            return
        for name in trial.list_names():
            if "+" in name and name < at_report(complete.step):
                (trial / name).delete()
        needed = {str(report.checkpoint) for report in (best_report(reports), complete, latest) if report is not None}
        for checkpoint in {str(report.checkpoint) for report in reports} - needed - self._pinned():
            folder_at(checkpoint).delete()
            self._absent.add(checkpoint)

    def _prune_ended(self, trial_id: str) -> None:
        """Keeps the weights of the best checkpoint, and of those that clones begin with: the trial will not be resumed."""
        best = best_report(self._reports(trial_id))
        needed = self._pinned() | ({best.checkpoint} if best else set())
        trial = self.context.checkpoints / trial_id
        for folder in [trial / name for name in trial.list_names()]:  # those that were never completed are among them
            if str(folder) in needed:
                folder.delete_matching(OPTIMIZER_FILES)
            else:
                folder.delete()

    def _reports(self, trial_id: str) -> list[Progress]:
        """The trial's reports whose checkpoint exists."""
        reports = self.histories[trial_id].reports
        return [report for report in reports if report.checkpoint and report.checkpoint not in self._absent]

    def _pinned(self) -> set[str]:
        """Checkpoints whose weights a clone begins with: they stay, whatever becomes of their own trial."""
        clones = (clone for history in self.histories.values() for clone in history.clones)
        return {clone.warm_from for clone in clones if clone.warm_from is not None}


def _absent(history: TrialHistory) -> set[str]:
    """The checkpoints of a trial's reports that do not exist, and will not when a resumed trial has repeated its steps."""
    reports = [report for report in history.reports if report.checkpoint]
    complete = [report for report in reports if folder_at(str(report.checkpoint)).is_complete()]
    newest = complete[-1].step if complete else 0
    repeats = history.state is TrialState.RUNNING or is_lost(history)
    return {
        str(report.checkpoint)
        for report in reports
        if report not in complete and not (repeats and report.step > newest)
    }
