"""What the steps of a search hand on: how its trials went, what the search came to, and the whole result."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from rich.console import Group
from rich.text import Text

from components.experiment.spec import EVAL_LOSS
from components.notebook import html_of
from components.records.events import TrialHistory, TrialState, num_clones
from components.records.outcome import Outcome
from components.records.unfinished_trials import lost_trials
from components.registry.result import RegistryResult
from components.reports.finalists import FinalistsVerdict
from components.reports.leaderboard import leaderboard, ranked
from components.reports.search_summary import SearchSummary
from components.visible import visible

TERMINATED = "SIGTERM"  # a stop for this reason has an outcome, and an exit status, of its own
NUMBER = re.compile(r"\d+(\.\d+)?(e[+-]?\d+)?|\b(nan|inf)\b")
MOST_REASONS = 3  # in a sentence


@dataclass(frozen=True, kw_only=True)
class TrialsResult:
    """How the trials of a search went.

    `undelivered` counts the events that MLflow has not taken. `stop_reason` is why it was stopped early, e.g. SIGTERM.
    `hopeless` is why no trial can succeed on these machines. `limit` is what of search.budget was reached.
    """

    histories: Mapping[str, TrialHistory]
    undelivered: int
    stop_reason: str | None = None
    hopeless: str | None = None
    limit: str | None = None


@dataclass(frozen=True, kw_only=True)
class SearchOutcome:
    """What a search came to, in a word and in a sentence. `best` is the trial that leads, if any trial succeeded."""

    outcome: Outcome
    message: str
    best: TrialHistory | None = None
    registry: RegistryResult | None = None
    finalists: FinalistsVerdict | None = None


@dataclass(frozen=True, kw_only=True)
class SearchResult(SearchOutcome):
    """The whole result, as plain data.

    `report` is the URI of the page about the search. `budget`, of every trial, is in target tokens.
    """

    summary: SearchSummary
    histories: Mapping[str, TrialHistory]
    budget: int
    report: str

    @property
    def search_id(self) -> str:
        return self.summary.search_id

    def _repr_html_(self) -> str:
        table = leaderboard(ranked(self.histories.values()), budget=self.budget, metrics=self.summary.metrics)
        return html_of(Group(Text(visible(self.message), style="bold"), table))


def resume_command(command: str) -> str:
    """How to go on with a search that was started by `command`: the same again. If it is empty, by a call of run()."""
    if not command:
        return "run(experiment)"
    return " ".join(word for word in command.split(" ") if word != "--new")  # which would begin yet another one


def outcome_of_unfinished(trials: TrialsResult, *, planned: int, resume: str) -> SearchOutcome | None:
    """The outcome if trials are left to run or none can succeed, else None. `planned`: trials without clones.

    Where the budget of the search ended it, trials that did not start are not left to run.
    """
    if trials.hopeless is not None:
        return SearchOutcome(outcome=Outcome.NO_TRIAL_SUCCEEDED, message=f"No trial can succeed: {trials.hopeless}")
    histories = trials.histories.values()
    ended = sum(history.state is not TrialState.RUNNING for history in histories)
    wanted = len(trials.histories) if trials.limit and trials.stop_reason is None else planned + num_clones(histories)
    unfinished = wanted - ended
    if trials.stop_reason is None and unfinished <= 0:
        return None
    return SearchOutcome(
        outcome=outcome_of_stop(trials.stop_reason),
        message=f"Interrupted with {unfinished} trials to go. Go on with: {resume}",
    )


def within_budget(outcome: SearchOutcome, trials: TrialsResult, planned: int) -> SearchOutcome:
    """Returns the outcome with what the budget of the search kept from happening, if it did. `planned`: without clones."""
    if trials.limit is None or outcome.outcome.resumable:  # its message ends with the command to go on
        return outcome
    started = sum(history.started.parent is None for history in trials.histories.values())
    said = f"{trials.limit} ended the search with {started} of {planned} trials started"
    return replace(outcome, message=f"{outcome.message} ({said})")


def outcome_of_stop(reason: str | None) -> Outcome:
    """`reason` of a StopRequest; None if the search was interrupted without one."""
    return Outcome.TERMINATED if reason == TERMINATED else Outcome.INTERRUPTED


def outcome_of_no_success(histories: Iterable[TrialHistory], resume: str) -> SearchOutcome:
    """`resume` is the command to go on: trials that were lost, for no reason of their own, can go on."""
    known = list(histories)
    reasons = _reasons(known)
    if lost := lost_trials(known):
        message = f"No trial succeeded, and {len(lost)} of {len(known)} were lost with their slots: {reasons}."
        return SearchOutcome(outcome=Outcome.LOST, message=f"{message} Go on with: {resume}")
    return SearchOutcome(outcome=Outcome.NO_TRIAL_SUCCEEDED, message=f"No trial succeeded: {reasons}")


def _reasons(histories: list[TrialHistory]) -> str:
    """E.g. `3 of 4 trials: out of memory; 1 of 4 trials: loss nan`, the most common first.

    Reasons that differ in their numbers alone are one, as the steps at which trials diverge.
    """
    kinds: dict[str, list[str]] = {}
    for history in histories:
        kinds.setdefault(NUMBER.sub("0", history.reason), []).append(history.reason)
    if len(histories) == 1:
        return histories[0].reason
    common = sorted(kinds.values(), key=len, reverse=True)
    said = [f"{len(same)} of {len(histories)} trials: {same[0]}" for same in common[:MOST_REASONS]]
    others = sum(map(len, common[MOST_REASONS:]))
    return "; ".join(said) + (f"; {others} for other reasons" if others else "")


def _in_bits(registry: RegistryResult) -> str:
    candidate, base = registry.candidate_bits_per_byte, registry.base_bits_per_byte
    return "" if candidate is None or base is None else f" ({candidate:.4f} against {base:.4f} bits per byte)"


def outcome_of_registry(registry: RegistryResult, best: TrialHistory) -> SearchOutcome:
    if registry.promoted:
        outcome = Outcome.CHAMPION
        message = (
            f"Champion: models:/{registry.name}@{registry.alias} is version {registry.version}{registry.size},"
            f" {_by_metric(registry)}{registry.judged_by} loss {registry.candidate_loss:.4f} against the base model's"
            f" {registry.base_loss:.4f}{_in_bits(registry)}"
        )
    else:
        outcome = Outcome.NOT_PROMOTED
        message = f"{registry.name} version {registry.version}{registry.size} is a challenger only: {registry.reason}"
    return SearchOutcome(outcome=outcome, message=message, best=best, registry=registry)


def _by_metric(registry: RegistryResult) -> str:
    """What the gate judged by, where that was not the loss."""
    found = registry.verdicts[0] if registry.verdicts else None
    if found is None or found.metric == EVAL_LOSS:
        return ""
    return f"{found.metric} {found.candidate_loss:.4f} against the base model's {found.other_loss:.4f}, "
