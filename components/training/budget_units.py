"""What a budget counts: target tokens or, in a search over several base models, the bytes of the targets.

Tokens of two tokenizers are no equal terms. All bases have the same training conversations, so they have the same bytes, and
a budget is the same share of them: a trial of N target tokens has spent N x (bytes of an epoch / target tokens of an epoch).
Over a whole epoch that is exact; within one it is the average of the trial's own training data.
"""

from __future__ import annotations

from dataclasses import dataclass

from components.conversations.target_bytes import BITS_PER_BYTE
from components.data.prepare import PreparedDataset
from components.experiment.spec import EVAL_LOSS, BudgetSpec, ExperimentSpec, MetricSpec, written_in_tokens


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


def rescaled(experiment: ExperimentSpec, *, of: int, to: int) -> ExperimentSpec:
    """Returns the experiment with the same shares of the data in other units, of which an epoch has `to`, and not `of`.

    Its budget is in epochs then; where its scheduler begins to judge is in the other units.
    """
    budget = in_epochs(experiment.trial.budget, of)
    settled = experiment.model_copy(update={"trial": experiment.trial.model_copy(update={"budget": budget})})
    scheduler = experiment.search.scheduler
    there = {name: max(1, tokens * to // of) for name, tokens in written_in_tokens(scheduler).items()}
    search = experiment.search.model_copy(update={"scheduler": scheduler.model_copy(update=there)})
    return settled.model_copy(update={"search": search})


def ranked_by(metric: MetricSpec, *, by_bytes: bool) -> MetricSpec:
    """Returns what trials are ranked by: losses of several bases compare in bits per byte, scores of what they say always."""
    return MetricSpec(name=BITS_PER_BYTE) if by_bytes and metric.name == EVAL_LOSS else metric
