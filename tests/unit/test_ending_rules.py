"""Hyperband, median stopping and the plateau, over replayed histories whose answers are known; and rank correlations."""

import pytest
from pydantic import ValidationError

from components.cluster.scheduling.comparable import objective_at, objectives_at
from components.cluster.scheduling.median_stopping import MedianRule
from components.cluster.scheduling.plateau import PlateauRule
from components.cluster.scheduling.scheduler import ending_rules
from components.cluster.scheduling.successive_halving import HalvingRule
from components.experiment.report_marks import largest_warmup, next_mark, report_marks, rungs_of
from components.experiment.spec import ExperimentSpec, HyperbandSpec, MedianSpec, PlateauSpec, SearchSpec
from components.records.events import Extension, TrialInstructed, TrialProgressed, replay
from components.reports.rung_correlation import rung_correlations
from components.statistics.rank_correlation import spearman
from tests.support.records import progress, started


def curve(number, *losses, distance=100, **fields):
    """A trial that reports these losses, so many target tokens apart."""
    name = str(number)
    reports = [progress(step, loss, target_tokens=distance * step) for step, loss in enumerate(losses, start=1)]
    told = [TrialProgressed(trial_id=name, progress=report, slot="s", time=2.0) for report in reports]
    return [started(name, number=number, **fields), *told]


def stops(rule, histories, number, tokens, objective):
    return rule.stops(histories, str(number), progress(tokens, objective, target_tokens=tokens))


def test_hyperband_judges_trials_beside_those_with_the_same_first_rung():
    rule = HalvingRule(rungs=(100, 400), reduction_factor=4, per_branch=True, skips=(0, 0, 1, 2))
    known = replay([*curve(1, 1.0), *curve(2), *curve(3), *curve(4)])
    assert stops(rule, known, 2, 100, 2.0)
    assert not stops(rule, known, 3, 100, 2.0)  # begins at the second rung,
    assert not stops(rule, known, 3, 400, 2.0)  # where nobody of its bracket has been
    assert not stops(rule, known, 4, 400, 9.0)  # goes to its end


def test_hyperband_gives_each_branch_its_shares_of_first_rungs():
    skips = HyperbandSpec().skips(["lora", "full"] * 25, 2)
    assert [skips[0::2].count(skip) for skip in range(3)] == [16, 6, 3]
    assert skips[0::2] == skips[1::2]
    assert skips[:2] == (0, 0)


EXTENDED = TrialInstructed(
    trial_id="1", instruction=Extension(target_tokens=900, from_step=1), request_id="1", by="ann@desk", time=2.0
)
MEDIAN = MedianRule(marks=(100, 200, 300), min_trials=3, per_branch=True)


def test_a_trial_ends_once_its_best_is_worse_than_the_median_of_the_others_means():
    others = [*curve(1, 5.0, 3.0, 1.0), *curve(2, 5.0, 4.0), *curve(3, 6.0, 5.0)]  # at 200: means of 4, 4.5 and 5.5
    known = replay([*others, *curve(4, 4.9)])
    assert stops(MEDIAN, known, 4, 200, 4.6)
    assert not stops(MEDIAN, known, 4, 200, 4.5)
    assert not stops(MEDIAN, replay([*others, *curve(4, 4.4)]), 4, 200, 9.0)  # its best so far counts
    assert not stops(MEDIAN, known, 4, 150, 9.0)  # between two marks nothing is decided
    assert not stops(MEDIAN, replay([*others[:-1], *curve(4, 4.9)]), 4, 200, 9.0)  # two others have come as far
    assert not stops(MEDIAN, replay([*others, *curve(4, branch="full")]), 4, 100, 9.0)


@pytest.mark.parametrize("losses", [(), (3.0,), (3.0, float("nan"), 1.0, 0.5)])
@pytest.mark.parametrize("distance", [40, 100, 150, 400])
def test_all_rungs_at_once_are_as_each_by_itself(losses, distance):
    """Also where a trial passes several rungs between two reports, or reports several times between two rungs."""
    (known,) = replay(curve(1, *losses, distance=distance)).values()
    extended = known.model_copy(update={"instructions": (EXTENDED,)})
    for history in (known, extended):
        alone = [objective_at(history, rung) for rung in MEDIAN.marks]
        assert objectives_at(history, MEDIAN.marks) == [objective for objective in alone if objective is not None]


def test_median_stopping_begins_after_the_warm_up_and_ends_before_the_budget():
    assert MedianRule.of(MedianSpec(), 400, 4, 0.3).marks == (200, 300)
    assert MedianRule.of(MedianSpec(grace_target_tokens=300), 400, 4, 0.0).marks == (300,)


PLATEAU = PlateauRule.of(PlateauSpec(evaluations=2, min_improvement=0.1), budget=1000, evaluations=10)


