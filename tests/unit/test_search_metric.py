"""The metric that a search goes by: read from its file, kept in its records, followed by all that ranks trials."""

import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from components.experiment.check_search import without_search
from components.experiment.load_experiment import load_experiment
from components.experiment.spec import SCORES_OF_REPLIES, EvaluationSpec, MetricSpec
from components.experiment.spec.evaluation import DEFAULT_SCORES
from components.records.events import TrialHistory, TrialProgressed, best_report
from components.records.outcome import Outcome
from components.reports.html_page import search_page
from components.reports.leaderboard import leaderboard, ranked
from components.reports.live_view import LiveView
from components.reports.search_summary import SearchSummary, TrialSummary
from components.tracking.mlflow_access import open_store
from components.tracking.mlflow_runs import SearchRuns
from tests.support.experiment_file import EXPERIMENT, problems
from tests.support.one_trial import experiment
from tests.support.records import progress, started

CHRF = MetricSpec(name="chrf", direction="maximize")
TONE = MetricSpec(name="my.scores:tone", direction="minimize")


@pytest.fixture
def file(tmp_path):
    (tmp_path / "toy.yaml").write_text(EXPERIMENT)
    return tmp_path / "toy.yaml"


# What a file may say


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (["search.metric=chff"], 'search.metric: no metric has this name (did you mean "chrf"?); there are eval_loss, chrf,'),
        (["search.metric=a.b:c"], "search.metric: a.b:c is a function of yours: say where it is better, as {name: a.b:c,"),
        (["search.metric={name: chrf, direction: minimize}"], "search.metric: chrf is better where it is more: leave"),
        (["search.metric=3"], 'search.metric: want a name, {name: ..., direction: minimize | maximize}, or a function of'),
        (["evaluation.generate.scores=[eval_loss]"], "eval_loss is measured at every evaluation, without generating"),
        (["evaluation.generate.scores=[chrf, chrf]"], "evaluation.generate: scores has chrf twice"),
        (
            ["search.metric=chrf", "evaluation.generate.when=end"],
            "evaluation.generate.when: end gives no chrf before a trial's end, and search.scheduler asha stops trials by it;"
            " set when: every, or search.scheduler: {name: none}",
        ),
        (
            ["evaluation.generate.from=probes"],
            "evaluation.generate.from: probes are asked for, and registry.probes names no file; name one, or set from: eval",
        ),
        (
            ["evaluation.generate.scores=[json_schema]"],
            "evaluation.generate.json_schema: the score json_schema needs a schema here; give one or its file, or leave the",
        ),
        (
            ["search.metric=chrf", "resources.full={workers: 2, parallel: fsdp}"],
            "resources.full.parallel: fsdp shards the weights, and search.metric chrf is measured by generating: every token"
            " would gather all weights again; set parallel: ddp, or leave evaluation.generate out and set search.metric:"
            " eval_loss",
        ),
    ],
)  # fmt: skip
def test_a_metric_that_cannot_be_is_refused_with_the_way_out(file, overrides, problem):
    assert any(problem in found for found in problems(file, *overrides)), problems(file, *overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        ["resources.full={workers: 2, parallel: fsdp}"],  # nothing is generated
        ["search.metric=chrf", "evaluation.generate.when=end", "search.scheduler={name: none}"],
        ["evaluation.generate.when=end"],  # ASHA goes by the loss
    ],
)
def test_what_generation_does_not_touch_may_stay(file, overrides):
    load_experiment(file, overrides)


def test_a_metric_of_replies_turns_generation_on_and_is_scored_first(file):
    assert load_experiment(file).generation is None
    generate = load_experiment(file, ["search.metric=expect"]).generation
    assert [score.name for score in generate.scores] == ["expect", *DEFAULT_SCORES]
    named = {"search.metric": "stop_rate", "evaluation.generate": {"scores": ["chrf", "stop_rate"]}}
    loaded = load_experiment(file, named)
    assert [score.name for score in loaded.generation.scores] == ["stop_rate", "chrf"]
    assert without_search(loaded).search.metric == loaded.search.metric


def test_a_section_is_kept_as_it_was_written(file):
    given = {"evaluation.generate": {"from": "eval", "conversations": 5, "scores": [TONE.model_dump()]}}
    evaluation = load_experiment(file, given).evaluation
    assert EvaluationSpec.model_validate_json(evaluation.model_dump_json()) == evaluation
    assert evaluation.generate.scores == (TONE,)


