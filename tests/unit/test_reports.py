"""What people are shown, made from hand-written histories."""

import io
import math

import pytest
from rich.console import Console

from components.experiment.spec import FullMethod
from components.records.events import (
    Extension,
    Stop,
    TrialState,
    replay,
)
from components.records.histories import TrialHistories
from components.records.loss_views import EndCalibration, LossSlice, LossViews
from components.records.outcome import Outcome
from components.records.search_cost import cost_of_search
from components.registry.forgetting import GeneralChange
from components.registry.judge import JudgeVerdict
from components.registry.probes import Probe, probes_answered
from components.registry.result import RegistryResult
from components.registry.side_results import SideResults
from components.reports.html_page import search_page
from components.reports.leaderboard import leaderboard, ranked, worker_seconds
from components.reports.live_view import LiveView
from components.reports.loss_curves import loss_curves_svg
from components.reports.loss_sides import ends_sentence, sides_table
from components.reports.rung_correlation import rung_correlations
from components.reports.search_summary import SearchSummary, trial_summaries
from components.reports.verdict import print_verdict
from tests.support.printed import shown
from tests.support.records import history
from tests.support.three_trials import CLONE, RECORDS, ended, instructed, started

BUDGET = 1000


def test_the_best_checkpoint_leads_and_what_has_none_comes_last():
    histories = ranked(replay(RECORDS).values())
    assert [history.started.number for history in histories] == [2, 1, 3]
    assert histories[1].best.eval_loss == 0.9  # its later, worse report does not count


def test_a_trial_that_failed_after_a_good_report_does_not_lead():
    records = [*RECORDS[:6], ended(1, "completed"), ended(2, "failed", "its slot died")]
    assert [history.started.number for history in ranked(replay(records).values())] == [1, 3, 2]


def test_workers_count_in_the_time_a_trial_took():
    assert [worker_seconds(history) for history in replay(RECORDS).values()] == [10.0, 10.0, 0.0]


def test_the_leaderboard_says_method_hyperparameters_tokens_loss_and_state():
    lines = shown(leaderboard(ranked(replay(RECORDS).values()), budget=BUDGET)).splitlines()
    cells = [line.split() for line in lines[1:]]
    assert cells[0] == ["2", "full", "learning_rate", "0.5", "500", "(50%)", "0.7000", "10", "stopped"]
    assert cells[1] == [
        "1",
        "lora",
        "rank",
        "8",
        "learning_rate",
        "0.000123",
        "1,000",
        "(100%)",
        "0.9000",
        "10",
        "completed",
    ]
    assert cells[2] == ["3", "full", "0", "(0%)", "-", "0", "failed"]


def test_trials_show_their_loss_on_general_text_where_it_was_measured():
    histories = list(replay(RECORDS).values())
    last = histories[0].reports[-1].model_copy(update={"scores": {"general_loss": 3.25}})
    histories[0] = histories[0].model_copy(update={"reports": (*histories[0].reports[:-1], last)})
    head, first, second, *_ = [line.split() for line in shown(leaderboard(histories, budget=BUDGET)).splitlines()]
    assert head[-4:] == ["general", "worker", "s", "state"]
    assert (first[-3], second[-3]) == ("3.250", "-")
    assert [trial.general_loss for trial in trial_summaries(histories, budget=BUDGET)] == [None, 3.25, None]


def views(loss):
    sides = {"turn": (one_slice("1", loss, 6), one_slice("2", loss, 4)), "language": (one_slice("[han]<", loss, 10),)}
    ends = EndCalibration(num_ends=2, at_ends=0.75, elsewhere=0.25, error=0.125)
    return LossViews(whole=one_slice("all", loss, 10), sides=sides, ends=ends)


