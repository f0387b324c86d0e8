"""What a budget counts: target tokens or, in a search over several base models, the bytes of the targets.

Tokens of two tokenizers are no equal terms. All bases have the same training conversations, so they have the same bytes, and
a budget is the same share of them: a trial of N target tokens has spent N x (bytes of an epoch / target tokens of an epoch).
Over a whole epoch that is exact; within one it is the average of the trial's own training data.
"""

from __future__ import annotations

from dataclasses import dataclass

from components.data.prepare import PreparedDataset
from components.experiment.spec import BudgetSpec

TARGET_TOKENS, TARGET_BYTES = "target tokens", "target bytes"


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetUnits:
    """`per_epoch` is what an epoch spends, `targets_per_epoch` the target tokens in it."""

    per_epoch: int
    targets_per_epoch: int

    @classmethod
    def of(cls, dataset: PreparedDataset, *, by_bytes: bool) -> BudgetUnits:
        targets = dataset.train.total_targets
        per_epoch = int(dataset.train.target_bytes.sum()) if by_bytes else targets
        return cls(per_epoch=per_epoch, targets_per_epoch=targets)

    def spent(self, target_tokens: int) -> int:
        """Returns what a trial has spent of its budget after so many target tokens: these themselves, unless bytes count."""
        return target_tokens * self.per_epoch // self.targets_per_epoch

    def planned(self, budget: BudgetSpec) -> int:
        """Returns a budget in these units. One in target tokens must have become one in epochs where bytes count."""
        if budget.target_tokens is not None and self.per_epoch != self.targets_per_epoch:
            raise ValueError("a budget in target tokens is none in bytes: in_epochs makes it a share of the data")
        return budget.in_target_tokens(self.per_epoch)


def in_epochs(budget: BudgetSpec, targets_per_epoch: int) -> BudgetSpec:
    """Returns the budget as a share of the data of a base with so many targets: the same share for every base."""
    if budget.target_tokens is None:
        return budget
    return BudgetSpec(epochs=budget.target_tokens / targets_per_epoch, evaluations=budget.evaluations)
