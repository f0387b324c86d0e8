"""Samplers by name: each learns, and never suggests a configuration twice."""

import math
import random
import statistics

import pytest
from optuna.trial import TrialState

from components.cluster.driver.equal_trials import equal_trial
from components.cluster.scheduling.branched_searcher import BranchedSearcher
from components.cluster.scheduling.samplers import generation_size, sampler_remarks
from components.cluster.scheduling.trial_ends import end_as_complete
from components.experiment.draw_trials import sample_trials
from components.experiment.experiment_warnings import experiment_warnings
from components.experiment.load_experiment import load_experiment
from components.experiment.space import configuration_key, num_trials
from components.records.events import Clone, TrialInstructed, replay
from components.records.objectives import pareto_front
from components.reports.leaderboard import leaderboard
from components.reports.search_summary import trial_summaries
from tests.support.experiment_file import problems
from tests.support.printed import shown
from tests.support.records import history, started
from tests.support.sampling import BUDGET, drawn, end, experiment, report

LEARNING = ("tpe", "gp", "cmaes")
SMOOTH = {
    "lora": {
        "method": {"dropout": {"uniform": [0.0, 0.2]}},
        "optimizer": {"learning_rate": {"log_uniform": [1e-5, 1e-1]}},
    }
}
FOUR = {"lora": {"method": {"rank": {"choice": [4, 8]}, "alpha": {"choice": [16, 32]}}}}


def loss(spec):
    """A bowl: 0 at a learning rate of 0.01 and a dropout of 0.05."""
    return (math.log10(spec["optimizer"]["learning_rate"]) + 2) ** 2 + (10 * (spec["method"]["dropout"] - 0.05)) ** 2


def searched(trials, **search):
    """The trials of a search, one after another."""
    searcher, found = BranchedSearcher(experiment(trials, space=SMOOTH, **search), BUDGET), []
    for _ in range(trials):
        trial = drawn(searcher)
        found.append(trial)
        end(searcher, trial["number"], report(BUDGET, loss(trial["spec"])))
    return found


@pytest.mark.parametrize(
    ("sampler", "trials", "warm_up", "seeds"), [("tpe", 16, 5, 8), ("gp", 10, 4, 2), ("cmaes", 24, 8, 8)]
)
def test_a_sampler_that_learns_finds_better_trials_than_chance(sampler, trials, warm_up, seeds):
    def best_of(sampled):
        return min(loss(spec) for spec in sampled)

    learned, random = [], []
    for seed in range(seeds):
        of_sampler = searched(trials, sampler=sampler, seed=seed, warm_up=warm_up)
        learned.append(best_of([trial["spec"] for trial in of_sampler]))
        at_random = sample_trials(experiment(trials, space=SMOOTH, sampler="random", seed=seed))
        random.append(best_of([trial.spec.model_dump() for trial in at_random]))
    assert statistics.mean(learned) < 0.7 * statistics.mean(random)


def test_warm_up_says_how_many_results_come_before_the_first_suggestion():
    """Until then two samplers of one seed that differ in warm_up draw alike; another number parts them."""
    early, late = ([trial["varied"] for trial in searched(8, sampler="tpe", warm_up=warm_up)] for warm_up in (2, 6))
    assert early[:2] == late[:2]
    assert early[2:6] != late[2:6]


# No configuration twice


@pytest.mark.parametrize("sampler", ["random", *LEARNING])
def test_every_configuration_of_a_small_space_is_trained_once(sampler):
    asked = experiment(8, space=FOUR, sampler=sampler)
    assert num_trials(asked) == 4
    if sampler == "random":
        found = [trial.varied for trial in sample_trials(asked)]
    else:
        searcher, found = BranchedSearcher(asked, BUDGET), []
        for number in range(1, 5):
            found.append(drawn(searcher)["varied"])
            end(searcher, number, report(BUDGET, number))
        assert not searcher.has_more
    assert len({(varied["method.rank"], varied["method.alpha"]) for varied in found}) == 4
    assert experiment_warnings(asked) == [
        "search.trials=8, but branch lora has only 4 different configurations: 4 trials"
    ]


def test_what_a_small_branch_leaves_goes_to_the_others():
    asked = experiment(8, space={**FOUR, "full": {"method": {"kind": "full"}}})
    assert num_trials(asked) == 5
    wide = experiment(8, space={**SMOOTH, "full": {"method": {"kind": "full"}}})
    assert [trial.branch for trial in sample_trials(wide)].count("lora") == 7
    assert experiment_warnings(wide) == [
        "search.trials=8, but branch full has only 1 configuration: 1 trial; the other branches get the rest"
    ]


