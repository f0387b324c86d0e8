"""Which checkpoints of each trial are kept, and who is told of its events."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from components.cluster.driver.trial_control import controller_of
from components.cluster.slots.context import SearchContext
from components.records.events import (
    Progress,
    TrialEvent,
    TrialHistory,
    best_report,
)
from components.storage.open import folder_at
from components.training.checkpoint import OPTIMIZER_FILES
from components.training.checkpoint_names import at_report

Emit = Callable[[TrialEvent], None]


class CheckpointRetention:
    """Who is told in this process, and which checkpoints of each trial still stand."""

    def __init__(self, context: SearchContext, emit: Emit, histories: Mapping[str, TrialHistory]) -> None:
        self.context, self.emit = context, emit
        self.standing = {trial_id: _standing(history) for trial_id, history in histories.items()}
        self._ended: set[str] = set()

    def best(self, trial_id: str) -> Progress | None:
        return best_report(self.standing.get(trial_id, []))

    def collect(self, trial_id: str, latest: Progress) -> None:
        """Keeps a running trial's best checkpoint and its latest one; what lies before its latest report is no use.

        Where checkpoints lag the latest one may not have arrived, so the one before is as good as the latest.
        """
        if latest.checkpoint is None:
            return
        before = [report for report in self.standing.get(trial_id, []) if report.step != latest.step]
        self.standing[trial_id] = reports = [*before, latest]
        trial = self.context.checkpoints / trial_id
        settled = trial.newest_complete([*sorted(before, key=lambda report: report.step), latest])
        if settled is None:
            return
        for name in trial.list_names():
            if "+" in name and name < at_report(settled.step):
                (trial / name).delete()
        kept = (self.best(trial_id), settled, latest)
        pinned = controller_of(self.context.search_id).pinned
        for report in reports:
            if report not in kept and report.checkpoint not in pinned:
                folder_at(str(report.checkpoint)).delete()
        self.standing[trial_id] = [report for report in reports if report in kept]

    def collect_ended(self, trial_id: str) -> None:
        """Keeps the weights of an ended trial's best checkpoint, and what clones need; it will not be resumed."""
        self._ended.add(trial_id)
        best = self.best(trial_id)
        kept = controller_of(self.context.search_id).pinned | ({best.checkpoint} if best else set())
        trial = self.context.checkpoints / trial_id
        for folder in [trial / name for name in trial.list_names()]:  # those that were never finished are among them
            if str(folder) not in kept:
                folder.delete()
            else:
                folder.delete_matching(OPTIMIZER_FILES)

    def collect_late(self) -> None:
        """Once no worker writes any more: what arrived after its trial had ended."""
        if not self.context.folder.complete_on_commit:
            for trial_id in self._ended:
                self.collect_ended(trial_id)


def _standing(history: TrialHistory) -> list[Progress]:
    """The reports whose checkpoints stand, or will when the trial, going on before them, comes to them again."""
    reports = [report for report in history.reports if report.checkpoint]
    whole = [report for report in reports if folder_at(str(report.checkpoint)).is_complete()]
    newest = whole[-1].step if whole else 0
    goes_on = history.state == "running" and not all(
        folder_at(str(report.checkpoint)).complete_on_commit for report in reports
    )
    return [*whole, *(report for report in reports if goes_on and report.step > newest)]


# Tune pickles its callbacks into the experiment's state; what listens in this process must stay out of that.
_listeners: dict[str, CheckpointRetention] = {}


def listen(context: SearchContext, emit: Emit, histories: Mapping[str, TrialHistory]) -> CheckpointRetention:
    _listeners[context.search_id] = CheckpointRetention(context, emit, histories)
    return _listeners[context.search_id]
