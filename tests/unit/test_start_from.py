"""What a search starts from: given points, earlier searches, and a learning rate that the model's size decides."""

import math
import statistics

import pytest
from optuna.trial import TrialState as StudyState

from components.cluster.scheduling.branched_searcher import BranchedSearcher
from components.cluster.scheduling.samplers import random_only
from components.errors import InputError
from components.experiment.branch_models import models_of
from components.experiment.check_search import check_search
from components.experiment.draw_trials import sample_trials
from components.experiment.experiment_errors import ExperimentError
from components.experiment.learning_rate_prior import expected_learning_rate, settle_learning_rates
from components.experiment.load_experiment import load_experiment
from components.experiment.space import branches_of, change_trial, trial_spec
from components.experiment.spec import ExperimentSpec, TrialSpec
from components.records.events import TrialEnded, TrialProgressed
from components.records.journal import Journal
from components.records.manifest import SearchManifest
from components.search.start_from import Terms, start_from
from tests.support.experiment_file import problems
from tests.support.records import progress, started
from tests.support.sampling import drawn

BUDGET = 1000
RATE, RANK = "optimizer.learning_rate", "method.rank"
POINTS = "search.start_from=[{branch: lora, method.rank: 8, optimizer: {learning_rate: 5e-4}}, {branch: full}]"


def test_given_points_come_first_in_their_branch_and_the_rest_is_drawn(path):
    experiment = load_experiment(path, [POINTS])
    first = next(trial for trial in sample_trials(experiment) if trial.branch == "lora")
    assert (first.varied[RANK], first.varied[RATE]) == (8, 5e-4)
    learning = load_experiment(path, [POINTS, "search.sampler=tpe"])
    suggested = [drawn(BranchedSearcher(learning, BUDGET))]
    assert (suggested[0]["varied"][RANK], suggested[0]["varied"][RATE]) == (8, 5e-4)
    assert 0 <= suggested[0]["varied"]["method.dropout"] < 0.1


def test_what_a_given_point_leaves_to_chance_is_drawn_by_the_seed(path):
    def first(seed):
        experiment = load_experiment(path, [POINTS, "search.sampler=tpe", f"search.seed={seed}"])
        return drawn(BranchedSearcher(experiment, BUDGET))["varied"]["method.dropout"]

    assert first(1) == first(1) != first(2)


@pytest.mark.parametrize(
    ("point", "problem"),
    [
        (
            "{branch: lora, method.rank: 12}",
            "search.start_from.0.method.rank: 12 is not in {choice: [4, 8]}; give a value of that range, or widen"
            " search.space.lora.method.rank",
        ),
        (
            "{branch: full, optimizer.learning_rate: 1.0}",
            "search.start_from.0.optimizer.learning_rate: 1.0 is not in {log_uniform: [1.0e-05, 0.0002]}; give a value"
            " of that range, or widen search.space.full.optimizer.learning_rate",
        ),
        (
            "{branch: lora, method.kind: full}",
            "search.start_from.0.method.kind: full, but search.space.lora.method.kind is lora; leave it out, or give"
            " it a range",
        ),
        (
            "{branch: lora, method.ranks: 8}",
            'search.start_from.0.method.ranks: unknown key "method.ranks"; did you mean "method.rank"? (valid:'
            " method.dropout, method.kind, method.rank, optimizer.learning_rate): a point has values that lora varies",
        ),
        (
            "{method.rank: 8}",
            "search.start_from.0: has no branch of search.space (lora, full); write latest, search:ID,"
            " search:EXPERIMENT/ID, or a point, e.g. {branch: lora, method.rank: 16}",
        ),
        (
            "yesterday",
            "search.start_from.0: yesterday names no search; write latest, search:ID, search:EXPERIMENT/ID, or a point, e.g."
            " {branch: lora, method.rank: 16}",
        ),
        (
            "[{branch: full, optimizer.learning_rate: 1e-4}, {branch: full, optimizer: {learning_rate: 1e-4}}]",
            "search.start_from.1: is search.start_from.0 again; give each point once",
        ),
        (
            "[{branch: full}, {branch: full}, {branch: full}, {branch: full}]",
            "search.start_from: gives 4 points of full, which has 3 trials; raise search.trials",
        ),
    ],
)
def test_a_point_that_is_none_of_the_space_is_refused_with_its_place(path, point, problem):
    written = point if point.startswith("[") else f"[{point}]"
    assert problems(path, f"search.start_from={written}", "search.sampler=tpe") == [problem]


# Earlier searches


@pytest.fixture
def experiment(path, tmp_path):
    return load_experiment(path, [f"storage.path={tmp_path / 'runs'}", "search.sampler=tpe"])