def test_two_branches_that_list_one_configuration_are_refused(path):
    space = "search.space={a: {method: {rank: {choice: [2, 4]}}}, b: {method: {rank: {choice: [4, 8]}}}}"
    assert problems(path, space) == [
        "search.space.b: 1 of its 2 configurations are those of search.space.a, too, e.g. {method.rank: 4}; leave them out"
        " of one of the two"
    ]


def test_a_suggestion_is_no_clone_that_a_person_asked_for():
    searcher = BranchedSearcher(experiment(3, space=FOUR), BUDGET)
    clones = [trial.spec for trial in sample_trials(experiment(1, space=FOUR, seed=5, sampler="random"))]
    searcher.avoid(clones)
    suggested = [searcher.draw().spec for _ in range(3)]
    assert configuration_key(clones[0]) not in map(configuration_key, suggested)
    assert len(set(map(configuration_key, suggested))) == 3


def test_a_clone_equal_to_a_trial_that_exists_is_named():
    asked = experiment(4, space=SMOOTH, sampler="random")
    first, second, *_ = [trial.spec for trial in sample_trials(asked)]
    warm = Clone(trial_id="c", number=5, branch="lora", spec=second, varied={}, warm_from="a/there")
    told = TrialInstructed(trial_id="a", instruction=warm, request_id="r", by="ann@desk", time=2.0)
    histories = replay([started("a", number=1, spec=first), told])
    assert equal_trial(asked, histories, first, None) == "trial 1"
    assert equal_trial(asked, histories, second, None) == "trial 2, which has not started yet,"
    assert equal_trial(asked, histories, second, "a/there") == "trial 5"
    assert equal_trial(asked, histories, first, "a/there") is None
    changed = first.model_copy(update={"optimizer": first.optimizer.model_copy(update={"learning_rate": 0.5})})
    assert equal_trial(asked, histories, changed, None) is None
    learning = experiment(4, space=FOUR)
    (planned, *_) = sample_trials(experiment(4, space=FOUR, sampler="random"))
    assert equal_trial(learning, {}, planned.spec, None) == "a trial of branch lora that has not started yet"


# What samplers learn that see complete trials only


WHOLE = [{1: (3.0, 8.0), 4: (2.0, 8.0)}, {1: (5.0, 9.0), 4: (2.0, 9.0)}, {1: (4.0, 9.0)}]


@pytest.mark.parametrize(
    ("measured", "impossible", "others", "values"),
    [
        ({1: (6.0, 7.0), 4: (1.0, 7.5)}, False, WHOLE, (1.0, 7.5)),
        ({1: (6.0, 7.0)}, False, WHOLE, (4.0, 7.0)),  # the complete ones lost 1 and 3 from there to the end
        ({2: (6.0, 7.0)}, False, WHOLE, (6.0, 7.0)),  # no complete one was evaluated there
        ({1: (6.0, 7.0)}, True, WHOLE, (4.0, 9.0)),
        ({}, True, [], None),
        ({}, False, WHOLE, None),
    ],
)
def test_a_stopped_trial_is_completed_for_them(measured, impossible, others, values):
    end = end_as_complete(measured, marks=(250, 500, 750, 1000), impossible=impossible, others=others)
    assert (end.state, end.values) == (TrialState.FAIL if values is None else TrialState.COMPLETE, values)


def test_a_search_with_two_metrics_tells_both_with_seconds_of_the_whole_budget():
    asked = experiment(4, space=SMOOTH, metrics=["eval_loss", "worker_seconds"])
    searcher = BranchedSearcher(asked, BUDGET)
    end(searcher, drawn(searcher)["number"], report(250, 2.0, worker_seconds=5.0))
    assert searcher._studies["lora"].trials[0].values == [2.0, 20.0]


@pytest.mark.parametrize("sampler", ["tpe", "gp"])
def test_two_metrics_are_searched_by_a_sampler_that_can(sampler):
    asked = experiment(6, space=SMOOTH, metrics=["eval_loss", "worker_seconds"], warm_up=3, sampler=sampler)
    searcher = BranchedSearcher(asked, BUDGET)
    for number in range(6):
        end(searcher, drawn(searcher)["number"], report(BUDGET, number % 3))
    assert [len(trial.values) for trial in searcher._studies["lora"].trials] == [2] * 6


