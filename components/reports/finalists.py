"""The best of each branch, compared: is one truly better, and if not, which one is cheaper?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from components.experiment.spec import ConfirmSpec
from components.experiment.varied import hyperparameters
from components.records.evaluation_record import ConversationScores
from components.records.events import TrialHistory
from components.records.finalists import finalists, repeats_of
from components.reports.leaderboard import worker_seconds
from components.statistics.paired_bootstrap import number_needed
from components.statistics.seed_comparison import SeedComparison, SeededScores, compare_seeds

# The scores of a trial's best report on each held-out conversation; None if they were not kept.
ReadScores = Callable[[TrialHistory], ConversationScores | None]


class Finalist(BaseModel):
    """A configuration, as it did on the mean over its seeds."""

    model_config = ConfigDict(frozen=True)

    branch: str
    trial_id: str = Field(description="Of the trial that the search drew.")
    number: int
    varied: dict[str, object]
    seeds: tuple[int, ...] = Field(description="Those of its repeats; its own if it has none.")
    value: float = Field(description="The metric of the search, the mean over these seeds.")
    worker_seconds: float = Field(description="Of training with one seed, the mean.")
    trained_weights: int = Field(description="Of its method; in a search over several bases, all that are served.")
    against_best: SeedComparison | None = Field(None, description="Minus the best one's; above 0 it is worse.")

    @property
    def name(self) -> str:
        return f"{self.branch} (trial {self.number}{', ' * bool(self.varied)}{hyperparameters(self.varied)})"


class FinalistsVerdict(BaseModel):
    """`finalists` has the best of each branch, the best one first. `chosen` is the trial_id of the one to register."""

    model_config = ConfigDict(frozen=True)

    finalists: tuple[Finalist, ...]
    chosen: str
    prefer: str
    unit: str
    weights: str = Field("trained weights", description="What `trained_weights` counts.")
    enough: bool = Field(description="Whether there are conversations enough to tell a difference at all.")

    def sentences(self) -> list[str]:
        best, *others = self.finalists
        said = [self._sentence(best, other) for other in others]
        if others:
            chosen = next(finalist for finalist in self.finalists if finalist.trial_id == self.chosen)
            said.append(f"registry.prefer: {self.prefer} registers {chosen.name}")
        return said

    def _sentence(self, best: Finalist, other: Finalist) -> str:
        found = other.against_best
        if found is None:
            why = "its scores were not kept, or are of other conversations"
            return f"{other.name} cannot be compared with {best.name}: {why}"
        if not self.enough:
            few = f"{found.conversations} held-out conversations are too few to tell a difference"
            return f"{other.name} and {best.name}: {few}"
        how = "is within noise of" if found.within_noise else "is worse than"
        seeds = f"{found.seeds} seeds each" if found.seeds > 1 else "one seed each: what a seed decides is not counted"
        return (
            f"{other.name} {how} {best.name}: difference {found.difference:+.4f} ± {found.half_width:.4f} {self.unit} at"
            f" {found.confidence:.0%}, {seeds}, at {_times(other.worker_seconds, best.worker_seconds)} its"
            f" worker-seconds and {_times(other.trained_weights, best.trained_weights)} its {self.weights}"
        )


def compare_finalists(
    histories: Mapping[str, TrialHistory],
    confirm: ConfirmSpec | None,
    *,
    prefer: str,
    confidence: float,
    unit: str,
    read_scores: ReadScores,
    trained_weights: Callable[[TrialHistory], int],
    weights: str = "trained weights",
) -> FinalistsVerdict | None:
    """Returns None if no trial has a report.

    Each branch is represented by its best configuration: of those that were repeated the one with the best mean over the
    new seeds, which chose nothing; without repeats the best trial.
    """
    known = {}
    for branch, candidates in finalists(histories.values(), confirm.top if confirm else 1).items():
        entries = [_Entry(histories, finalist, read_scores) for finalist in candidates]
        known[branch] = min(entries, key=lambda entry: (not entry.repeated, entry.value))
    if not known:
        return None
    best, *others = sorted(known.values(), key=lambda entry: entry.value)
    found = [best.finalist(trained_weights(best.drawn))]
    for entry in others:
        comparison = None
        if entry.scores is not None and best.scores is not None and entry.scores.is_of(best.scores):
            comparison = compare_seeds(entry.scores, best.scores, confidence=confidence, comparisons=len(others))
        found.append(entry.finalist(trained_weights(entry.drawn), comparison))
    enough = best.scores is not None and len(best.scores.weights_C) >= number_needed(best.scores.weights_C)
    return FinalistsVerdict(
        finalists=tuple(found),
        chosen=_choose(found, prefer, enough),
        prefer=prefer,
        unit=unit,
        weights=weights,
        enough=enough,
    )


class _Entry:
    """A finalist with the runs that stand for it: its repeats, or itself."""

    def __init__(self, histories: Mapping[str, TrialHistory], drawn: TrialHistory, read_scores: ReadScores) -> None:
        repeats = repeats_of(histories, drawn)
        self.drawn, self.repeated, self.runs = drawn, bool(repeats), repeats or [drawn]
        self.scores = _seeded(self.runs, read_scores)
        self.value = float(np.mean([run.best.objective for run in self.runs if run.best]))

    def finalist(self, trained_weights: int, against_best: SeedComparison | None = None) -> Finalist:
        assert self.drawn.best is not None
        return Finalist(
            branch=self.drawn.started.branch,
            trial_id=self.drawn.trial_id,
            number=self.drawn.started.number,
            varied=self.drawn.started.varied,
            seeds=tuple(run.started.spec.seed for run in self.runs),
            value=self.drawn.best.metric.to_minimize(self.value),
            worker_seconds=float(np.mean([worker_seconds(run) for run in self.runs])),
            trained_weights=trained_weights,
            against_best=against_best,
        )


def _seeded(runs: Sequence[TrialHistory], read_scores: ReadScores) -> SeededScores | None:
    """Returns the scores of each run's best report, less being better; None if those of any run were not kept."""
    rows: list[list[float]] = []
    weights: tuple[float, ...] = ()
    for run in runs:
        scores = read_scores(run)
        if scores is None or run.best is None:
            return None
        rows.append([run.best.metric.to_minimize(value) for value in scores.sums])
        weights = scores.weights
    return SeededScores(sums_SC=np.array(rows), weights_C=np.array(weights))


def _choose(found: Sequence[Finalist], prefer: str, enough: bool) -> str:
    """The best one, or the cheapest of those that are within noise of it, which takes conversations enough to tell."""
    best, *others = found
    if prefer == "quality" or not enough:
        return best.trial_id
    near = [other for other in others if other.against_best is not None and other.against_best.within_noise]
    return min([best, *near], key=lambda finalist: (finalist.trained_weights, finalist.worker_seconds)).trial_id


def _times(one: float, other: float) -> str:
    """`1/7 of`, `80% of` or `3.2 times`."""
    if one <= 0 or other <= 0:
        return "an unknown share of"
    share = one / other
    return f"{share:.1f} times" if share >= 0.95 else f"1/{1 / share:.0f} of" if share < 0.55 else f"{share:.0%} of"