def test_the_readme_lists_the_scores_as_they_are():
    text = (Path(__file__).parents[2] / "experiments" / "README.md").read_text(encoding="utf-8")
    words = {"maximize": "higher", "minimize": "lower"}
    for name, (direction, meaning) in SCORES_OF_REPLIES.items():
        assert f"| `{name}` | {words[direction]} | {meaning} |" in text


# What ranks trials


def report(step, eval_loss, metric=CHRF, **scores):
    return progress(step, eval_loss, checkpoint=f"at {step}", metric=metric, scores=scores)


def trial(number, *reports):
    return TrialHistory(started=started(str(number), number=number), reports=reports, state="completed")


TRIALS = [trial(1, report(1, 0.5, chrf=20.0)), trial(2, report(1, 0.9, chrf=30.0)), trial(3, report(1, 0.1))]


def test_the_metric_and_not_the_loss_ranks_trials_and_reports():
    assert [history.started.number for history in ranked(TRIALS)] == [2, 1, 3]  # the third has no value
    reports = [report(1, 0.5, chrf=20.0), report(2, 0.9, chrf=30.0), report(3, 0.1, chrf=25.0), report(4, 0.0)]
    assert best_report(reports).step == 2


def test_of_equal_scores_the_one_with_less_loss_is_better():
    reports = [report(1, 0.5, chrf=20.0), report(2, 0.4, chrf=20.0), report(3, 0.4, chrf=20.0)]
    assert best_report(reports).step == 2
    tied = [trial(1, report(1, 0.5, chrf=20.0)), trial(2, report(1, 0.4, chrf=20.0))]
    assert [history.started.number for history in ranked(tied)] == [2, 1]


# What people and programs see


def test_the_leaderboard_has_a_column_for_the_metric():
    console = Console(file=io.StringIO(), width=140)
    console.print(leaderboard(ranked(TRIALS), budget=10))
    head, first, *_, last = console.file.getvalue().splitlines()
    assert re.search(r"target tokens +chrf +eval loss", head)
    assert re.search(r"30\.0000 +0\.9000", first)
    assert re.search(r"- +-", last)


def test_a_line_of_the_live_view_has_every_score():
    console = Console(file=io.StringIO(), width=200)
    event = TrialProgressed(trial_id="1", progress=TRIALS[0].reports[0], slot="a", time=1.0)
    LiveView(console, {"1": TRIALS[0]}, planned=1, budget=10).show(event)
    assert "eval loss 0.5000, chrf 20, 1 tokens/s" in console.file.getvalue()


def test_the_page_has_a_column_for_each_score_the_metric_first():
    scored = trial(1, report(1, 0.5, chrf=20.0, bleu=3.25))
    summary = SearchSummary(
        experiment="toy", search_id="s", outcome=Outcome.FINISHED, message="", seconds=1.0, data_digest="d",
        data_reused=False, folder="f", tracking_uri="u", run_id="r", metric=CHRF, trials=(TrialSummary.of(scored),),
        registry=None,
    )  # fmt: skip
    page = search_page(summary, curves="<svg></svg>", command="")
    assert "<th>chrf</th><th>bleu</th><th>eval loss</th>" in page
    assert re.search(r">20</td>.*>3.25</td>", page)
    assert "Ranked by chrf (maximize)" in page


@pytest.mark.parametrize("metric", [CHRF, TONE], ids=["chrf", "a function"])
def test_the_run_of_a_trial_names_the_checkpoint_that_is_best_by_the_metric(metric, tmp_path):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    searched = experiment("metric")
    searched = searched.model_copy(update={"search": searched.search.model_copy(update={"metric": metric})})
    better, worse = (30.0, 20.0) if metric is CHRF else (20.0, 30.0)
    reports = [
        report(1, 0.5, metric, **{metric.name: worse}),
        report(2, 0.9, metric, **{metric.name: better}),
        report(3, 0.1, metric, **{metric.name: worse}),
    ]
    start = started("t1")
    for each in reports:  # each time a new driver, which reads what is there
        runs = SearchRuns(open_store(uri), uri, searched, "search-1")
        runs.apply(start)
        runs.apply(TrialProgressed(trial_id="t1", progress=each, slot="a", time=1.0))
    run = runs.client.get_run(runs.trial_run("t1"))
    key = metric.name.replace(":", ".")
    assert run.data.tags["turnwise.checkpoint"] == "at 2"
    assert run.data.metrics[f"eval/{key}"] == worse
    assert run.data.metrics[f"eval/best_{key}"] == better
    assert run.data.metrics["eval/best_loss"] == 0.9