def keep(experiment, search_id, trials, *, digest="d1", finished=True, created=1.0, budget=BUDGET):
    """Writes an earlier search: of each trial its branch, its values, and its (target tokens, eval loss)."""
    manifest = SearchManifest(
        search_id=search_id,
        experiment=experiment,
        created=created,
        prepared=f"{experiment.storage.path}/prepared/{digest}",
        budget=budget,
        finished=finished,
    )
    folder = experiment.folder / search_id
    manifest.write(folder)
    journal = Journal(folder)
    for number, (branch, varied, reports) in enumerate(trials, start=1):
        trial_id = f"{search_id}-{number}"
        spec = trial_spec(experiment, branches_of(experiment)[branch], varied)
        journal.append(started(trial_id, number=number, branch=branch, varied=varied, spec=spec))
        for step, (tokens, eval_loss) in enumerate(reports, start=1):
            report = progress(step, eval_loss, target_tokens=tokens)
            journal.append(TrialProgressed(trial_id=trial_id, progress=report, slot="s", time=1.0))
        journal.append(TrialEnded(trial_id=trial_id, state="completed", time=2.0))
    journal.close()


def lora(rank=4, dropout=0.05, rate=5e-4):
    return {RANK: rank, "method.dropout": dropout, RATE: rate}


TRIALS = [
    ("lora", lora(), [(250, 3.0), (1000, 2.0)]),
    ("lora", lora(rank=8), [(250, 4.0)]),
    ("full", {RATE: 1e-4}, [(1000, 1.0)]),
]


def starting(experiment, *names, **changes):
    """The experiment with `search.start_from`, and other keys of `search`."""
    tree = experiment.model_dump()
    return ExperimentSpec.model_validate({**tree, "search": {**tree["search"], "start_from": list(names), **changes}})


def known_of(experiment, resumed=None, digest="d1", budget=BUDGET):
    digests = dict.fromkeys(experiment.search.space, digest)
    return start_from(experiment, resumed, Terms(models=models_of(experiment), digests=digests, budget=budget))


@pytest.mark.parametrize("name", ["latest", "search:one", "search:toy/one"])
def test_the_studies_begin_with_the_trials_of_an_earlier_search(experiment, name):
    keep(experiment, "one", TRIALS)
    keep(experiment, "two", TRIALS[:1], finished=False, created=2.0)
    now = starting(experiment, name)
    start = known_of(now)
    assert start.sentences == ("search.start_from: tpe knows 3 trials of toy/one",)
    searcher = BranchedSearcher(now, BUDGET, start.trials)
    trials = searcher._studies["lora"].trials
    assert [(trial.state, trial.value, trial.params[RANK]) for trial in trials] == [
        (StudyState.COMPLETE, 2.0, 0),
        (StudyState.PRUNED, 4.0, 1),
    ]
    assert searcher._studies["full"].best_value == 1.0
    assert drawn(searcher)["number"] == 1


@pytest.mark.parametrize("sampler", ["tpe", "gp", "cmaes"])
def test_a_sampler_that_knows_an_earlier_search_suggests_from_the_first_trial_on(experiment, sampler):
    """Three seeds, one trial each: chance is 0.42 decades away from the best learning rate, on average."""
    rates = (1e-5, 2e-5, 4e-5, 8e-5, 1e-4, 1.2e-4, 2e-4)
    keep(experiment, "one", [("full", {RATE: rate}, [(1000, math.log10(rate / 1e-4) ** 2)]) for rate in rates])
    away = []
    for seed in range(3):
        now = starting(experiment, "latest", sampler=sampler, trials=2, seed=seed)
        known = known_of(now).trials
        assert random_only(now, 1, {"full": len(known)}).keys() == {"lora"}
        searcher = BranchedSearcher(now, BUDGET, known)
        suggested = [drawn(searcher) for _ in range(2)]
        (rate,) = [trial["varied"][RATE] for trial in suggested if trial["branch"] == "full"]
        away.append(abs(math.log10(rate / 1e-4)))
    assert statistics.mean(away) < 0.25


def test_a_search_that_was_resumed_keeps_to_the_searches_that_it_began_with(experiment):
    keep(experiment, "one", TRIALS)
    now = starting(experiment, "latest")
    began = SearchManifest(
        search_id="now", experiment=now, created=3.0, prepared="p", started_from=known_of(now).searches
    )
    assert began.started_from == ("toy/one",)
    keep(experiment, "two", TRIALS[:1], created=2.0)
    assert known_of(now).searches == ("toy/two",)
    assert known_of(now, resumed=began).searches == ("toy/one",)


def test_the_first_search_has_no_latest_one_and_says_so(experiment):
    start = known_of(starting(experiment, "latest"))
    assert (start.trials, start.searches) == ((), ())
    assert start.sentences == ("search.start_from: no search of toy has ended yet, so there is none to learn from",)
    with pytest.raises(
        InputError, match=r"no search:nowhere in .* \(there: none\); name one of these, or leave it out"
    ):
        known_of(starting(experiment, "search:nowhere"))