def with_seconds(number, eval_loss, seconds, tokens=10):
    made = history(number, eval_loss)
    (report,) = made.reports
    report = report.model_copy(update={"worker_seconds": seconds, "target_tokens": tokens})
    return made.model_copy(update={"reports": (report,)})


def test_the_front_of_many_trials_is_that_of_all_pairs():
    """Few different values, so that many trials are equal in one number, and some in both."""
    numbers = random.Random(0)
    pairs = [(numbers.randrange(12) / 4, float(numbers.randrange(12))) for _ in range(80)]
    trials = [with_seconds(number, *pair) for number, pair in enumerate(pairs)]
    beaten = {
        str(number)
        for number, (loss, seconds) in enumerate(pairs)
        if any(a <= loss and b <= seconds and (a, b) != (loss, seconds) for a, b in pairs)
    }
    assert pareto_front(trials, ("eval_loss", "worker_seconds"), 10) == set(map(str, range(80))) - beaten


def test_the_front_has_the_trials_that_no_other_beats():
    """The third is stopped at half its budget: 6 seconds are 12 in whole."""
    trials = [with_seconds(1, 1.0, 20.0), with_seconds(2, 2.0, 10.0), with_seconds(3, 2.0, 6.0, 5), history(4)]
    metrics = ("eval_loss", "worker_seconds")
    assert pareto_front(trials, metrics, 10) == {"1", "2"}
    assert pareto_front(trials, (), 10) == frozenset()
    assert [trial.on_front for trial in trial_summaries(trials, budget=10, metrics=metrics)] == [
        True,
        True,
        False,
        False,
    ]
    assert trial_summaries(trials, budget=10)[0].on_front is None
    lines = shown(leaderboard(trials, budget=10, metrics=metrics)).splitlines()
    assert [line.rstrip().endswith("*") for line in lines[1:5]] == [True, True, False, False]
    assert "the champion is chosen by eval_loss" in " ".join(" ".join(lines[5:]).split())


# What is said, and what is refused


def test_what_cmaes_cannot_do_is_said():
    choices = {"method": {"rank": {"choice": [1, 2, 4, 8]}, "alpha": {"choice": [8, 16, 32, 64]}}}
    space = {"lora": {**SMOOTH["lora"], "schedule": {"name": {"choice": ["cosine", "linear"]}}}, "small": choices}
    assert list(sampler_remarks(experiment(24, space=space, sampler="cmaes", warm_up=4), 1, {})) == [
        "search.sampler=cmaes: in branch lora it draws no choices: TPE does, one by one (schedule.name); tpe and gp draw"
        " them with the numbers",
        "search.sampler=cmaes: branch small has no range of numbers, so TPE draws its choices; take tpe or gp",
    ]
    assert generation_size(2) == 6
    (said,) = sampler_remarks(experiment(8, space=SMOOTH, sampler="cmaes"), 1, {})
    assert said == (
        "search.sampler=cmaes: branch lora has 4 trials after its warm-up, and CMA-ES learns after each generation of 6;"
        " raise search.trials, or take tpe or gp"
    )
    assert list(sampler_remarks(experiment(8, space=SMOOTH, sampler="cmaes"), 1, {"lora": 9})) == []


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["search.warm_up=3"], "warm_up=3: sampler random learns from no results; take tpe, gp or cmaes"),
        (
            ["search.metrics=[worker_seconds, eval_loss]"],
            "metrics: the first one is what the search goes by, eval_loss",
        ),
        (["search.metrics=[eval_loss]"], "metrics: [eval_loss] compares by one number, as without it"),
        (
            ["search.metrics=[eval_loss, joy]"],
            "metrics: joy is none of worker_seconds, seconds, train_loss, tokens_per_sec",
        ),
        (["search.metrics=[eval_loss, seconds, seconds]"], "metrics: each is named once"),
        (
            ["search.metrics=[eval_loss, seconds]", "search.sampler=cmaes"],
            "metrics: sampler cmaes follows one number; take tpe or gp",
        ),
        (["search.start_from=latest"], "start_from: sampler random learns nothing from latest; take tpe, gp or cmaes"),
        (["search.start_from={branch: lora}", "search.sampler=grid"], "start_from: sampler grid tries every point"),
    ],
)
def test_settings_of_sampling_that_make_no_sense_are_refused(path, overrides, said):
    (problem,) = problems(path, *overrides)
    assert problem.startswith(f"search: {said}")


def test_random_search_may_trade_off_too(path):
    assert load_experiment(path, ["search.metrics=[eval_loss, seconds]"]).search.metrics == ("eval_loss", "seconds")
