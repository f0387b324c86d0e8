"""`search.scheduler` by name, and `search.plateau`: which trials end before their budget is spent."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from components.experiment.spec.section import Amount, Evaluations, Spec, Tokens, Trials

SHARE_OF_FIRST_RUNG = 1 / 16
Brackets = Annotated[
    Literal["per_branch", "shared"],
    Field(description="`per_branch`: a trial competes with trials of its own branch; `shared`: with all."),
]


class _WithRungs(Spec):
    """Rung k is at first_rung x reduction_factor^k target tokens."""

    first_rung_target_tokens: Tokens | None = Field(
        None, description="By default 1/16 of a trial's budget, or the end of the longest warm-up if that comes later."
    )
    reduction_factor: Annotated[Trials, Field(ge=2)] = Field(4, description="One in this many trials passes each rung.")
    brackets: Brackets = "per_branch"

    def rungs(self, budget: int, warmup_fraction: float = 0.0) -> tuple[int, ...]:
        """Returns the rungs below a trial's budget, ascending; rungs and budget are in target tokens.

        Args:
            warmup_fraction: the largest that a trial of the search may have. A learning rate that still rises says little
                about where a trial will end.
        """
        first = self.first_rung_target_tokens or max(SHARE_OF_FIRST_RUNG, warmup_fraction) * budget
        # Not multiples of a first one that is rounded: a quarter of the budget is an evaluation and a rung, in one report.
        milestones = (math.ceil(first * self.reduction_factor**k - 1e-9) for k in itertools.count())
        return tuple(dict.fromkeys(itertools.takewhile(lambda milestone: milestone < budget, milestones)))


class AshaSpec(_WithRungs):
    """Asynchronous successive halving: at each rung a trial goes on if it is among the best 1/reduction_factor so far."""

    name: Literal["asha"] = "asha"


class HyperbandSpec(_WithRungs):
    """Asynchronous Hyperband: ASHA with several first rungs, for losses that cross late.

    Some trials are first judged at the first rung, fewer at the second, and so on; a few never. Each competes with those
    that are first judged where it is.
    """

    name: Literal["hyperband"] = "hyperband"

    def skips(self, branches: Sequence[str], rungs: int) -> tuple[int, ...]:
        """Returns how many of the first rungs each trial skips, in Hyperband's shares, which cost about the same.

        `branches` are those of the trials, in order: each has its shares.
        """
        shares = [math.ceil((rungs + 1) / (left + 1) * self.reduction_factor**left) for left in range(rungs, -1, -1)]
        given: dict[str, list[int]] = {}
        skips = []
        for branch in branches:
            counts = given.setdefault(branch, [0] * len(shares))
            skip = min(range(len(shares)), key=lambda each: ((counts[each] + 1) / shares[each], each))
            counts[skip] += 1
            skips.append(skip)
        return tuple(skips)


class MedianSpec(Spec):
    """Median stopping: a trial ends once its best so far is worse than the median of the others' means up to there."""

    name: Literal["median"] = "median"
    grace_target_tokens: Tokens | None = Field(
        None, description="No trial is stopped before it. By default the first evaluation after the longest warm-up."
    )
    min_trials: Annotated[Trials, Field(ge=2)] = Field(3, description="So many others must have come as far.")
    brackets: Brackets = "per_branch"


class NoSchedulerSpec(Spec):
    """Every trial spends its whole budget."""

    name: Literal["none"] = "none"


Scheduler = Annotated[AshaSpec | HyperbandSpec | MedianSpec | NoSchedulerSpec, Field(discriminator="name")]


def written_in_tokens(scheduler: Scheduler) -> dict[str, int]:
    """Returns the fields of a scheduler that count target tokens, where the file gives them."""
    counts = ("first_rung_target_tokens", "grace_target_tokens")
    return {name: tokens for name in counts if (tokens := getattr(scheduler, name, None)) is not None}


class PlateauSpec(Spec):
    """Ends a trial that no longer improves. What it has reported still counts for the scheduler."""

    evaluations: Evaluations = Field(
        3, description="So many regular evaluations in a row without an improvement end a trial."
    )
    min_improvement: Amount = Field(0.001, description="In the unit of the search's metric: nats for eval_loss.")