def test_trials_outside_a_range_that_was_narrowed_are_left_out_and_counted(experiment):
    keep(experiment, "one", TRIALS)
    narrow = {
        **experiment.search.space,
        "lora": {**experiment.search.space["lora"], "method": {"rank": 8, "dropout": 0.05}},
    }
    narrow["lora"] = {
        "method": {"rank": {"choice": [8, 16]}, "dropout": {"uniform": [0, 0.1]}},
        "optimizer": {"learning_rate": {"log_uniform": [1e-4, 2e-3]}},
    }
    start = known_of(starting(experiment, "latest", space=narrow))
    assert start.sentences == ("search.start_from: tpe knows 2 trials of toy/one (1 left out: outside the ranges)",)
    searcher = BranchedSearcher(starting(experiment, space=narrow), BUDGET, start.trials)
    assert [trial.params[RANK] for trial in searcher._studies["lora"].trials] == [0]  # rank 8, the first value now


def test_a_search_that_cannot_be_compared_is_refused_with_all_differences(experiment):
    keep(experiment, "one", TRIALS)
    changed = experiment.model_dump()
    changed["model"]["path"], changed["trial"]["schedule"]["name"] = "elsewhere", "linear"
    changed["search"]["space"]["full"]["batch"] = {"rows_per_step": {"choice": [4, 8]}}
    changed["evaluation"]["conversations_at_rungs"] = 16
    with pytest.raises(InputError) as caught:
        known_of(starting(ExperimentSpec.model_validate(changed), "latest"), digest="d2", budget=2000)
    assert str(caught.value).splitlines() == [
        "search.start_from: one cannot be compared with this search; set these back, or leave it out",
        "  data: was d1, is d2 (the records, their split, the template or max_tokens)",
        "  trial.budget: was 1000 target tokens, is 2000",
        "  model.path: was 'somewhere', is 'elsewhere'",
        "  evaluation.conversations_at_rungs: was None, is 16",
        "  search.space.lora.schedule.name: was 'cosine', is 'linear'",
        "  search.space.full: varied optimizer.learning_rate; varies batch.rows_per_step, optimizer.learning_rate",
    ]


# Learning rates by method and size


@pytest.mark.parametrize(
    ("kind", "parameters", "published"),
    [("lora", 7e9, 2e-4), ("lora", 65e9, 1e-4), ("full", 8e9, 2.9e-5), ("full", 135e6, 1.3e-4), ("full", 70e9, 1.7e-5)],
)
def test_a_learning_rate_is_expected_where_studies_found_the_best(kind, parameters, published):
    assert published / 1.5 < expected_learning_rate(kind, parameters) < published * 1.5
    assert expected_learning_rate("lora", parameters) == pytest.approx(10 * expected_learning_rate("full", parameters))


def test_auto_becomes_a_range_around_what_is_expected(path):
    overrides = [f"search.space.{branch}.optimizer.learning_rate=auto" for branch in ("lora", "full")]
    written = load_experiment(path, overrides)
    settled, sentences = settle_learning_rates(written, 135_000_000)
    assert written.search.space["lora"]["optimizer"] == {"learning_rate": "auto"}
    assert branches_of(settled)["lora"].domains[RATE].log_uniform == (1.8e-4, 4.6e-3)
    assert branches_of(settled)["full"].domains[RATE].log_uniform == (1.8e-5, 4.6e-4)
    assert sentences[0] == (
        "search.space.lora.optimizer.learning_rate=auto: from 0.00018 to 0.0046, around 0.00091, which is expected of lora"
        " for 135 million parameters"
    )
    check_search(settled)
    assert settle_learning_rates(settled, 7) == (settled, [])


def test_a_point_outside_the_range_that_auto_became_is_refused(path):
    auto = "search.space.full.optimizer.learning_rate=auto"
    written = load_experiment(path, [auto, "search.start_from={branch: full, optimizer.learning_rate: 0.01}"])
    settled, _ = settle_learning_rates(written, 135_000_000)
    with pytest.raises(ExperimentError, match=r"0\.01 is not in \{log_uniform: \[1\.8e-05, 0\.00046\]\}"):
        known_of(settled)


def test_auto_is_a_range_and_stands_in_a_branch_only(path):
    assert problems(path, "trial.optimizer.learning_rate=auto") == [
        "trial.optimizer.learning_rate: auto is a range: all trials share what stands under trial:, so write"
        " search.space.BRANCH.optimizer.learning_rate: auto"
    ]
    with pytest.raises(
        ExperimentError, match=r"auto is a range: a clone has one value, e\.g\. optimizer.learning_rate=0\.0002"
    ):
        change_trial(load_experiment(path), TrialSpec(), {RATE: "auto"})
    (problem,) = problems(path, "search.space.lora.optimizer.weight_decay=auto")
    assert "should be a valid number" in problem
