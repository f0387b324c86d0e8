"""The best of each branch, repeated with new seeds and compared: who is truly better, and who is as good and cheaper."""

import numpy as np
import pytest
from pydantic import ValidationError
from scipy import stats

from components.experiment.spec import ConfirmSpec, SearchSpec
from components.records.evaluation_record import ConversationScores
from components.records.events import Extension, TrialEnded, TrialHistory, TrialInstructed, TrialStarted, replay
from components.records.finalists import due_repeats, finalists, repeats_of
from components.reports.finalists import compare_finalists
from components.statistics.seed_comparison import SeededScores, compare_seeds
from tests.support.records import progress, started

CONFIRM = ConfirmSpec(top=1, seeds=2)


def trial(name, branch, loss, *, number=1, state="completed", **fields):
    begun = started(name, number=number, branch=branch, **fields)
    return TrialHistory(started=begun, reports=(progress(1, loss, checkpoint="there"),), state=state)


def by_id(*histories):
    return {history.trial_id: history for history in histories}


FOUR = by_id(
    trial("a", "lora", 1.0, number=1),
    trial("b", "lora", 0.9, number=2, state="stopped"),
    trial("c", "full", 0.8, number=3),
    trial("d", "full", 0.7, number=4),
)


def test_finalists_are_the_best_of_each_branch_and_whole_budgets_come_first():
    names = {branch: [each.trial_id for each in known] for branch, known in finalists(FOUR.values(), 2).items()}
    assert names == {"lora": ["a", "b"], "full": ["d", "c"]}


@pytest.mark.parametrize(
    "odd",
    [
        {"warm_from": "there"},
        {"repeat": True},
    ],
)
def test_trials_on_other_terms_are_no_finalists(odd):
    assert finalists([trial("a", "lora", 1.0), trial("b", "lora", 0.1, **odd)], 1)["lora"][0].trial_id == "a"


def test_an_extended_trial_is_no_finalist():
    longer = TrialInstructed(
        trial_id="b", instruction=Extension(target_tokens=99, from_step=1), request_id="r", by="ann", time=1.0
    )
    extended = trial("b", "lora", 0.1).model_copy(update={"instructions": (longer,)})
    assert finalists([trial("a", "lora", 1.0), extended], 1)["lora"][0].trial_id == "a"


def test_repeats_are_due_once_all_others_have_ended_and_each_once():
    running = by_id(*FOUR.values(), trial("e", "full", 0.6, number=5, state="running"))
    assert list(due_repeats(running, CONFIRM, planned=5, now=1.0)) == []
    assert list(due_repeats(FOUR, CONFIRM, planned=5, now=1.0)) == []  # the fifth has not started
    asked = list(due_repeats(FOUR, CONFIRM, planned=4, now=1.0))
    assert [(each.trial_id, each.instruction.spec.seed, each.instruction.number) for each in asked] == [
        ("a", 1, 5),
        ("a", 2, 6),
        ("d", 1, 7),
        ("d", 2, 8),
    ]
    known = {name: history.model_copy() for name, history in FOUR.items()}
    known["a"] = known["a"].model_copy(update={"instructions": tuple(each for each in asked if each.trial_id == "a")})
    rest = list(due_repeats(known, CONFIRM, planned=4, now=1.0))
    assert [(each.trial_id, each.instruction.number) for each in rest] == [("d", 7), ("d", 8)]


def test_repeats_survive_the_journal_in_the_order_of_their_seeds():
    asked = [each for each in due_repeats(FOUR, CONFIRM, planned=4, now=1.0) if each.trial_id == "a"]
    events = [FOUR["a"].started, *asked]
    for each in reversed(asked):
        clone = each.instruction
        begun = TrialStarted(
            trial_id=clone.trial_id, number=clone.number, branch="lora", spec=clone.spec, workers=1, varied={},
            parent="a", repeat=True, time=2.0,
        )  # fmt: skip
        events += [begun, TrialEnded(trial_id=clone.trial_id, state="completed", time=3.0)]
    histories = replay(events)
    assert repeats_of(histories, histories["a"]) == []  # none has a report
    told = {
        name: history.model_copy(update={"reports": (progress(1, 1.0, checkpoint="there"),)})
        for name, history in histories.items()
    }
    assert [each.started.spec.seed for each in repeats_of(told, told["a"])] == [1, 2]


