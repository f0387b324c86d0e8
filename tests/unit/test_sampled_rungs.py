"""What a loss over a sample decides: the rung where it was measured, and nothing else."""

import io
import math
from types import SimpleNamespace

import pytest
from ray.tune.schedulers import TrialScheduler
from rich.console import Console

from components.cluster.driver.checkpoint_retention import CheckpointRetention
from components.cluster.driver.trial_control import attached
from components.cluster.scheduling.journal_scheduler import JournalScheduler
from components.cluster.scheduling.overdue_ends import overdue_ends
from components.cluster.scheduling.plateau import PlateauRule
from components.cluster.scheduling.successive_halving import HalvingRule
from components.cluster.slots.search_context import SearchContext
from components.cluster.slots.slot_result import SlotResult
from components.experiment.check_search import without_search
from components.experiment.experiment_warnings import experiment_warnings
from components.experiment.load_experiment import load_experiment
from components.experiment.report_marks import report_marks, rungs_alone
from components.experiment.spec import EvaluationSpec, PlateauSpec
from components.models.base.reference import BaseReference
from components.records.events import (
    Progress,
    RungEvaluation,
    TrialEnded,
    TrialHistory,
    TrialProgressed,
    best_report,
)
from components.records.histories import TrialHistories
from components.records.objectives import measured_at_marks, pareto_front
from components.records.unfinished_trials import has_succeeded
from components.reports.leaderboard import leaderboard, ranked
from components.reports.live_view import LiveView
from components.reports.loss_curves import loss_curves_svg
from components.reports.rung_correlation import rung_correlations
from components.reports.search_summary import TrialSummary
from components.search.read_selection import read_selection
from components.storage.open_folder import folder_at
from components.tracking.journal_proof import compare_with_journal
from tests.support import one_trial
from tests.support.experiment_file import EXPERIMENT, problems
from tests.support.printed import shown
from tests.support.records import progress, sampled, started

BUDGET, EVALUATIONS, RUNGS = 400, 4, (25, 100)  # the second rung is an evaluation, too
HALF = HalvingRule(rungs=RUNGS, reduction_factor=2, per_branch=False)


def at(tokens, eval_loss, of=progress, **fields):
    """A trial of this file scores one target in a step."""
    return of(tokens, eval_loss, **{"target_tokens": tokens, "checkpoint": f"/c/{tokens}", **fields})


def both(eval_loss, sample_loss, tokens=100):
    """A report that passes a rung and an evaluation."""
    return at(tokens, eval_loss, rung=RungEvaluation(conversations=16, eval_loss=sample_loss))


def trial(number, *reports, state="running", **fields):
    return TrialHistory(started=started(str(number), number=number, **fields), reports=reports, state=state)


def told(*trials):
    return {history.trial_id: history for history in trials}


def test_a_report_says_which_loss_is_which_and_is_read_back():
    alone, joint = at(25, 3.0, sampled), both(1.5, 2.0)
    assert (alone.is_sampled, alone.objective, alone.rung_objective) == (True, math.inf, 3.0)
    assert (joint.is_sampled, joint.objective, joint.rung_objective) == (False, 1.5, 2.0)
    for report in (alone, joint):
        assert Progress.model_validate_json(report.model_dump_json()) == report
    earlier = progress(1, 1.5).model_dump_json(exclude={"rung"})  # as versions before wrote it
    read = Progress.model_validate_json(earlier)
    assert (read.is_sampled, read.rung_objective) == (False, 1.5)


def test_rungs_compare_all_trials_by_the_sample():
    """Over all conversations the trial that came before is worse than over the sample, and the other way round."""
    known = told(trial(1, at(25, 3.0, sampled), both(9.0, 2.0)), trial(2), trial(3, at(25, 1.0, sampled)))
    assert HALF.stops(known, "2", at(25, 3.1, sampled))
    assert not HALF.stops(known, "2", at(25, 0.9, sampled))
    assert HALF.stops(known, "3", both(1.0, 2.1))
    assert not HALF.stops(known, "3", both(99.0, 1.9))


def test_the_scheduler_of_a_running_search_sees_the_sample():
    scheduler = JournalScheduler(search_id="sampled", rules=[HALF])
    known = told(trial(1, at(25, 3.0, sampled)), trial(2))
    controller = SimpleNamespace(context=SimpleNamespace(search_id="sampled"), histories=known, reasons={})

    def decision(report):
        result = SlotResult(slot="s", progress=report).to_tune()
        with attached(controller):
            return scheduler.on_trial_result(None, SimpleNamespace(trial_id="2"), result)

    assert decision(at(25, 3.1, sampled)) == TrialScheduler.STOP
    assert decision(at(25, 2.9, sampled)) == TrialScheduler.CONTINUE