@pytest.mark.parametrize(
    ("before", "now", "ends"),
    [
        ((3.0, 2.0), 1.95, False),  # one evaluation without an improvement that counts
        ((3.0, 2.0, 1.95), 1.92, True),
        ((3.0, 2.0, 1.95), 1.90, False),  # small steps, together an improvement
        ((3.0, 2.0, 2.5), 1.5, False),
        ((3.0,), 3.0, False),
    ],
)
def test_a_trial_on_a_plateau_ends(before, now, ends):
    known = replay(curve(1, *before))
    assert stops(PLATEAU, known, 1, 100 * (len(before) + 1), now) is ends


def test_reports_at_rungs_are_no_evaluations_of_a_plateau():
    rungs = replay(curve(1, 3.0, 3.0, 3.0, distance=30))
    assert not stops(PLATEAU, rungs, 1, 100, 3.0)
    assert PLATEAU.reason == "on a plateau: 2 evaluations without an improvement of 0.1"


def experiment(scheduler, **search):
    rates = {"optimizer": {"learning_rate": {"log_uniform": [1e-5, 1e-3]}}}
    space = {
        "lora": {"schedule": {"warmup_fraction": {"choice": [0.0, 0.2]}}, **rates},
        "full": {"method": {"kind": "full"}, **rates},
    }
    trial = {"budget": {"target_tokens": 1600, "evaluations": 4}, "schedule": {"warmup_fraction": 0.1}}
    tree = {"name": "toy", "model": {"path": "m"}, "data": {"train": "a.jsonl"}, "trial": trial}
    return ExperimentSpec.model_validate(
        {**tree, "search": {"space": space, "scheduler": {"name": scheduler}, **search}}
    )


def test_every_scheduler_has_its_name_and_its_rules():
    rules = {name: ending_rules(experiment(name), 1600) for name in ("asha", "hyperband", "median", "none")}
    assert [type(rule) for found in rules.values() for rule in found] == [HalvingRule, HalvingRule, MedianRule]
    assert rules["asha"][0].rungs == (320, 1280)  # after the longest warm-up of the space
    assert set(rules["hyperband"][0].skips) == {0, 1}
    assert [type(rule) for rule in ending_rules(experiment("none", plateau={}), 1600)] == [PlateauRule]


@pytest.mark.parametrize(
    "wrong",
    [{"name": "asha", "min_trials": 3}, {"name": "median", "reduction_factor": 2}, {"name": "median", "min_trials": 1}],
)
def test_each_scheduler_refuses_what_another_one_takes(wrong):
    with pytest.raises(ValidationError):
        SearchSpec(space={"lora": {}}, scheduler=wrong)


def test_trials_report_at_rungs_and_evaluations_and_once_where_both_are():
    asha = experiment("asha", space={"lora": {"schedule": {"warmup_fraction": 0.0}}})
    assert largest_warmup(experiment("asha")) == 0.2
    marks = report_marks(1600, 4, rungs_of(asha, 1600))
    assert marks == (100, 400, 800, 1200, 1600)
    nexts = {tokens: next_mark(tokens, 1600, 4, (100, 400)) for tokens in (0, 99, 100, 399, 450, 1599)}
    assert nexts == {0: 100, 99: 100, 100: 400, 399: 400, 450: 800, 1599: 1600}
    assert next_mark(1600, 1600, 4, (100, 400)) == 2000  # of an extended trial


def test_ranks_correlate_as_by_hand():
    assert spearman([1, 2, 3, 4], [10, 20, 30, 40]) == pytest.approx(1.0)
    assert spearman([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1.0)
    assert spearman([1, 2, 3, 4], [2, 1, 4, 3]) == pytest.approx(0.6)  # 1 - 6 x 4 / (4 x 15)
    assert spearman([1, 1, 2], [1, 2, 3]) == pytest.approx(0.8660254)  # equal ones share 1.5
    assert spearman([1, 2], [1, 2]) is None
    assert spearman([1, 1, 1], [1, 2, 3]) is None


def test_a_rung_is_compared_with_the_end_over_the_trials_that_came_to_both():
    longer = TrialInstructed(
        trial_id="6", instruction=Extension(target_tokens=900, from_step=1), request_id="1", by="ann@desk", time=3.0
    )
    trials = [curve(1, 3.0, 1.0), curve(2, 4.0, 2.0), curve(3, 5.0, 3.0), curve(4, 1.0)]
    others = [curve(5, 1.0, 9.0, warm_from="a"), [*curve(6, 1.0, 9.0), longer]]
    known = replay([event for events in (*trials, *others) for event in events]).values()
    (rung,) = rung_correlations(known, budget=200, rungs=(100,), evaluations=(100, 200), branches=[None])
    assert (rung.reached, rung.compared, rung.correlation) == (4, 3, pytest.approx(1.0))
    assert rung.sentence == "rung at 100 target tokens: +1.00 over 3 of the 4 trials there"
    full, lora = rung_correlations(known, budget=200, rungs=(), evaluations=(100, 200), branches=["full", "lora"])
    assert (
        full.sentence == "evaluation at 100 target tokens, full: not known, for 0 of the 0 trials there came to the end"
    )
    assert (lora.is_rung, lora.compared) == (False, 3)
