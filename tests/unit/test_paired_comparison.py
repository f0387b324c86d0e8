"""Is one model truly better? Paired comparisons of few and of unequal conversations, and of the best of many candidates."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
from scipy import stats

from components.experiment.spec import MetricSpec
from components.records.evaluation_record import ConversationScores
from components.registry.result import RegistryResult
from components.statistics import paired_interval
from components.statistics.no_worse import largest_share, no_worse
from components.statistics.paired_bootstrap import Comparison, compare, paired_bootstrap
from components.statistics.paired_interval import PairedDifferences, effective_number, resampled, skewness_number
from components.statistics.selection import ChosenFrom, Selection


def verdict(candidate_sums, other_sums, num_targets, confidence=0.95):
    return paired_bootstrap("base", candidate_sums, other_sums, num_targets, confidence=confidence)


def test_losses_are_per_target_over_all_conversations_not_means_of_means():
    found = verdict([10.0, 60.0], [20.0, 90.0], [10, 30])
    assert (found.candidate_loss, found.other_loss, found.difference) == (70 / 40, 110 / 40, 1.0)


def test_one_that_is_better_by_as_much_everywhere_wins_without_doubt():
    found = verdict([10.0, 20.0] * 15, [15.0, 30.0] * 15, [10, 20] * 15)
    assert (found.low, found.high, found.beats, found.state) == (0.5, 0.5, True, "better")
    assert found.sentence() == (
        "beats the base on held-out conversations: 1.0000 against 1.5000 nats per target,"
        " difference +0.5000 [+0.5000, +0.5000] at 95%"
    )


def test_an_equal_one_does_not_win():
    found = verdict([10.0, 20.0] * 15, [10.0, 20.0] * 15, [10, 20] * 15)
    assert (found.low, found.high, found.beats, found.state) == (0.0, 0.0, False, "not better")


def test_one_that_is_worse_everywhere_loses():
    found = verdict([15.0, 30.0] * 15, [10.0, 20.0] * 15, [10, 20] * 15)
    assert (found.low, found.high, found.beats) == (-0.5, -0.5, False)
    assert found.sentence().startswith("does not beat the base")


def test_what_is_better_on_average_may_be_luck_and_is_not_with_more_of_the_same():
    candidate, other, targets = [10.0, 10.0, 10.0, 10.0], [13.0, 9.0, 12.0, 8.0], [10, 10, 10, 10]
    few = verdict(candidate * 5, other * 5, targets * 5)
    assert few.difference == pytest.approx(0.05)
    assert few.low < 0 < few.high
    assert (few.beats, few.state) == (False, "not better")
    many = verdict(candidate * 100, other * 100, targets * 100)
    assert many.difference == pytest.approx(0.05)
    assert 0 < many.low < 0.05 < many.high
    assert many.beats


def test_more_confidence_asks_for_more():
    losses = [10.0] * 40, [12.0, 9.4] * 20, [10] * 40
    sure, surer = verdict(*losses, confidence=0.5), verdict(*losses, confidence=0.999)
    assert surer.low < sure.low < sure.high < surer.high


def test_resampling_in_blocks_draws_the_same(monkeypatch):
    losses = [10.0, 11.0, 9.0], [12.0, 9.0, 10.0], [10, 7, 12]
    whole = verdict(*losses)
    monkeypatch.setattr(paired_interval, "MAX_DRAWN_AT_ONCE", 1000)
    assert verdict(*losses) == whole


def test_conversations_that_cannot_be_paired_are_an_error():
    with pytest.raises(ValueError, match="2, 1 and 2 conversations cannot be paired"):
        verdict([1.0, 2.0], [1.0], [1, 1])
    with pytest.raises(ValueError, match="0, 0 and 0"):
        verdict([], [], [])


# Too few to tell


@pytest.mark.parametrize("count", [1, 2, 19])
def test_too_few_conversations_tell_nothing_however_clear_they_look(count):
    found = verdict([10.0] * count, [10.0002, 15.0, 20.0][-count:] if count < 3 else [15.0] * count, [10] * count)
    assert (found.state, found.beats, found.conversations, found.needed) == ("too few to tell", False, count, 20)
    there = "there is 1" if count == 1 else f"there are {count}"
    assert found.sentence() == (
        f"too few to tell whether it beats the base: 20 held-out conversations needed, {there}: add conversations, or hold"
        " out more of them (data.eval_fraction, data.eval)"
    )


def test_twenty_conversations_can_tell():
    found = verdict([10.0] * 20, [15.0, 16.0] * 10, [10] * 20)
    assert (found.state, found.conversations, found.effective, found.needed) == ("better", 20, 20.0, 20)


def test_one_conversation_that_has_nearly_all_targets_is_nearly_one_conversation():
    found = verdict([10.0] * 30, [20.0] * 30, [10] * 29 + [2000])
    assert (found.state, found.beats) == ("too few to tell", False)
    assert found.effective == pytest.approx((29 * 10 + 2000) ** 2 / (29 * 100 + 2000**2))
    assert found.needed == 458
    assert found.sentence().startswith(
        "too few to tell whether it beats the base: 458 held-out conversations needed, there are 30 (as unequal in length as"
        " they are, they count as 1.3): add"
    )


def test_one_conversation_alone_that_differs_is_no_proof():
    better = verdict([10.0] * 30, [10.0] * 29 + [40.0], [10] * 30)
    assert (better.state, better.high) == ("not better", None)
    assert better.sentence().endswith(", unbounded] at 95%")
    worse = verdict([10.0] * 30, [10.01] * 29 + [9.0], [10] * 30)
    assert worse.difference < 0
    assert (worse.state, worse.low) == ("not better", None)
    assert RegistryResult.model_validate_json(result_with(worse).model_dump_json()).verdicts == (worse,)


def test_a_few_that_deceive_widen_the_side_on_which_they_do():
    """Most a little better, some much worse: the interval reaches further down than up."""
    found = verdict([10.0] * 40, [11.0, 11.0, 11.0, 8.0] * 10, [10] * 40)
    assert found.difference == pytest.approx(0.025)
    assert found.difference - found.low > 1.1 * (found.high - found.difference)


def test_a_verdict_of_before_conversations_were_counted_stands():
    old = {
        "other": "base", "candidate_loss": 1.0, "other_loss": 1.5, "difference": 0.5, "low": 0.1, "high": 0.9,
        "confidence": 0.95, "beats": True,
    }  # fmt: skip
    assert Comparison.model_validate(old).state == "better"


def result_with(found):
    return RegistryResult(
        name="toy", version="1", alias="champion", promoted=False, reason="", verdicts=(found,), probes=(),
        base_answers=(), candidate_answers=(), base_loss=1.0, candidate_loss=1.0,
    )  # fmt: skip


# The interval


def interval(differences_NC, weights_N=None, **options):
    """With two-sided ends of the first candidate, and the number of errors that each is away."""
    differences_NC = np.asarray(differences_NC, dtype=float).reshape(len(differences_NC), -1)
    paired = PairedDifferences(differences_NC, np.ones(len(differences_NC)) if weights_N is None else weights_N)
    low, high = paired_interval.paired_interval(paired, 0.95, **options)
    own = paired.columns(np.array([0]))
    return low, high, (own.ratios[0] - low) / own.errors[0], (high - own.ratios[0]) / own.errors[0]


def kept_tail(count):
    return 0.025 * count / (count + paired_interval.HALF_OF_THE_TAIL)


def test_numbers_of_conversations_are_those_of_equal_ones():
    assert (effective_number(np.full(7, 60.0)), skewness_number(np.full(7, 60.0))) == (7.0, 7.0)
    unequal = np.array([1.0, 1.0, 2.0])
    assert effective_number(unequal) == pytest.approx(16 / 6)
    assert skewness_number(unequal) == pytest.approx(6**3 / 10**2)


def test_deviations_of_resamples_are_those_of_repeated_conversations():
    generator = np.random.default_rng(0)
    differences_NC, lengths_N = generator.normal(size=(9, 2)), generator.integers(1, 50, size=9).astype(float)
    paired = PairedDifferences(differences_NC, lengths_N)
    found_BC = paired_interval._studentized_deviations(paired, np.random.default_rng(7), 50)
    (counts_BN,) = resampled(9, np.random.default_rng(7), 50)
    for counts_N, found_C in zip(counts_BN.astype(int), found_BC, strict=True):
        assert counts_N.sum() == 9
        again = PairedDifferences(np.repeat(differences_NC, counts_N, axis=0), np.repeat(lengths_N, counts_N))
        assert found_C == pytest.approx((again.ratios - paired.ratios) / again.errors)


def test_skewed_differences_have_about_the_interval_of_scipys_bca_bootstrap():
    differences_N = 1 - np.random.default_rng(3).exponential(size=200)
    low, high, *_ = interval(differences_N)
    known = stats.bootstrap(
        (differences_N,), np.mean, confidence_level=1 - 2 * kept_tail(200), method="BCa", rng=np.random.default_rng(0)
    ).confidence_interval
    error = differences_N.std(ddof=1) / math.sqrt(200)
    assert (low, high) == pytest.approx((known.low, known.high), abs=0.35 * error)
    assert low < known.low + 0.05 * error  # on the side where it matters, it is not narrower


@pytest.mark.parametrize("count", [20, 100])
def test_heavy_tails_have_no_less_than_students_interval(count):
    differences_N = np.random.default_rng(1).standard_t(2, size=count)
    _, _, below, above = interval(np.concatenate([differences_N, -differences_N]))
    known = stats.t.ppf(1 - kept_tail(2 * count), 2 * count - 1)
    assert min(below, above) > 0.97 * known
    assert max(below, above) < 1.1 * known


# The best of many


def test_of_unrelated_candidates_the_interval_is_that_of_the_largest_of_as_many():
    differences_NC = np.random.default_rng(0).normal(size=(400, 24))
    known = stats.norm.ppf(0.975 ** (1 / 24))  # 3.07
    _, _, below, above = interval(differences_NC)
    assert (below, above) == pytest.approx((known, known), abs=0.2)
    _, _, by_bonferroni, _ = interval(differences_NC[:, :1], tests=24)
    assert by_bonferroni > known - 0.1


def test_candidates_that_are_copies_of_one_another_need_no_correction():
    differences_N1 = np.random.default_rng(0).normal(size=(100, 1))
    alone, many = interval(differences_N1), interval(np.repeat(differences_N1, 24, axis=1))
    assert many == pytest.approx(alone, abs=0.03)


def test_candidates_that_luck_never_chooses_need_no_correction():
    """They are worse by many errors, or their loss is not finite, or they do not differ from the opponent at all."""
    generator = np.random.default_rng(0)
    differences_NC = generator.normal(size=(100, 24))
    differences_NC[:, 1:] -= 2.0
    differences_NC[3, 5], differences_NC[:, 7] = -np.inf, 0.0
    assert interval(differences_NC) == pytest.approx(interval(differences_NC[:, :1]), abs=0.03)


def test_one_candidate_that_seldom_differs_takes_no_claim_from_another():
    """Of 0 and 1: it is wrong once where the opponent is right, so a third of the resamples do not vary at all."""
    better_N = np.array([1.0, 0.0, 1.0] * 20)
    once_N = np.zeros(60)
    once_N[4] = -1.0
    assert interval(np.stack([better_N, once_N], axis=1))[0] > 0


# Other metrics


@dataclass
class Answers:
    sums: tuple
    weights: tuple


EXACT = MetricSpec(name="exact_match", direction="maximize")


def test_where_more_is_better_the_candidate_with_more_is():
    ones = (1.0,) * 40
    right, wrong = ConversationScores(sums=ones, weights=ones), ConversationScores(sums=(0.0, 1.0) * 20, weights=ones)
    found = compare("base", right, wrong, EXACT, confidence=0.95)
    assert (found.state, found.difference) == ("better", 0.5)
    assert found.sentence().startswith(
        "beats the base in exact_match on held-out conversations: 1.0000 against 0.5000, difference +0.5000 [+0."
    )
    assert compare("base", wrong, right, EXACT, confidence=0.95).difference == -0.5
    assert compare("base", wrong, right, MetricSpec(name="copied"), confidence=0.95).state == "better"  # less is better


def test_conversations_of_which_a_metric_says_nothing_do_not_count():
    said, silent = (1.0,) * 30, (0.0,) * 10
    candidate = Answers((0.9,) * 30 + silent, said + silent)
    found = compare("base", candidate, Answers((0.5, 0.7) * 15 + silent, said + silent), EXACT, confidence=0.95)
    assert (found.conversations, found.candidate_loss, found.state) == (30, pytest.approx(0.9), "better")
    few = Answers((0.5,) * 40, (1.0,) * 10 + (0.0,) * 30)
    assert compare("base", candidate, few, EXACT, confidence=0.95).state == "too few to tell"


@pytest.mark.parametrize("weights", [(2.0,) * 30, (0.0,) * 30])
def test_scores_that_weigh_conversations_differently_are_an_error(weights):
    with pytest.raises(ValueError, match="exact_match: two models that are compared must weigh the same conversations"):
        compare("base", Answers((1.0,) * 30, (1.0,) * 30), Answers((1.0,) * 30, weights), EXACT, confidence=0.95)


def test_where_scores_of_candidates_are_missing_each_counts_as_a_test():
    generator = np.random.default_rng(0)
    candidate, other = generator.normal(9.4, 1.0, size=60), np.full(60, 10.0)
    losses = [ConversationScores(sums=tuple(sums), weights=(10.0,) * 60) for sums in (candidate, other)]
    chosen_from = ChosenFrom(evaluations=12, trials=4, missing=2)
    selection = Selection(sums_CN=np.tile(candidate, (10, 1)), chosen_from=chosen_from)
    found = compare("base", *losses, MetricSpec(), confidence=0.95, selection=selection)
    plain = compare("base", *losses, MetricSpec(), confidence=0.95)
    errors = [(each.difference - each.low) / (each.difference - plain.low) for each in (plain, found)]
    assert errors[1] > 1.3 * errors[0]
    assert found.sentence().endswith(
        "; the best of 12 evaluations of 4 trials, corrected for that choice by Bonferroni's inequality, which asks for more"
        " than needed: 2 of them kept no scores by conversation"
    )


def test_shares_of_confidence_are_said_as_they_are():
    found = verdict([10.0] * 30, [15.0] * 30, [10] * 30, confidence=0.975)
    assert found.sentence().endswith(" at 97.5%")
    three = found.model_copy(update={"family": 3})
    assert three.joint_confidence == pytest.approx(0.925)
    assert three.sentence().endswith(" at 97.5% (92.5% for all 3 intervals together)")


# No worse


@pytest.mark.parametrize(("found", "count"), [(0, 30), (0, 500), (3, 100), (40, 64), (5, 5)])
def test_the_largest_share_is_that_of_clopper_and_pearson(found, count):
    known = stats.beta.ppf(0.975, found + 1, count - found) if found < count else 1.0
    assert largest_share(found, count, 0.025) == pytest.approx(known)
    if not found:
        assert known == pytest.approx(1 - 0.025 ** (1 / count))


def answers(wrong, count=100):
    """Right but for these; None: the metric says nothing of it."""
    return Answers(tuple(float(index not in wrong) for index in range(count)), (1.0,) * count)


@pytest.mark.parametrize(
    ("wrong", "margin", "state", "sentence"),
    [
        (
            range(0),
            0.05,
            "no worse",
            "is not worse than the incumbent in exact_match by more than 0.05: 1.0000 against",
        ),
        (
            range(0),
            0.02,
            "not shown",
            "may be worse than the incumbent in exact_match by more than 0.02: 1.0000 against",
        ),
        (range(0), 0, "no worse", "is worse than the incumbent in exact_match on none of 100 held-out conversations"),
        (range(1), 0, "not shown", "may be worse than the incumbent in exact_match at all: 0.9900 against 1.0000"),
        (range(30), 0.1, "worse", "is worse than the incumbent in exact_match by more than 0.1: 0.7000 against 1.0000"),
    ],
)
def test_no_worse_is_shown_by_an_interval_and_not_by_a_lack_of_proof(wrong, margin, state, sentence):
    found = no_worse("incumbent", answers(wrong), answers(()), EXACT, margin=margin, confidence=0.95)
    assert (found.state, found.holds) == (state, state == "no worse")
    assert found.sentence().startswith(sentence)


def test_too_few_conversations_do_not_show_that_a_model_is_no_worse():
    found = no_worse("base", answers((1,), 10), answers((1, 2), 10), EXACT, margin=0.1, confidence=0.95)
    assert (found.state, found.holds) == ("too few to tell", False)
    assert found.sentence().startswith(
        "too few to tell whether it is no worse than the base in exact_match: 20 held-out conversations needed, there are 10"
    )


def test_a_loss_may_be_worse_by_the_margin():
    weights = (10.0,) * 50
    noise = np.random.default_rng(0).normal(0.0, 0.3, size=50)
    candidate, other = Answers(tuple(10.5 + noise), weights), Answers((10.0,) * 50, weights)
    general = MetricSpec(name="general_loss")
    assert no_worse("base", candidate, other, general, margin=0.1, confidence=0.95).holds  # 0.05 nats worse
    assert no_worse("base", candidate, other, general, margin=0.01, confidence=0.95).state == "worse"