def one_slice(name, loss, targets):
    return LossSlice(name=name, loss_sum=loss * targets, num_targets=targets, num_right=targets // 2)


ENDS = "ends of turns: probability 0.750 at 2 ends, 0.250 elsewhere, calibration error 0.125"


def test_the_sides_of_two_models_stand_beside_each_other():
    other = views(2.0).model_copy(update={"sides": {"turn": (one_slice("1", 2.0, 6),)}})
    lines = [line.split() for line in shown(sides_table({"bot": views(1.0), "base": other})).splitlines()]
    assert lines == [
        ["by", "targets", "loss", "bot", "right", "loss", "base", "right"],
        ["all", "10", "1.0000", "50%", "2.0000", "50%"],
        ["turn", "1", "6", "1.0000", "50%", "2.0000", "50%"],
        ["2", "4", "1.0000", "50%", "-", "-"],
        ["language", "[han]<", "10", "1.0000", "50%", "-", "-"],
    ]
    assert ends_sentence(other.ends) == ENDS


def test_the_page_and_the_terminal_say_what_stands_beside_the_decision():
    change = GeneralChange(
        other="base",
        candidate_loss=3.1,
        other_loss=2.95,
        change=0.15,
        low=0.12,
        high=None,
        confidence=0.95,
        passages=40,
    )
    judged = JudgeVerdict(other="base", judge="<judge>", wins=3, losses=1, ties=0)
    sides = SideResults(general=(change,), judged=(judged,), candidate_views=views(1.0), base_views=views(2.0))
    summary = summary_with(
        RegistryResult(
            name="bot", version="3", alias="champion", promoted=True, reason="", verdicts=(), probes=(), base_answers=(),
            candidate_answers=(), base_loss=2.0, candidate_loss=1.0, sides=sides,
        )
    )  # fmt: skip
    page = search_page(summary, curves="<svg></svg>", command="")
    assert "general text: 3.100 nats per token against the base&#39;s 2.950: +0.150 [+0.120, unbounded] at 95%" in page
    assert "judge &lt;judge&gt;: win rate 75% against the base (3 won, 1 lost, 0 tied of 4" in page
    assert "<td>language</td><td>[han]&lt;</td>" in page
    assert f"version 3: perplexity 2.72, {ENDS}" in page
    assert f"base: perplexity 7.39, {ENDS}" in page
    console = Console(file=io.StringIO(), width=200)
    print_verdict(console, summary)
    assert list(sides.sentences()) == console.file.getvalue().splitlines()[-2:]
    assert SearchSummary.model_validate_json(summary.model_dump_json()).registry.sides.general == (change,)


def summary_with(registry):
    trials = trial_summaries(replay(RECORDS).values(), budget=BUDGET)
    return SearchSummary(
        experiment="toy", search_id="1", outcome=Outcome.CHAMPION, message="Champion", seconds=1.0, data_digest="d",
        data_reused=False, folder="f", tracking_uri="u", run_id="r", trials=trials, registry=registry,
    )  # fmt: skip


def test_without_a_terminal_every_event_is_one_line():
    console = Console(file=io.StringIO(), width=40)
    histories = TrialHistories()
    with LiveView(console, histories, planned=3, budget=BUDGET) as live:
        histories.subscribe(live.show)
        for event in RECORDS:
            histories.record(event)
    lines = [line.partition("] ")[2] for line in console.file.getvalue().splitlines()]
    assert lines[0] == "trial 1/3 lora started: rank 8  learning_rate 0.000123"
    assert lines[3] == ("trial 1/3 lora 500 target tokens (50%), train loss 1.0000, eval loss 0.9000, 100 tokens/s")
    assert lines[-1] == "trial 3/3 full failed: ValueError: impossible"
    assert len(lines) == len(RECORDS)


INSTRUCTED = [
    *RECORDS[:5],
    instructed(1, Extension(target_tokens=2000, from_step=51), "1"),
    instructed(2, CLONE, "2"),
    instructed(2, Stop(), "3"),
    ended(2, "stopped", "stopped by ann@desk"),
    started(4, FullMethod()).model_copy(update={"parent": "t2", "warm_from": "a"}),
]


def test_the_leaderboard_shows_who_was_extended_and_who_was_cloned():
    lines = shown(leaderboard(replay(INSTRUCTED).values(), budget=BUDGET)).splitlines()
    assert "500 (25% of 2,000)" in lines[1]
    assert "500 (50%)" in lines[2]
    assert "full (warm clone of 2)" in lines[4]


def test_each_instruction_is_a_line_and_clones_count_as_trials():
    console = Console(file=io.StringIO(), width=40)
    histories = TrialHistories()
    with LiveView(console, histories, planned=3, budget=BUDGET) as live:
        histories.subscribe(live.show)
        for event in INSTRUCTED:
            histories.record(event)
    lines = [line.partition("] ")[2] for line in console.file.getvalue().splitlines()]
    assert lines[5:] == [
        "trial 1/3 lora extended to 2,000 target tokens by ann@desk",
        "trial 2/4 full cloned as trial 4 with its weights by ann@desk",
        "trial 2/4 full stopped by ann@desk",
        "trial 2/4 full stopped: stopped by ann@desk",
        "trial 4/4 full started: warm clone of 2",
    ]


def test_an_event_that_comes_twice_counts_once():
    histories = replay([*INSTRUCTED, *INSTRUCTED[5:8]])
    assert [len(history.instructions) for history in histories.values()] == [1, 2, 0, 0]
    assert [clone.number for clone in histories["t2"].clones] == [4]
    assert [history.budget(BUDGET) for history in histories.values()] == [2000, 1000, 1000, 1000]


def test_in_a_terminal_a_table_stands_while_the_search_runs_and_is_gone_after():
    console = Console(file=io.StringIO(), width=140, force_terminal=True, color_system=None)
    histories = TrialHistories()
    with LiveView(console, histories, planned=3, budget=BUDGET) as live:
        histories.subscribe(live.show)
        for event in RECORDS[:5]:
            histories.record(event)
    written = console.file.getvalue()
    assert "0 of 3 ended, 3 running, 0 waiting, best so far trial 2" in written
    assert written.rstrip().endswith("\x1b[2K")


def test_of_more_trials_than_lines_the_best_and_those_that_began_last_are_shown():
    console = Console(file=io.StringIO(), width=140, height=20, force_terminal=True, color_system=None)
    histories = {str(number): history(number, 1.0 / number, 9.0) for number in range(1, 31)}
    running = {
        str(number): history(number, 5.0).model_copy(update={"state": TrialState.RUNNING}) for number in range(31, 39)
    }
    live = LiveView(console, histories | running, planned=40, budget=BUDGET)
    console.print(live._live.get_renderable())
    lines = console.file.getvalue().splitlines()
    assert lines[0].startswith("30 of 40 ended, 8 running, 2 waiting, best so far trial 30")
    assert [int(line.split()[0]) for line in lines[2:-1]] == [25, 26, *range(27, 39)]
    assert lines[-1].strip() == "24 more trials have no room here; --watch --json has all"
    live.histories["1"] = history(1, 0.001)
    console.print(live._live.get_renderable())
    assert "best so far trial 1," in console.file.getvalue().splitlines()[len(lines)]


def test_the_picture_of_many_trials_has_all_curves_and_names_the_best():
    few = {str(number): history(number, 3.0, 2.0 + number / 100) for number in range(1, 100)}
    many = few | {"100": history(100, *[5.0 - step / 500 for step in range(2000)])}
    small, large = loss_curves_svg(few.values()), loss_curves_svg(many.values())
    assert (small.count("<!--  "), large.count("<!--  ")) == (99, 20)  # labels
    assert len(large) < len(small)


def test_a_summary_is_json_without_infinities():
    summaries = trial_summaries(replay(RECORDS).values(), budget=BUDGET)
    assert [(trial.number, trial.eval_loss) for trial in summaries] == [(2, 0.7), (1, 0.9), (3, None)]
    assert all(trial.eval_loss is None or math.isfinite(trial.eval_loss) for trial in summaries)


def test_an_answer_counts_if_it_holds_the_expected_word_in_any_case():
    probes = [
        Probe(messages=({"role": "user", "content": "?"},), expect=expect) for expect in ("Linnet", "Linnet", None)
    ]
    assert probes_answered(["i am LINNET.", "I am a robot", "whatever"], probes) == (1, 2)


def test_the_page_holds_the_verdict_the_trials_and_the_curves_and_loads_nothing():
    summary = SearchSummary(
        experiment="toy <script>",
        search_id="s",
        outcome=Outcome.FINISHED,
        message="It is done & well.",
        seconds=12.0,
        data_digest="0123456789abcdef",
        data_reused=False,
        folder="runs/toy/s",
        tracking_uri="sqlite:///mlflow.db",
        run_id="r",
        cost=cost_of_search(replay(RECORDS).values(), proof=100.0),
        rung_correlations=rung_correlations(
            replay(RECORDS).values(), budget=1000, rungs=(500,), evaluations=(1000,), branches=[None]
        ),
        trials=trial_summaries(replay(RECORDS).values(), budget=BUDGET),
        registry=None,
    )
    curves = loss_curves_svg(replay(RECORDS).values(), base_loss=3.5)
    page = search_page(summary, curves=curves, command="python workflows/tune.py x.yaml")
    assert "It is done &amp; well." in page
    assert "toy &lt;script&gt;" in page
    assert page.count('class="stopped"') == 1
    assert "cost: 120 worker-seconds: 20 training, 100 proof." in page
    assert "rung at 500 target tokens: not known, for 1 of the 2 trials there came to the end" in page
    assert "Again: <code>python workflows/tune.py x.yaml</code></p>" in page
    assert "Again" not in search_page(summary, curves=curves, command="")
    assert "<svg" in page
    assert not [word for word in ("<script", "src=", "@import", "<link") if word in page]


@pytest.mark.parametrize("records", [[], RECORDS[:1]], ids=["no trial", "no report"])
def test_curves_of_nothing_are_an_empty_picture(records):
    assert "</svg>" in loss_curves_svg(replay(records).values())
