"""Is one model truly better than another on the held-out conversations, or is it luck? No MLflow in here."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from components.tracking.probes import Probe

RESAMPLES = 10_000
MOST_DRAWN_AT_ONCE = 2**22  # conversations; 32 MiB of indices


class Verdict(BaseModel):
    """`difference` is the other's loss minus the candidate's, in nats per target: above 0 the candidate is better."""

    model_config = ConfigDict(frozen=True)

    other: str = Field(description="base or incumbent")
    candidate_loss: float
    other_loss: float
    difference: float
    low: float = Field(description="Lower end of the confidence interval of the difference.")
    high: float
    confidence: float
    beats: bool

    def sentence(self) -> str:
        how = "beats" if self.beats else "does not beat"
        return (
            f"{how} the {self.other} on held-out conversations: {self.candidate_loss:.4f} against {self.other_loss:.4f} nats"
            f" per target, difference {self.difference:+.4f} [{self.low:+.4f}, {self.high:+.4f}] at {self.confidence:.0%}"
        )


class RegistryResult(BaseModel):
    """What became of a candidate. `promoted`: it holds the alias now."""

    model_config = ConfigDict(frozen=True)

    name: str
    version: str
    alias: str
    promoted: bool
    reason: str
    verdicts: tuple[Verdict, ...]
    probes: tuple[Probe, ...]
    base_answers: tuple[str, ...]
    candidate_answers: tuple[str, ...]
    base_loss: float
    candidate_loss: float


def judge(
    other: str,
    candidate_sums: Sequence[float],
    other_sums: Sequence[float],
    num_targets: Sequence[int],
    *,
    confidence: float,
    seed: int = 0,
) -> Verdict:
    """Paired bootstrap over conversations: each resample scores both models on the same ones.

    Args:
        candidate_sums, other_sums: loss of each conversation in nats, summed over its targets.
        num_targets: targets of each conversation, the same for both models.
        confidence: the candidate beats the other if the whole two-sided interval lies above 0.
    """
    candidate, opponent, targets = (
        np.asarray(values, dtype=float) for values in (candidate_sums, other_sums, num_targets)
    )
    if not len(candidate) == len(opponent) == len(targets) > 0:
        raise ValueError(f"{len(candidate)}, {len(opponent)} and {len(targets)} conversations cannot be paired")
    differences = _resampled(opponent - candidate, targets, np.random.default_rng(seed))
    low, high = np.quantile(differences, [(1 - confidence) / 2, (1 + confidence) / 2])
    total = targets.sum()
    return Verdict(
        other=other,
        candidate_loss=float(candidate.sum() / total),
        other_loss=float(opponent.sum() / total),
        difference=float((opponent.sum() - candidate.sum()) / total),
        low=float(low),
        high=float(high),
        confidence=confidence,
        beats=bool(low > 0),
    )


def _resampled(differences: np.ndarray, targets: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """RESAMPLES times: as many conversations as there are, drawn with replacement, and their difference per target."""
    at_once = max(1, MOST_DRAWN_AT_ONCE // len(targets))
    parts = []
    for start in range(0, RESAMPLES, at_once):
        drawn = generator.integers(len(targets), size=(min(at_once, RESAMPLES - start), len(targets)))
        parts.append(differences[drawn].sum(axis=1) / targets[drawn].sum(axis=1))
    return np.concatenate(parts)