def test_an_end_that_a_dead_driver_left_undone_follows_from_the_sample():
    histories = TrialHistories()
    for name, loss in (("1", 3.0), ("2", 3.1)):
        histories.record(started(name, number=int(name)))
        report = at(25, loss, sampled)
        histories.record(TrialProgressed(trial_id=name, progress=report, slot="s", time=2.0))
    (end,) = overdue_ends(histories, [HALF], now=3.0, held=lambda _: 0.0)
    assert (end.trial_id, end.state) == ("2", "stopped")


def test_a_plateau_is_of_evaluations_on_all_conversations():
    rule = PlateauRule.of(PlateauSpec(evaluations=1, min_improvement=0.1), BUDGET, EVALUATIONS)
    history = trial(1, at(100, 2.0), at(150, 0.5, sampled))
    assert not rule.stops(told(history), "1", at(160, 9.0, sampled))
    assert not rule.stops(told(history), "1", at(200, 1.5))  # worse than the sample's 0.5, and better than 2.0
    assert rule.stops(told(history), "1", at(200, 1.95))


def test_samplers_compare_trials_by_what_all_of_them_have_at_a_mark():
    marks, alone = report_marks(BUDGET, EVALUATIONS, RUNGS), rungs_alone(BUDGET, EVALUATIONS, RUNGS)
    assert (marks, alone) == ((25, 100, 200, 300, 400), {25})
    reports = [at(25, 3.0, sampled), both(1.5, 2.0), at(200, 1.4), at(400, 1.2)]
    assert measured_at_marks(reports, (), BUDGET, marks, alone) == {1: (3.0,), 2: (1.5,), 3: (1.4,), 5: (1.2,)}
    ended_there = [both(1.5, 2.0, tokens=25)]  # a person ended it with the step that passed the rung
    assert measured_at_marks(ended_there, (), BUDGET, marks, alone) == {1: (2.0,)}
    known = measured_at_marks([at(25, 3.0, sampled)], ("eval_loss", "worker_seconds"), BUDGET, marks, alone)
    assert known == {1: (3.0, 0.0)}


STOPPED = trial(1, at(25, 0.1, sampled), state="stopped")
WHOLE = trial(2, at(25, 3.0, sampled), both(1.5, 2.0), at(150, 0.2, sampled), state="completed")


def test_the_best_checkpoint_and_the_leader_have_evaluations_on_all():
    assert STOPPED.best is None
    assert WHOLE.best.target_tokens == 100
    assert best_report(WHOLE.reports[:1]) is None
    assert [history.trial_id for history in ranked([STOPPED, WHOLE])] == ["2", "1"]
    assert (has_succeeded(STOPPED), has_succeeded(WHOLE)) == (False, True)
    assert pareto_front([STOPPED, WHOLE], ("eval_loss", "worker_seconds"), BUDGET) == {"2"}


def test_what_the_champion_was_chosen_from_are_evaluations_on_all(tmp_path):
    last = WHOLE.model_copy(update={"reports": (*WHOLE.reports, at(400, 1.4))})
    selection = read_selection(folder_at(tmp_path), [STOPPED, last], [1.0])
    assert (selection.chosen_from.evaluations, selection.chosen_from.trials) == (2, 1)


def test_a_rung_is_said_to_foretell_by_what_decided_it():
    trials = [
        trial(number, both(5.0 - number, number), at(400, float(number)), state="completed") for number in (1, 2, 3)
    ]
    marks = {"budget": BUDGET, "evaluations": (100, 400), "branches": [None]}
    (rung,) = rung_correlations(trials, rungs=(100,), **marks)
    (evaluation,) = rung_correlations(trials, rungs=(), **marks)
    assert (rung.correlation, evaluation.correlation) == (pytest.approx(1.0), pytest.approx(-1.0))


def test_tables_and_summaries_mark_a_loss_over_a_sample():
    table = shown(leaderboard([STOPPED, WHOLE], budget=BUDGET))
    assert "~0.1000" in table
    assert "1.5000" in table
    assert "~ over the 16 held-out conversations that decide rungs" in table
    assert "~" not in shown(leaderboard([WHOLE], budget=BUDGET))
    stopped, whole = TrialSummary.of(STOPPED), TrialSummary.of(WHOLE)
    assert (stopped.eval_loss, stopped.rung_loss, stopped.checkpoint) == (None, 0.1, None)
    assert (whole.eval_loss, whole.rung_loss) == (1.5, None)


def test_without_a_terminal_a_line_says_how_many_conversations_it_was():
    screen = io.StringIO()
    view = LiveView(Console(file=screen, width=200), told(STOPPED), planned=1, budget=BUDGET)
    view.show(TrialProgressed(trial_id="1", progress=STOPPED.reports[0], slot="s", time=2.0))
    assert "train loss 1.0000, eval loss ~0.1000 of 16 conversations, 1 tokens/s" in screen.getvalue()


