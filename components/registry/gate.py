"""The gate: is the candidate what was trained, and better than the base model and the incumbent? No MLflow in here."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from components.errors import VerificationError
from components.experiment.spec import MetricSpec
from components.records.evaluation_record import ConversationScores
from components.registry.incumbent_bits import all_in_bits, in_comparable_units, in_units_of, with_unit
from components.registry.verification_messages import VerificationReport
from components.registry.what_judges import Opponent, compares, scores_of
from components.statistics.no_worse import NoWorse
from components.statistics.paired_bootstrap import BITS, Comparison, compare
from components.statistics.selection import Selection

# Of the loss after loading from the loss in training: a share of it, and what rounding does where passes differ in the last
# bit. In bf16 that moves the loss of one target by up to 0.3 nats, at random, so the mean over N targets by 1/sqrt(N) of it.
MAX_DEVIATION, ROUNDING = 0.01, 0.5
NOTHING_SAYS = (
    "nothing says what the incumbent was trained on, so it was compared on all held-out conversations, some of which it may"
    " know"
)


@dataclass(frozen=True, kw_only=True)
class GateDecision:
    """Whether the candidate passes, and why. `replaced_because` is the reason that a person gave for no comparison."""

    passed: bool
    reason: str
    replaced_because: str | None = None


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


def compare_by(
    report: VerificationReport,
    metric: MetricSpec,
    confidence: float,
    selection: Selection | None = None,
    *,
    by_bytes: bool = False,
) -> tuple[Comparison, ...]:
    """Compares by the metric of the search: by loss as `compare_losses`, else by what the models say.

    `by_bytes` as for compare_losses. Raises VerificationError if the metric says nothing of the conversations that judge.
    """
    if not metric.of_replies:
        return compare_losses(report, confidence, selection, by_bytes=by_bytes)
    opponents: tuple[Opponent, ...] = ("base",) if report.incumbent_replies is None else ("base", "incumbent")
    found = []
    for opponent in opponents:
        pair = scores_of(report, metric.name, opponent)
        if not compares(pair):
            raise VerificationError(
                f"search.metric={metric.name} says nothing of the conversations that candidate and {opponent} share"
            )
        found.append(
            compare(opponent, *pair, metric, confidence=confidence, selection=selection, family=len(opponents))
        )
    return tuple(found)


def compare_losses(
    report: VerificationReport, confidence: float, selection: Selection | None = None, *, by_bytes: bool = False
) -> tuple[Comparison, ...]:
    """With the base on all held-out conversations, with the incumbent on those that it was not trained on either.

    A candidate that was chosen on other conversations needs no correction, though it must win twice: that it beats all is
    wrongly found at most as often as that it beats one. Each comparison says how sure both intervals are together.

    Args:
        selection: what the candidate was chosen from, if that was on these conversations: then the intervals are corrected.
        by_bytes: the search had several bases, so trials were ranked in bits per byte: `selection` is in bits, and so are the
            comparisons.
    """
    family = 1 if report.incumbent_sums is None else 2
    everything = tuple(range(len(report.num_targets)))
    whole = all_in_bits(report) if by_bytes else report
    base = _compare(whole, confidence, selection, family, "base", whole.base_sums, everything)
    base = base.model_copy(update={"unit": BITS}) if by_bytes else base
    if report.incumbent_sums is None:
        return (base,)
    if by_bytes and report.incumbent_by_bytes is None:
        report = report.model_copy(update={"incumbent_by_bytes": everything})
    chosen_from = in_units_of(report, selection, in_bits=by_bytes)
    compared = partial(_compare, in_comparable_units(report), confidence, chosen_from, family)
    return base, with_unit(_compare_incumbent(in_comparable_units(report), compared), report)


def _compare_incumbent(report: VerificationReport, compared: Callable[..., Comparison]) -> Comparison:
    everything = tuple(range(len(report.num_targets)))
    assert report.incumbent_sums is not None
    if report.incumbent_unseen is None:
        return compared("incumbent", report.incumbent_sums, everything, NOTHING_SAYS)
    seen = len(everything) - len(report.incumbent_unseen)
    note = f"the incumbent was trained on {seen} more of the held-out ones, which do not count" if seen else ""
    return compared("incumbent", report.incumbent_sums, report.incumbent_unseen, note)


def _compare(
    report: VerificationReport,
    confidence: float,
    selection: Selection | None,
    family: int,
    other: str,
    sums: Sequence[float],
    chosen: Sequence[int],
    note: str = "",
) -> Comparison:
    kept = chosen or range(len(sums))
    candidate, opponent = (
        ConversationScores(
            sums=tuple(each[index] for index in kept), weights=tuple(report.num_targets[index] for index in kept)
        )
        for each in (report.candidate_sums, sums)
    )
    found = compare(
        other,
        candidate,
        opponent,
        MetricSpec(),
        confidence=confidence,
        selection=selection and selection.on(kept),
        family=family,
        note=note,
    )
    return found if chosen else found.model_copy(update={"beats": False, "conversations": 0, "effective": 0.0})


def decide(
    incumbent: str | None,
    report: VerificationReport,
    comparisons: Sequence[Comparison],
    *,
    guarded: Sequence[NoWorse | str] = (),
    probes_problem: str | None = None,
    replace: str | None = None,
) -> GateDecision:
    """`incumbent` is the number of the version that holds the alias, None if there is none to beat.

    `guarded` are the scores that the candidate must not lose, each of which is a veto unless it holds; `probes_problem` is
    one too. `replace`: a person's reason to replace an incumbent that cannot be compared. One that can must be beaten all
    the same.
    """
    holder = f"version {incumbent} holds the alias and {report.incumbent_problem}"
    unknown = report.incumbent_problem is not None
    if unknown and replace is None:
        way_out = 'move the alias by hand, choose another registry.name, or search with --replace "REASON"'
        return GateDecision(passed=False, reason=f"{holder}; {way_out}")
    for comparison in comparisons:
        if not comparison.beats:
            return GateDecision(passed=False, reason=comparison.sentence())
    vetoes = [each if isinstance(each, str) else each.sentence() for each in guarded if not _holds(each)]
    vetoes += [probes_problem] if probes_problem else []
    if vetoes:
        return GateDecision(passed=False, reason="; ".join(f"veto: {veto}" for veto in vetoes))
    reasons = [comparison.sentence() for comparison in comparisons]
    reasons += [each.sentence() for each in guarded if not isinstance(each, str)]
    if unknown:
        reasons.append(f"{holder}; it is replaced uncompared because somebody said so: {replace}")
    return GateDecision(passed=True, reason="; ".join(reasons), replaced_because=replace if unknown else None)


def _holds(guarded: NoWorse | str) -> bool:
    return not isinstance(guarded, str) and guarded.holds
