"""What a candidate must not lose while it wins: `registry.gate.no_worse`, and what its probes expect."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from components.experiment.spec import MetricSpec
from components.registry.probes import Probe, probes_answered
from components.registry.verification_messages import VerificationReport
from components.registry.what_judges import Opponent, compares, metric_of_score, scores_of
from components.statistics.no_worse import NoWorse, no_worse


def vetoes_of(
    report: VerificationReport, margins: Mapping[str, float], directions: Mapping[str, MetricSpec], confidence: float
) -> Iterator[NoWorse | str]:
    """Yields each guarded score against the incumbent, else against the base; a text where there is nothing to compare.

    Args:
        margins: by how much the candidate may be worse, by score.
        directions: the scores of what is said, by name.
    """
    for name, margin in margins.items():
        metric = metric_of_score(name, directions)
        opponents: tuple[Opponent, ...] = ("incumbent", "base") if report.incumbent_sums is not None else ("base",)
        pairs = ((opponent, scores_of(report, name, opponent)) for opponent in opponents)
        opponent, pair = next(((who, found) for who, found in pairs if found is not None), ("base", None))
        if compares(pair):
            yield no_worse(opponent, *pair, metric, margin=margin, confidence=confidence)
        else:
            yield f"registry.gate.no_worse.{name}: says nothing of these conversations, so it guards nothing; leave it out"


def probes_problem(report: VerificationReport, probes: Sequence[Probe]) -> str | None:
    """Says why the answers to the probes keep a candidate from passing; None if they do not.

    Every probe must be answered with something, and no fewer as expected than by the incumbent, else by the base.
    """
    silent = [number for number, said in enumerate(report.candidate_answers, start=1) if not said.strip()]
    if silent:
        return f"says nothing to probe {', '.join(map(str, silent))} of {len(probes)}"
    other, answers = (
        ("incumbent", report.incumbent_answers) if report.incumbent_answers else ("base", report.base_answers)
    )
    if len(answers) != len(probes):
        return None
    own, wanted = probes_answered(report.candidate_answers, probes)
    others, _ = probes_answered(answers, probes)
    if own >= others:
        return None
    return f"answers {own} of {wanted} probes as expected, and the {other} answers {others}"