def test_the_curves_have_no_point_of_a_sample():
    without = WHOLE.model_copy(update={"reports": WHOLE.reports[1:2]})
    pictures = [loss_curves_svg([history]) for history in (WHOLE, without)]
    assert len({picture.count("<use ") for picture in pictures}) == 1
    assert loss_curves_svg([STOPPED])


def test_a_checkpoint_evaluated_on_a_sample_is_kept_to_go_on_and_no_longer(tmp_path):
    experiment = load_experiment("experiments/quickstart.yaml", [f"storage.path={tmp_path}"])
    context = SearchContext(
        experiment=experiment,
        search_id="one",
        folder=folder_at(tmp_path),
        prepared=folder_at(tmp_path) / "prepared",
        budget=BUDGET,
        pad_token_id=0,
        base=BaseReference(model=experiment.model, digest="sha256:toy", chat_format="auto"),
    )
    histories, standing = TrialHistories(), []
    histories.subscribe(CheckpointRetention(context, histories).update)
    histories.record(started("1"))
    for of, step, loss in ((sampled, 1, 0.1), (progress, 2, 2.0), (sampled, 3, 0.1), (progress, 4, 2.5)):
        checkpoint = tmp_path / "checkpoints" / "1" / f"step_{step:06d}"
        checkpoint.mkdir(parents=True)
        report = of(step, loss, checkpoint=str(checkpoint))
        histories.record(TrialProgressed(trial_id="1", progress=report, slot="s", time=1.0))
        standing.append([name[-1] for name in (context.checkpoints / "1").list_names()])
    assert standing == [["1"], ["2"], ["2", "3"], ["2", "4"]]  # the best and the last
    histories.record(TrialEnded(trial_id="1", state="stopped", time=2.0))
    assert (context.checkpoints / "1").list_names() == ["step_000002"]


def test_mlflow_has_the_sample_under_names_of_its_own(tmp_path):
    runs = one_trial.runs_at(f"sqlite:///{tmp_path / 'mlflow.db'}")
    events = [
        one_trial.started(),
        *(
            TrialProgressed(trial_id="t1", progress=report, slot="s", time=110.0 + report.step)
            for report in (at(25, 3.0, sampled), both(1.5, 2.0), at(200, 1.4))
        ),
        one_trial.ended(at=400.0),
    ]
    for event in events:
        runs.apply(event)
    points = one_trial.points_of(runs.client, runs.trial_run("t1"))
    found = {key: [(step, value) for step, value, _ in points[key]] for key in points if "loss" in key or "num" in key}
    assert found == {
        "train/loss": [(25, 1.0), (100, 1.0), (200, 1.0)],
        "rung/loss": [(25, 3.0), (100, 2.0)],
        "eval/loss": [(100, 1.5), (200, 1.4)],
        "eval/num_targets": [(100, 5.0), (200, 5.0)],
        "eval/best_loss": [(100, 1.5), (200, 1.4)],
    }
    assert runs.client.get_run(runs.trial_run("t1")).data.tags["turnwise.checkpoint"] == "/c/200"
    assert compare_with_journal(runs, events).differences == ()
    without = [event for event in events if event is not events[1]]
    assert any("rung/loss at step 25 is not in" in each for each in compare_with_journal(runs, without).differences)


def test_a_sample_without_rungs_is_said_to_do_nothing(tmp_path):
    path = tmp_path / "toy.yaml"
    path.write_text(EXPERIMENT)
    asked = "evaluation.conversations_at_rungs=16"
    assert load_experiment(path).evaluation == EvaluationSpec()
    assert not any("at_rungs" in text for text in experiment_warnings(load_experiment(path, [asked])))
    median = load_experiment(path, [asked, "search.scheduler={name: median}"])
    (said,) = [text for text in experiment_warnings(median) if "at_rungs" in text]
    assert said.startswith(f"{asked} does nothing: search.scheduler median has no rungs")
    assert not any("at_rungs" in text for text in experiment_warnings(without_search(load_experiment(path, [asked]))))


def test_a_sample_of_held_out_conversations_decides_nothing_about_answers_to_probes(tmp_path):
    path = tmp_path / "toy.yaml"
    path.write_text(EXPERIMENT)
    probed = ["search.metric=chrf", "evaluation.generate.from=probes", "registry.probes=probes.jsonl"]
    load_experiment(path, probed)
    (said,) = problems(path, *probed, "evaluation.conversations_at_rungs=16")
    assert said.startswith("evaluation.conversations_at_rungs: search.metric chrf is of the answers to registry.probes")
    assert problems(path, "evaluation.conversations_at_rungs=0")
