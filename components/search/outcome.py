"""What the steps of a search hand on: how its trials went, what the search came to, and the whole result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from components.records.events import TrialHistory
from components.records.outcome import Outcome
from components.registry.result import RegistryResult
from components.reports.summary import SearchSummary


@dataclass(frozen=True, kw_only=True)
class TrialsResult:
    """How the trials of a search went.

    `undelivered` counts the events that MLflow has not taken. `stop_reason` is why it was stopped early, e.g. SIGTERM.
    `hopeless` is why no trial can succeed on these machines.
    """

    histories: Mapping[str, TrialHistory]
    undelivered: int
    stop_reason: str | None = None
    hopeless: str | None = None


@dataclass(frozen=True, kw_only=True)
class SearchOutcome:
    """What a search came to, in a word and in a sentence. `best` is the trial that leads, if any trial succeeded."""

    outcome: Outcome
    message: str
    best: TrialHistory | None = None
    registry: RegistryResult | None = None


@dataclass(frozen=True, kw_only=True)
class SearchResult(SearchOutcome):
    """The whole result, as plain data. `report` is the URI of the page about the search; `budget`, of every trial, is in
    target tokens."""

    summary: SearchSummary
    histories: Mapping[str, TrialHistory]
    budget: int
    report: str

    @property
    def search_id(self) -> str:
        return self.summary.search_id


def resume_command(command: str, search_id: str = "") -> str:
    """How a person goes on with a search that was started by `command`; without one, how a program does."""
    if not command:
        return f'run(experiment, resume="{search_id}")' if search_id else "run(experiment, resume=...)"
    return command if "--resume" in command else f"{command} --resume {search_id}".rstrip()
