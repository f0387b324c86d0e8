"""Who is stopped at which rung, with losses whose answers are known. Histories come from records, as in a search."""

import math
import pickle
from types import SimpleNamespace

import pytest
from ray.tune.schedulers import TrialScheduler

from components.cluster.driver.trial_control import attached
from components.cluster.scheduling.journal_scheduler import JournalScheduler
from components.cluster.scheduling.scheduler import make_scheduler
from components.cluster.scheduling.successive_halving import HalvingRule
from components.cluster.slots.slot_result import ExitReason, SlotResult
from components.cluster.slots.trial_config import TrialConfig
from components.experiment.spec import AshaSpec, ExperimentSpec, TrialSpec
from components.records.events import (
    Clone,
    Extension,
    TrialInstructed,
    TrialProgressed,
    replay,
)
from tests.support.records import progress, started

BUDGET = 400
HALF = HalvingRule(rungs=(100, 200), reduction_factor=2, per_branch=False)
PER_BRANCH = HalvingRule(rungs=(100, 200), reduction_factor=2, per_branch=True)


def reported(trial_id, target_tokens, eval_loss, **more):
    """A trial of this file scores ten tokens in a step."""
    report = progress(target_tokens // 10, eval_loss, target_tokens=target_tokens, **more)
    return TrialProgressed(trial_id=trial_id, progress=report, slot="slot", time=2.0)


def told(trial_id, instruction):
    return TrialInstructed(trial_id=trial_id, instruction=instruction, request_id="1", by="ann@desk", time=3.0)


def stopped(halving, reports, known=()):
    """The trials of (trial, target tokens, loss) reports, in their order, whose report was their last one."""
    records = [*known, *(started(name) for name in dict.fromkeys(name for name, _, _ in reports))]
    stopped = []
    for name, tokens, loss in reports:
        if name in stopped:
            continue
        if halving.stops(replay(records), name, reported(name, tokens, loss).progress):
            stopped.append(name)
        records.append(reported(name, tokens, loss))
    return stopped


def test_one_in_two_passes_a_rung_and_the_first_always_does():
    assert stopped(HALF, [("a", 100, 3.0), ("b", 100, 4.0), ("c", 100, 2.0), ("d", 100, 2.5)]) == ["b"]


def test_one_in_three_passes_of_six_the_two_best():
    third = HalvingRule(rungs=(100,), reduction_factor=3, per_branch=False)
    order = [("a", 100, 1.0), ("b", 100, 2.0), ("c", 100, 3.0), ("d", 100, 4.0), ("e", 100, 5.0), ("f", 100, 1.5)]
    assert stopped(third, order) == ["b", "c", "d", "e"]


def test_equal_losses_pass_together():
    assert stopped(HALF, [("a", 100, 3.0), ("b", 100, 3.0), ("c", 100, 3.0)]) == []


def test_a_report_just_before_a_rung_decides_nothing_and_one_at_it_does():
    assert stopped(HALF, [("a", 100, 3.0), ("b", 99, 9.0)]) == []
    assert stopped(HALF, [("a", 100, 3.0), ("b", 100, 9.0)]) == ["b"]


def test_a_report_that_passes_several_rungs_is_recorded_in_each():
    """The later 1.0 of `a` belongs to no rung. If it filled the first one, `b` would be stopped there."""
    assert stopped(HALF, [("a", 250, 3.0), ("a", 300, 1.0), ("b", 120, 2.0)]) == []
    assert stopped(HALF, [("a", 250, 3.0), ("a", 300, 1.0), ("b", 120, 3.5)]) == ["b"]  # an empty one would let it pass


def test_a_report_that_passes_several_rungs_must_be_good_enough_for_each():
    """At the second rung `b` is alone; at the first one `a` is better."""
    assert stopped(HALF, [("a", 100, 2.0), ("b", 200, 2.5)]) == ["b"]


def test_a_trial_is_recorded_with_its_loss_at_the_rung_and_not_with_a_later_one():
    assert stopped(HALF, [("a", 100, 3.0), ("a", 150, 1.0), ("b", 100, 2.0)]) == []


def test_a_report_that_comes_again_after_a_restart_decides_nothing():
    """`a` went on when nobody else was known. Better trials have come since, and the report is told once more."""
    assert stopped(HALF, [("a", 100, 3.0), ("b", 100, 1.0), ("c", 100, 0.5), ("a", 100, 3.0)]) == []


def test_a_diverged_trial_stands_in_a_rung_as_the_worst():
    assert stopped(HALF, [("a", 100, math.nan), ("b", 100, 9.0), ("c", 100, math.inf), ("d", 100, 8.0)]) == ["c"]


def test_a_warm_clone_is_neither_recorded_nor_stopped():
    clone = [started("clone", warm_from="a/step"), reported("clone", 100, 0.1)]
    assert stopped(HALF, [("a", 100, 3.0), ("b", 100, 2.0)], known=clone) == []
    histories = replay([started("a"), reported("a", 100, 1.0), started("clone", warm_from="a/step")])
    assert not HALF.stops(histories, "clone", reported("clone", 100, 9.0).progress)


def test_a_clone_that_begins_as_all_others_do_competes_with_them():
    made = Clone(trial_id="clone", number=2, branch="lora", spec=TrialSpec(), varied={})
    histories = replay([started("a"), reported("a", 100, 1.0), told("a", made), started("clone")])
    assert HALF.stops(histories, "clone", reported("clone", 100, 2.0).progress)


def test_an_extended_trial_competes_up_to_where_its_schedule_changes():
    longer = told("a", Extension(target_tokens=800, from_step=10))
    known = [started("a"), reported("a", 100, 1.0), longer, reported("a", 200, 0.5)]
    histories = replay([*known, started("b"), started("c"), reported("c", 100, 0.9), reported("c", 200, 0.8)])
    assert HALF.stops(histories, "b", reported("b", 100, 2.0).progress)  # a's loss before its extension counts
    assert not HALF.stops(histories, "b", reported("b", 200, 0.7).progress)  # a's 0.5 after it does not
    assert not HALF.stops(histories, "a", reported("a", 300, 9.0).progress)


def test_an_extended_trial_is_not_judged_after_its_learning_rate_differs():
    longer = told("a", Extension(target_tokens=800, from_step=0))
    histories = replay([started("a"), longer, started("b"), reported("b", 100, 1.0)])
    assert not HALF.stops(histories, "a", reported("a", 100, 9.0).progress)


def test_trials_of_two_branches_meet_in_a_shared_bracket_only():
    known = [started("a", branch="full"), reported("a", 100, 1.0)]
    assert stopped(PER_BRANCH, [("b", 100, 2.0), ("c", 100, 3.0)], known=known) == ["c"]
    assert stopped(HALF, [("b", 100, 2.0), ("c", 100, 3.0)], known=known) == ["b", "c"]


def test_one_trial_at_a_time_goes_on_while_it_is_among_the_best_so_far():
    """With max_concurrent_trials: 1 the trials before have gone their way when the next one comes to a rung."""
    first = [("a", 100, 3.0), ("a", 200, 2.5), ("a", 400, 2.0)]
    assert stopped(HALF, [*first, ("b", 100, 3.1), ("c", 100, 2.9), ("c", 200, 2.6)]) == ["b", "c"]


@pytest.mark.parametrize(
    ("spec", "budget", "warmup", "rungs"),
    [
        (AshaSpec(), 1600, 0.0, (100, 400)),
        (AshaSpec(), 1600, 0.05, (100, 400)),
        (AshaSpec(), 1600, 0.1, (160, 640)),  # never inside the warm-up
        (AshaSpec(), 1601, 0.0, (101, 401)),
        (AshaSpec(reduction_factor=2), 1600, 0.0, (100, 200, 400, 800)),
        (AshaSpec(first_rung_target_tokens=50), 1600, 0.1, (50, 200, 800)),  # a person's word counts
        (AshaSpec(), 1600, 1.0, ()),
        (AshaSpec(), 3, 0.0, (1,)),
    ],
)
def test_the_first_rung_is_a_sixteenth_of_the_budget_and_never_in_the_warm_up(spec, budget, warmup, rungs):
    assert spec.rungs(budget, warmup) == rungs


def experiment():
    return ExperimentSpec.model_validate(
        {
            "name": "toy",
            "model": {"path": "somewhere"},
            "data": {"train": "a.jsonl"},
            "trial": {"budget": {"target_tokens": BUDGET, "evaluations": 4}},
            "search": {"space": {"lora": {"method": {"rank": 2}}, "full": {"method": {"kind": "full"}}}},
        }
    )


def test_branches_have_brackets_of_their_own_unless_told_otherwise():
    assert HalvingRule.of(AshaSpec(reduction_factor=2), (100, 200)) == PER_BRANCH
    assert HalvingRule.of(AshaSpec(reduction_factor=2, brackets="shared"), (100, 200)) == HALF


def test_the_scheduler_of_a_resumed_search_knows_what_the_journal_knows():
    """It begins anew: rungs kept inside would be empty."""
    asha = pickle.loads(pickle.dumps(make_scheduler(experiment(), BUDGET, "resumed")))
    assert isinstance(asha.base, JournalScheduler)
    histories = replay([started("a"), reported("a", 100, 1.0), started("b"), started("c", branch="full")])
    controller = SimpleNamespace(context=SimpleNamespace(search_id="resumed"), histories=histories, reasons={})

    def decision(trial_id, loss, exit_reason=None):
        trial = SimpleNamespace(trial_id=trial_id, config=CONFIG.to_tune())
        progress = reported(trial_id, 100, loss).progress
        result = SlotResult(slot="s", progress=progress, exit_reason=exit_reason).to_tune()
        with attached(controller):
            return asha.on_trial_result(None, trial, result)

    assert decision("b", 2.0) == TrialScheduler.STOP
    assert decision("b", 0.5) == TrialScheduler.CONTINUE
    assert decision("c", 2.0) == TrialScheduler.CONTINUE
    assert decision("b", 2.0, exit_reason=ExitReason.STOP) == TrialScheduler.NOOP


CONFIG = TrialConfig(number=1, branch="lora", varied={}, spec=TrialSpec())
