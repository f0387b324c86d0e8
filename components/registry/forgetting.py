"""What a candidate has forgotten: its loss on general text beside the base's and the incumbent's, paired by passage."""

from __future__ import annotations

import math

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from components.records.general_scores import GeneralScores
from components.statistics.paired_interval import PairedDifferences, paired_interval

LEAST_PASSAGES = 2


class GeneralChange(BaseModel):
    """`change` is the candidate's loss minus the other's: above 0 the candidate is worse on general text.

    `low` and `high` are the confidence interval's ends, None where the passages set no bound.
    """

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="constants")

    other: str = Field(description="base or incumbent")
    candidate_loss: float
    other_loss: float
    change: float
    low: float | None
    high: float | None
    confidence: float
    passages: int
    unit: str = Field("nats per token", description="Bits per byte where the two have other tokens.")

    def sentence(self) -> str:
        ends = ", ".join("unbounded" if end is None else f"{end:+.3f}" for end in (self.low, self.high))
        return (
            f"general text: {self.candidate_loss:.3f} {self.unit} against the {self.other}'s {self.other_loss:.3f}:"
            f" {self.change:+.3f} [{ends}] at {self.confidence:.0%}"
        )


def compare_general(
    other: str, candidate: GeneralScores | None, scores: GeneralScores | None, *, confidence: float, seed: int = 0
) -> GeneralChange | None:
    """Returns None if one of the two was not scored, or no passage can be compared."""
    if candidate is None or scores is None or len(candidate.sums) != len(scores.sums):
        return None
    one, another = np.asarray(candidate.sums), np.asarray(scores.sums)
    if candidate.tokens == scores.tokens:
        unit, weights = "nats per token", np.asarray(candidate.num_targets, dtype=float)
    else:
        whole = np.minimum(candidate.num_bytes, scores.num_bytes) > 0
        unit, weights = "bits per byte", np.asarray(candidate.num_bytes, dtype=float)[whole]
        one, another = one[whole] / math.log(2), another[whole] / math.log(2)
    if len(weights) < LEAST_PASSAGES:
        return None
    # Of what the candidate is better by, as the gate's and the vetoes' is: which end is drawn wider depends on the sign.
    least, most = paired_interval(PairedDifferences((another - one)[:, None], weights), confidence, seed=seed)
    low, high = 0.0 - most, 0.0 - least  # not -most, which is -0.0 where nothing has changed
    return GeneralChange(
        other=other,
        candidate_loss=float(one.sum() / weights.sum()),
        other_loss=float(another.sum() / weights.sum()),
        change=float((one.sum() - another.sum()) / weights.sum()),
        low=low if math.isfinite(low) else None,
        high=high if math.isfinite(high) else None,
        confidence=confidence,
        passages=len(weights),
        unit=unit,
    )
