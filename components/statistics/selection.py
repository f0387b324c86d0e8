"""What a candidate was chosen from, on the conversations that it is judged by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import BaseModel, ConfigDict, Field


class ChosenFrom(BaseModel):
    """How many evaluations a candidate is the best of, for which its interval is corrected."""

    model_config = ConfigDict(frozen=True)

    evaluations: int
    trials: int
    missing: int = Field(0, description="Evaluations of which no scores by conversation were kept.")

    def sentence(self) -> str:
        trials = f"{self.trials} trial{'s' if self.trials > 1 else ''}"
        best = f"the best of {self.evaluations} evaluations of {trials}, corrected for that choice"
        if not self.missing:
            return best
        return (
            f"{best} by Bonferroni's inequality, which asks for more than needed: {self.missing} of them kept no scores by"
            " conversation"
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class Selection:
    """The evaluations that the candidate was chosen from, its own among them.

    `sums_CN` are the scores of each on each conversation, in the split's order, summed over what the weights count.
    """

    sums_CN: np.ndarray
    chosen_from: ChosenFrom

    @property
    def tests(self) -> int:
        """By how many Bonferroni's inequality corrects: 1 where all scores are there, so that better is possible."""
        return self.chosen_from.evaluations if self.chosen_from.missing else 1

    def on(self, conversations: Sequence[int]) -> Selection:
        return Selection(sums_CN=self.sums_CN[:, list(conversations)], chosen_from=self.chosen_from)
