"""One metric of candidate and opponents as a verification found it, for the gate's comparison and for its vetoes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeGuard

from components.experiment.spec import EVAL_LOSS, GENERAL_LOSS, MetricSpec
from components.records.evaluation_record import ConversationScores
from components.records.general_scores import GeneralScores
from components.registry.incumbent_bits import in_comparable_units
from components.registry.verification_messages import VerificationReport

Opponent = Literal["base", "incumbent"]
Pair = tuple[ConversationScores, ConversationScores]  # the candidate's and the other's, of the same conversations


def metric_of_score(name: str, directions: Mapping[str, MetricSpec]) -> MetricSpec:
    """Returns the metric of a score's name; losses are better where they are less."""
    return directions.get(name, MetricSpec(name=name))


def scores_of(report: VerificationReport, name: str, opponent: Opponent) -> Pair | None:
    """Returns None where one of the two has no such scores, or no two that compare.

    Conversations that the incumbent was trained on have the weight 0.
    """
    if name == GENERAL_LOSS:
        return _general(report.candidate_general, getattr(report, f"{opponent}_general"))
    if name == EVAL_LOSS:
        return _losses(report, opponent)
    others: Mapping[str, ConversationScores] = getattr(report, f"{opponent}_replies") or {}
    if name not in report.candidate_replies or name not in others:
        return None
    return _unseen(report, opponent, report.candidate_replies[name]), others[name]


def compares(pair: Pair | None) -> TypeGuard[Pair]:
    """Whether the two have a conversation in common on which they are scored."""
    return pair is not None and any(a > 0 and b > 0 for a, b in zip(pair[0].weights, pair[1].weights, strict=True))


def _losses(report: VerificationReport, opponent: Opponent) -> Pair | None:
    comparable = in_comparable_units(report) if opponent == "incumbent" else report
    sums = getattr(comparable, f"{opponent}_sums")
    if sums is None:
        return None
    weights = tuple(map(float, comparable.num_targets))
    own = ConversationScores(sums=comparable.candidate_sums, weights=weights)
    return _unseen(comparable, opponent, own), ConversationScores(sums=sums, weights=weights)


def _unseen(report: VerificationReport, opponent: Opponent, scores: ConversationScores) -> ConversationScores:
    """Of probes the verification does not know which conversations they are: they are new to all."""
    unseen = report.incumbent_unseen
    if opponent == "base" or unseen is None or len(scores.sums) != len(report.num_targets):
        return scores
    kept = set(unseen)
    weights = tuple(weight if index in kept else 0.0 for index, weight in enumerate(scores.weights))
    return ConversationScores(sums=scores.sums, weights=weights)


def _general(candidate: GeneralScores | None, other: GeneralScores | None) -> Pair | None:
    """None where the two have other tokens: a margin is in nats per token of the same ones."""
    if candidate is None or other is None or candidate.tokens != other.tokens:
        return None
    weights = tuple(map(float, candidate.num_targets))
    return ConversationScores(sums=candidate.sums, weights=weights), ConversationScores(
        sums=other.sums, weights=weights
    )
