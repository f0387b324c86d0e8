"""What TPE is told of trials, and that it looks at it. The searcher is driven with known losses, without a cluster."""

import math
import statistics

import pytest
from optuna.samplers._tpe.sampler import _split_trials
from optuna.trial import TrialState

from components.cluster.capacity.cluster_capacity import ClusterCapacity, NodeType
from components.cluster.scheduling.branched_searcher import BranchedSearcher
from components.cluster.scheduling.samplers import random_only, startup_trials
from components.cluster.scheduling.search_warnings import check_rungs, remarks
from components.experiment.draw_trials import sample_trials
from components.experiment.spec import ExperimentSpec
from tests.support.sampling import BUDGET, SPACE, drawn, end, experiment, report

BEST = {"lora": -2.0, "full": -4.0}  # log10 of the learning rate with the lowest loss
WORSE = {"lora": 0.0, "full": 5.0}  # full is far behind LoRA, whatever its learning rate


def distance(branch, learning_rate):
    return abs(math.log10(learning_rate) - BEST[branch])


def distances_of_tpe(trials, **search):
    """By branch, of each trial in its order, when one trial runs at a time and its loss is its distance."""
    searcher, found = BranchedSearcher(experiment(trials, **search), BUDGET), {name: [] for name in SPACE}
    for _ in range(trials):
        trial = drawn(searcher)
        off = distance(trial["branch"], trial["spec"]["optimizer"]["learning_rate"])
        found[trial["branch"]].append(off)
        end(searcher, trial["number"], report(BUDGET, off + WORSE[trial["branch"]]))
    return found


@pytest.fixture(scope="module")
def searches():
    return [distances_of_tpe(24, seed=seed) for seed in range(10)]


@pytest.mark.parametrize("branch", ["lora", "full"])
def test_tpe_looks_at_results_in_every_branch_also_in_one_that_is_far_behind(searches, branch):
    """After the 6 of a branch's 12 trials that are drawn at random; ten seeds. Random search stays further away."""
    nearest = [min(search[branch][6:]) for search in searches]
    sampled = [sample_trials(experiment(24, seed=seed)) for seed in range(10)]
    of_branch = [[trial.spec for trial in trials if trial.branch == branch] for trials in sampled]
    at_random = [min(distance(branch, spec.optimizer.learning_rate) for spec in specs[6:]) for specs in of_branch]
    assert statistics.mean(nearest) < 0.6 * statistics.mean(at_random)


@pytest.mark.parametrize(("trials", "startup"), [(1, 1), (2, 1), (4, 2), (8, 4), (21, 10), (200, 10)])
def test_half_of_a_branch_s_trials_at_most_ten_are_drawn_at_random(trials, startup):
    assert startup_trials(trials) == startup


def test_the_same_seed_suggests_the_same_trials_and_another_one_others():
    assert distances_of_tpe(8, seed=3) == distances_of_tpe(8, seed=3)
    assert distances_of_tpe(8, seed=3) != distances_of_tpe(8, seed=4)


def test_branches_with_equal_ranges_are_not_given_equal_values():
    twins = {name: {"optimizer": {"learning_rate": {"log_uniform": [1e-5, 1e-1]}}} for name in ("one", "two")}
    searcher = BranchedSearcher(experiment(2, space=twins), BUDGET)
    first, second = (drawn(searcher)["varied"] for _ in range(2))
    assert first != second


def told_of(*reports, evaluations=4, space=SPACE, impossible=False):
    """(state, value, intermediate values, violation) of a trial as its study has it after these reports and its end."""
    none = {"name": "none"}  # no rungs between the evaluations
    searcher = BranchedSearcher(experiment(evaluations=evaluations, space=space, scheduler=none), BUDGET)
    end(searcher, drawn(searcher)["number"], *reports, impossible=impossible)
    (trial,) = searcher._studies["lora"].trials
    return trial.state, trial.value, trial.intermediate_values, sum(trial.constraints.values())


def test_a_trial_that_spent_its_budget_is_told_with_its_loss_there():
    assert told_of(report(251, 3.0), report(1002, 1.5)) == (TrialState.COMPLETE, 1.5, {}, 0)


def test_a_stopped_trial_is_pruned_with_the_loss_of_its_last_evaluation():
    """254 target tokens and 251 are the same evaluation: the longer step of one batch must not make it the better trial."""
    assert told_of(report(254, 3.0)) == (TrialState.PRUNED, 3.0, {250: 3.0}, 0)
    assert told_of(report(251, 3.0), report(503, 2.0)) == (TrialState.PRUNED, 2.0, {500: 2.0}, 0)


def test_a_trial_stopped_by_a_person_counts_with_its_last_evaluation():
    assert told_of(report(251, 3.0), report(400, 2.0)) == (TrialState.PRUNED, 3.0, {250: 3.0}, 0)
    assert told_of(report(90, 4.0)) == (TrialState.PRUNED, 4.0, {0: 4.0}, 0)


def test_an_extended_trial_is_told_with_its_loss_at_the_budget_of_all_trials():
    assert told_of(report(501, 2.0), report(1001, 1.5), report(1750, 1.0))[:2] == (TrialState.COMPLETE, 1.5)