def test_a_comparison_over_seeds_is_welch_over_conversations_and_seeds():
    rows = np.array([[1.0, 2.0, 6.0], [2.0, 2.0, 5.0]])
    one = SeededScores(sums_SC=rows, weights_C=np.ones(3))
    other = SeededScores(sums_SC=np.array([[1.0, 1.0, 4.0], [1.0, 1.0, 4.0]]), weights_C=np.ones(3))
    found = compare_seeds(one, other, confidence=0.95)
    differences = rows.mean(axis=0) - np.array([1.0, 1.0, 4.0])
    over_conversations, over_seeds = differences.var(ddof=1) / 3, rows.mean(axis=1).var(ddof=1) / 2
    variance = over_conversations + over_seeds
    freedom = variance**2 / (over_conversations**2 / 2 + over_seeds**2 / 1)
    assert found.difference == pytest.approx(1.0)
    assert found.half_width == pytest.approx(stats.t.ppf(0.975, freedom) * variance**0.5)


def test_more_comparisons_are_each_wider_and_unlike_conversations_are_refused():
    generator = np.random.default_rng(0)
    one, other = (SeededScores(sums_SC=generator.normal(size=(3, 30)), weights_C=np.ones(30)) for _ in range(2))
    widths = [compare_seeds(one, other, confidence=0.95, comparisons=number).half_width for number in (1, 2, 5)]
    assert widths == sorted(widths)
    assert widths[0] < widths[2]
    with pytest.raises(ValueError, match="30 and 2 conversations"):
        compare_seeds(one, SeededScores(sums_SC=np.ones((3, 2)), weights_C=np.ones(2)), confidence=0.95)


@pytest.mark.parametrize("spread", [0.0, 0.3])
def test_equal_configurations_are_within_noise_in_19_of_20_cases(spread):
    """Conversations and seeds are drawn anew each time; the seed moves a whole run by `spread`."""
    generator, outside = np.random.default_rng(7), 0
    for _ in range(400):
        weights = np.round(60 * generator.lognormal(0, 0.4, size=40))
        hard = generator.normal(size=40)
        one, other = (
            SeededScores(
                sums_SC=weights
                * (hard + spread * generator.normal(size=(3, 1)) + 0.2 * generator.normal(size=(3, 40))),
                weights_C=weights,
            )
            for _ in range(2)
        )
        outside += not compare_seeds(one, other, confidence=0.95).within_noise
    assert outside <= 400 * 0.05 + 3 * (400 * 0.05 * 0.95) ** 0.5


def compared(difference, *, prefer="quality", conversations=40, kept=True, confirm=None):
    """lora is worse than full by this difference on every conversation, and a little noise."""
    noise = np.random.default_rng(1).normal(scale=0.05, size=conversations)
    losses = {"a": 10 * (1.0 + difference + noise), "d": np.full(conversations, 10.0)}
    histories = by_id(trial("a", "lora", 1.0 + difference, number=1), trial("d", "full", 1.0, number=2))
    weights = {"a": 20, "d": 4000}
    return compare_finalists(
        histories,
        confirm,
        prefer=prefer,
        confidence=0.95,
        unit="nats per target",
        read_scores=lambda history: (
            ConversationScores(sums=tuple(losses[history.trial_id]), weights=(10.0,) * conversations) if kept else None
        ),
        trained_weights=lambda history: weights[history.trial_id],
    )


def test_the_cheapest_within_noise_is_chosen_only_where_it_is_preferred():
    near = compared(0.001)
    assert near.chosen == "d"
    assert compared(0.001, prefer="cheapest_within_noise").chosen == "a"
    assert compared(0.5, prefer="cheapest_within_noise").chosen == "d"
    assert compared(0.001, prefer="cheapest_within_noise", conversations=10).chosen == "d"  # too few to tell
    assert compared(0.001, prefer="cheapest_within_noise", kept=False).chosen == "d"


def test_the_sentences_name_difference_uncertainty_and_price():
    first, second = compared(0.001, prefer="cheapest_within_noise").sentences()
    assert first.startswith("lora (trial 1) is within noise of full (trial 2): difference +0.0")
    assert "nats per target at 95%, one seed each: what a seed decides is not counted" in first
    assert first.endswith(
        "at an unknown share of its worker-seconds and 1/200 of its trained weights"
    )  # none were counted
    assert second == "registry.prefer: cheapest_within_noise registers lora (trial 1)"
    assert "is worse than full" in compared(0.5).sentences()[0]
    assert (
        "10 held-out conversations are too few to tell a difference" in compared(0.1, conversations=10).sentences()[0]
    )
    assert "its scores were not kept" in compared(0.1, kept=False).sentences()[0]


def test_one_new_seed_says_nothing_of_seeds_and_is_refused():
    with pytest.raises(ValidationError, match="greater than or equal to 2"):
        SearchSpec(space={"lora": {}}, confirm={"top": 1, "seeds": 1})
