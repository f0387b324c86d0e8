"""The gate: is the candidate what was trained, and better than the base model and the incumbent? No MLflow in here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from components.errors import VerificationError
from components.registry.verification_messages import VerificationReport
from components.statistics.paired_bootstrap import Comparison, paired_bootstrap

# Of the loss after loading from the loss in training: a share of it, and what rounding does where passes differ in the last
# bit. In bf16 that moves the loss of one target by up to 0.3 nats, at random, so the mean over N targets by 1/sqrt(N) of it.
MAX_DEVIATION, ROUNDING = 0.01, 0.5
NOTHING_SAYS = (
    "nothing says what the incumbent was trained on, so it was compared on all held-out conversations, some of which it may"
    " know"
)


@dataclass(frozen=True, kw_only=True)
class GateDecision:
    """Whether the candidate passes, and why."""

    passed: bool
    reason: str


def check_report(report: VerificationReport, trained_loss: float, version_uri: str) -> None:
    """Raises VerificationError if the version does not answer, or does not score what its trial scored in training."""
    loss = report.eval_loss
    rounding = ROUNDING / math.sqrt(report.num_eval_targets)
    if not abs(loss - trained_loss) <= MAX_DEVIATION * trained_loss + rounding:
        raise VerificationError(
            f"{version_uri} scores {loss:.4f} nats per target after loading, and scored {trained_loss:.4f} in training"
        )
    if not report.reply.strip():
        raise VerificationError(f"{version_uri} loads, but answers nothing")


def compare_losses(report: VerificationReport, confidence: float) -> tuple[Comparison, ...]:
    """With the base on all held-out conversations, with the incumbent on those that it was not trained on either."""
    everything = tuple(range(len(report.num_targets)))
    base = _compare("base", report, report.base_sums, everything, confidence)
    if report.incumbent_sums is None:
        return (base,)
    if report.incumbent_unseen is None:
        return base, _compare("incumbent", report, report.incumbent_sums, everything, confidence, NOTHING_SAYS)
    seen = len(everything) - len(report.incumbent_unseen)
    note = f"the incumbent was trained on {seen} more of the held-out ones, which do not count" if seen else ""
    return base, _compare("incumbent", report, report.incumbent_sums, report.incumbent_unseen, confidence, note)


def _compare(
    other: str,
    report: VerificationReport,
    sums: Sequence[float],
    chosen: Sequence[int],
    confidence: float,
    note: str = "",
) -> Comparison:
    if not chosen:
        whole = paired_bootstrap(
            other, report.candidate_sums, sums, report.num_targets, confidence=confidence, note=note
        )
        return whole.model_copy(update={"beats": False, "conversations": 0, "effective": 0.0})
    return paired_bootstrap(
        other,
        [report.candidate_sums[index] for index in chosen],
        [sums[index] for index in chosen],
        [report.num_targets[index] for index in chosen],
        confidence=confidence,
        note=note,
    )


def decide(incumbent: str | None, report: VerificationReport, comparisons: Sequence[Comparison]) -> GateDecision:
    """`incumbent` is the number of the version that holds the alias, None if there is none to beat."""
    if report.incumbent_problem is not None:
        return GateDecision(
            passed=False,
            reason=f"version {incumbent} holds the alias and {report.incumbent_problem}; move the alias by hand, or choose"
            " another registry.name",
        )
    for comparison in comparisons:
        if not comparison.beats:
            return GateDecision(passed=False, reason=comparison.sentence())
    return GateDecision(passed=True, reason="; ".join(comparison.sentence() for comparison in comparisons))