def test_a_diverged_trial_is_worse_than_a_stopped_one_and_the_sooner_the_worse():
    """Optuna ranks what violates a constraint last, by how much it does."""
    late = told_of(report(251, 3.0), report(501, 2.0), report(600, math.inf), impossible=True)
    early = told_of(report(100, math.nan), impossible=True)
    assert late == (TrialState.PRUNED, None, {}, pytest.approx(0.6))
    assert early == (TrialState.PRUNED, None, {}, 1.0)


def test_a_configuration_that_cannot_be_trained_is_the_worst():
    assert told_of(impossible=True) == (TrialState.PRUNED, None, {}, 1.0)


def test_a_trial_whose_slot_died_for_good_counts_with_what_it_had_shown():
    assert told_of()[0] == TrialState.FAIL  # nothing is known of it
    assert told_of(report(251, 3.0)) == (TrialState.PRUNED, 3.0, {250: 3.0}, 0)


def test_stopped_trials_rank_after_complete_ones_and_diverged_ones_last():
    """As TPE ranks them when it takes so and so many of them for good ones."""
    space = {"lora": SPACE["lora"]}
    searcher = BranchedSearcher(experiment(40, space=space), BUDGET)
    reports = [report(251, 0.1), report(1001, 9.0), report(100, math.inf), report(501, 7.0), report(504, 6.0)]
    for number in range(11):
        end(searcher, drawn(searcher)["number"], reports[min(number, 4)], impossible=number == 2)
    study = searcher._studies["lora"]
    ranking = [
        {trial.number for trial in _split_trials(study, study.trials, count)[0]} for count in (1, 2, 8, 9, 10, 11)
    ]
    assert ranking[0] == {1}  # the complete one, though its loss is the highest
    assert ranking[1] < ranking[2] == {1, 4, 5, 6, 7, 8, 9, 10}  # then those that reached 500, 6.0 before 7.0
    assert ranking[3] - ranking[2] == {3}
    assert ranking[4] - ranking[3] == {0}  # then 250
    assert ranking[5] - ranking[4] == {2}


# What is said before a search starts


def room(cpus):
    kind = NodeType(name="here", max_count=1, resources={"CPU": float(cpus)}, head=True)
    return ClusterCapacity(types=(kind,), max_nodes=0, grows=False)


def test_a_small_search_that_looks_at_results_is_not_remarked_upon():
    assert remarks(experiment(8), BUDGET, room(2)) == []


def test_tpe_that_can_only_be_random_is_said_before_the_search_starts():
    assert remarks(experiment(8), BUDGET, room(8)) == [
        f"search.sampler=tpe: branch {branch} is a random search: of its 4 trials the last is suggested when 0 have ended,"
        " for 10 trials run or wait at once, and TPE wants 2 results before it suggests one; raise search.trials, or lower"
        " search.max_concurrent_trials"
        for branch in ("lora", "full")
    ]
    assert remarks(experiment(8, max_concurrent_trials=2), BUDGET, room(8)) == []


def test_a_branch_with_one_trial_is_random_whatever_runs_beside_it():
    (said, *asha) = remarks(experiment(1, space={"lora": SPACE["lora"]}), BUDGET, room(2))
    assert said.startswith("search.scheduler asha stops no trial of lora: it has 1 trial")
    assert "it has 1 trial, and TPE wants 1 result before it suggests one" in asha[0]


def test_branches_one_after_the_other_fill_the_cluster_with_their_own_trials():
    """Of equal workers they take turns, and a branch has half of what runs at once; wide ones come first."""
    wide_first = ExperimentSpec.model_validate({**experiment(8).model_dump(), "resources": {"full": {"workers": 2}}})
    assert list(random_only(experiment(8), at_once=4)) == []
    assert list(random_only(wide_first, at_once=4)) == ["full", "lora"]


def test_a_first_rung_at_which_nobody_can_be_stopped_is_refused():
    def asha(**options):
        return experiment(scheduler={"name": "asha", **options})

    check_rungs(asha(first_rung_target_tokens=999), BUDGET)
    with pytest.raises(
        ValueError, match=r"first_rung_target_tokens=1000 stops no trial: each ends at 1,000 target tok"
    ):
        check_rungs(asha(first_rung_target_tokens=1000), BUDGET)
    with pytest.raises(ValueError, match=r"grace_target_tokens=2000 stops no trial"):
        check_rungs(experiment(scheduler={"name": "median", "grace_target_tokens": 2000}), BUDGET)


@pytest.mark.parametrize(
    ("scheduler", "said"),
    [
        (
            {"name": "asha", "first_rung_target_tokens": 49},
            "the first rung at 49 target tokens lies in the warm-up of some",
        ),
        (
            {"name": "median", "min_trials": 4},
            "median stops no trial of lora: it has 4, and one is judged once 4 others",
        ),
        ({"name": "hyperband"}, "hyperband stops no trial of lora that begins at rung 2: it has 1 trial"),
    ],
)
def test_a_scheduler_that_does_less_than_it_seems_is_remarked_upon(scheduler, said):
    assert said in remarks(experiment(8, sampler="random", scheduler=scheduler), BUDGET, room(2))[0]


def test_asha_stops_trials_that_are_evaluated_once_for_rungs_have_own_reports():
    assert remarks(experiment(8, evaluations=1, sampler="random"), BUDGET, room(2)) == []
    late = experiment(8, sampler="random", space={"lora": {"schedule": {"warmup_fraction": 1.0}}})
    (said,) = remarks(late, BUDGET, room(2))
    assert said.startswith("search.scheduler asha stops no trial: none is judged before its end; lower schedule.warmup")
