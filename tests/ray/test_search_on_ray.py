"""Whole searches on a real Ray cluster of this test's own, with a tiny real model."""

import collections
import contextlib
import os
import re
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import ray

from components.cluster.capacity.autoscaler_config import capacity_of_cluster
from components.cluster.capacity.cluster_capacity import InsufficientCapacityError, check_capacity
from components.cluster.driver.run_on_worker import run_on_worker
from components.cluster.driver.trial_control import controller_of
from components.cluster.run_search import run_search
from components.data.prepare import PreparedDataset
from components.errors import InputError
from components.experiment.load_experiment import load_experiment
from components.experiment.report_marks import rungs_of
from components.experiment.spec import WorkersSpec
from components.records.commands import Request, StopTrial
from components.records.evaluation_record import EvaluationRecord
from components.records.events import TrialEnded, TrialInstructed, TrialProgressed, TrialStarted, replay
from components.records.finalists import repeats_of
from components.records.histories import TrialHistories
from components.records.journal import JOURNAL
from components.records.outcome import Outcome
from components.records.search_cost import TrialCost
from components.records.stop_flag import StopRequest
from components.search.decide_outcome import outcome_of_no_success
from components.search.prepare_search import prepare_search
from components.storage.retry import StorageError
from components.training.rung_sample import RungSample
from components.training.workers import UnfitWorkersError
from tests.support.recorded_searches import SLOT, context_of, final_losses, kill_process, own_cluster, recorded
from tests.support.servers import until
from tests.support.toy_search import toy_search_folder

CHANGES = """
data: {eval_fraction: 0.15}
trial: {budget: {epochs: 2, evaluations: 2}, batch: {rows_per_micro_batch: 1}}
search:
  trials: 6
  space:
    lora:
      method: {kind: lora, rank: {choice: [2, 4]}}
      optimizer: {learning_rate: {log_uniform: [1.0e-3, 1.0e-2]}}
    full:
      method: {kind: full}
      optimizer: {learning_rate: {log_uniform: [1.0e-3, 1.0e-2]}}
resources: {lora: {workers: 1}, full: {workers: 2}}
"""
LORA = "search.space={lora: {optimizer: {learning_rate: {log_uniform: [1.0e-4, 1.0e-2]}}}}"
ONE_SLOT = "search.max_concurrent_trials=1"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cluster")
    return toy_search_folder(folder, CHANGES, conversations=25, absolute=True)


@pytest.fixture(scope="module")
def cluster():
    with own_cluster(num_cpus=2):
        yield


def searched(context, when=None):
    """All events of a search; `when` is called with each as it comes."""
    return recorded(context, *([] if when is None else [when]))


@pytest.fixture(scope="module")
def plain(files, cluster):
    context = context_of(files, "plain")
    return context, searched(context)


def test_unequal_trials_share_one_search_and_all_end(plain):
    _, records = plain
    histories = replay(records).values()
    assert collections.Counter((h.started.branch, h.started.workers) for h in histories) == {
        ("lora", 1): 3,
        ("full", 2): 3,
    }
    assert [(h.state, len(h.reports)) for h in histories] == [("completed", 2)] * 6


def test_a_slot_serves_trial_after_trial(plain):
    context, _ = plain
    slots = list((context.folder / "slots").path.glob("slot-*"))
    assert len(slots) < 6


def test_an_ended_trial_keeps_the_weights_of_its_best_checkpoint_only(plain):
    context, records = plain
    for trial_id, history in replay(records).items():
        (folder,) = (context.checkpoints / trial_id).path.glob("step_*")
        assert str(folder) == history.best.checkpoint
        assert not (folder / "optimizer.safetensors").exists()


def test_the_scheduler_stops_a_trial_in_the_middle_by_its_global_loss(files, cluster):
    """That over the two conversations which decide rungs; at regular evaluations it is over all."""
    overrides = ["search.scheduler={name: asha, reduction_factor: 2}", "trial.budget.evaluations=4"]
    context = context_of(files, "asha", *overrides, "evaluation.conversations_at_rungs=2")
    context = replace(context, rungs=rungs_of(context.experiment, context.budget))
    histories = replay(searched(context)).values()
    states = collections.Counter(history.state for history in histories)
    assert states["stopped"] >= 1
    assert states["completed"] >= 1
    sample, decided = RungSample.of(PreparedDataset.open(context.prepared).eval, 2), collections.Counter()
    for history in histories:
        for report in history.reports:
            kept = EvaluationRecord.read(context.folder, history.trial_id, report.step)
            assert (kept is None) == report.is_sampled
            if kept is not None and report.rung is not None:
                assert report.rung.eval_loss == kept.metrics["eval_loss"].only(sample.conversations).value
            decided[report.is_sampled, report.rung is not None] += 1
        assert (history.best is None) == all(report.is_sampled for report in history.reports)
    assert set(decided) == {(True, True), (False, True), (False, False)}


def test_a_budget_in_worker_seconds_is_kept_within_one_report_of_each_running_trial(files, cluster):
    """Trials that would train for hours; those that could not come to a report have not started."""
    limit = "search.budget.worker_seconds=25"
    long = ["trial.budget={epochs: 20000, evaluations: 2000}", limit]
    context = context_of(files, "budget", *long, "search.space={lora: {method: {rank: 2}}}", "search.trials=8")
    events, histories = [], TrialHistories()
    with histories.subscribed(events.append):
        assert run_search(context, histories) == limit
    assert 1 <= len(histories) < 8
    assert {history.reason for history in histories.values()} == {f"stopped by {limit}"}
    for trial_id, history in histories.items():
        own = [event for event in events if event.trial_id == trial_id]
        told = own.index(next(event for event in own if isinstance(event, TrialInstructed)))
        assert [type(event) for event in own[told + 1 :]] in ([TrialProgressed, TrialEnded], [TrialEnded])
        assert history.best.checkpoint
    costs = [TrialCost.of(history) for history in histories.values()]
    assert sum(cost.total for cost in costs) >= 25.0
    assert all(cost.training > 0 and cost.evaluation > 0 for cost in costs)


def test_a_trial_that_cannot_be_fails_alone_with_its_reason_and_the_others_go_on(files, cluster):
    space = "search.space={good: {method: {rank: 2}}, bad: {method: {target_modules: [nowhere]}}}"
    records = searched(context_of(files, "bad", space, "search.trials=2", ONE_SLOT))
    states = {history.started.branch: (history.state, history.reason) for history in replay(records).values()}
    assert states["good"][0] == "completed"
    assert states["bad"][0] == "failed"
    assert "method.target_modules=['nowhere']" in states["bad"][1]
    assert "q_proj" in states["bad"][1]


def test_a_search_in_another_thread_stops_on_request_and_is_resumed(files, cluster, plain):
    """As in a notebook: signals reach the main thread only."""
    context, histories, stop = context_of(files, "thread"), TrialHistories(), StopRequest()

    def request(event):
        if isinstance(event, TrialProgressed):
            stop.request("the notebook's")

    with histories.subscribed(request), ThreadPoolExecutor(1) as thread:
        thread.submit(run_search, context, histories, stop=stop).result(timeout=300)
    assert stop.reason == "the notebook's"
    assert any(history.state == "running" for history in histories.values()) or len(histories) < 6
    with pytest.raises(KeyError):
        controller_of(context.search_id)  # nothing of the search is left in this process

    run_search(context, histories)
    assert [history.state for history in histories.values()] == ["completed"] * 6
    losses = {history.started.number: history.reports[-1].eval_loss for history in histories.values()}
    assert losses == pytest.approx(final_losses(plain[1]), abs=1e-6)


def test_finalists_are_repeated_with_new_seeds_also_after_an_interruption(files, cluster):
    """The search is stopped with its last planned trial, when its repeats have been asked for and none has begun."""
    changes = "search.trials=2", "search.confirm={top: 1, seeds: 2}", "trial.budget={epochs: 1, evaluations: 2}"
    space = "search.space={narrow: {method: {rank: 2}}, wide: {method: {rank: 4}}}"  # one finalist of each branch
    context = context_of(files, "confirmed", *changes, space, ONE_SLOT)
    histories, stop = TrialHistories(), StopRequest()

    def stop_at_the_end(event):
        if isinstance(event, TrialEnded) and len([each for each in histories.values() if each.state != "running"]) == 2:
            stop.request("enough for today")

    with histories.subscribed(stop_at_the_end):
        run_search(context, histories, stop=stop)
    assert sum(len(history.clones) for history in histories.values()) == 4
    assert not any(history.started.repeat and history.reports for history in histories.values())
    run_search(context, histories)
    drawn = [history for history in histories.values() if not history.started.repeat]
    assert len(histories) == 6
    for finalist in drawn:
        repeats = repeats_of(histories, finalist)
        assert [repeat.started.spec.seed for repeat in repeats] == [1, 2]
        assert all(
            repeat.started.varied == {**finalist.started.varied, "seed": seed} for seed, repeat in enumerate(repeats, 1)
        )
        assert len({repeat.last.eval_loss for repeat in (finalist, *repeats)}) == 3  # a seed makes a difference
        for repeat in repeats:  # and each is kept by conversation
            kept = EvaluationRecord.read(context.folder, repeat.trial_id, repeat.last.step)
            assert kept.metrics["eval_loss"].value == pytest.approx(repeat.last.eval_loss)


def test_a_diverged_trial_fails_with_its_reason(files, cluster):
    space = "search.space={wild: {method: {kind: full}, optimizer: {learning_rate: 1.0e+30}}}"
    (history,) = replay(searched(context_of(files, "wild", space, "search.trials=1"))).values()
    assert history.state == "failed"
    assert "lower optimizer.learning_rate" in history.reason


def test_killed_processes_cost_time_and_nothing_else(files, cluster, plain, caplog):
    victims, killed = (
        [*[(name,) for name in ("RayTrainWorker", "RestartableBoard", "TrainController", "RestartableBoard")], SLOT],
        [],
    )

    def kill_one(record):
        if isinstance(record, TrialProgressed) and victims:
            killed.append(kill_process(*victims.pop(0)))

    records = searched(context_of(files, "killed", "search.max_failures=5"), kill_one)
    assert len(killed) == 5
    assert final_losses(records) == pytest.approx(final_losses(plain[1]), abs=1e-6)
    assert points_of(records) == points_of(plain[1])
    said = [line for line in caplog.messages if "lost its slot" in line]
    assert said
    assert all(line.endswith("(its process or its node ended), and goes on in another one") for line in said)
    assert not any(record.exc_info for record in caplog.records)  # no traceback of Tune's beside it


def points_of(records):
    """By trial number, the steps in the journal: each is there once."""
    steps = collections.defaultdict(list)
    numbers = {record.trial_id: record.number for record in records if isinstance(record, TrialStarted)}
    for record in records:
        if isinstance(record, TrialProgressed):
            steps[numbers[record.trial_id]] += [point.step for point in record.progress.steps]
    return dict(steps)


def test_a_search_resumed_from_a_cut_journal_decides_as_an_undisturbed_one(files, cluster):
    """TPE and ASHA, one trial at a time. The journal ends two reports before the driver did."""
    changes = "search.sampler=tpe", "search.trials=5", "search.warm_up=1", ONE_SLOT
    changes += (LORA,)
    changes += "search.scheduler={name: asha, reduction_factor: 2, brackets: shared}", "trial.budget.evaluations=4"
    whole = searched(context_of(files, "whole", *changes))
    context, reports = context_of(files, "cut", *changes), []

    def die(record):
        reports.extend([record.trial_id] if isinstance(record, TrialProgressed) else [])
        if reports.count(reports[-1] if reports else "") == 4 and len(set(reports)) == 2:
            raise StorageError("the driver dies")

    with pytest.raises(StorageError):
        searched(context, die)
    cut_two_reports(context.folder.path / JOURNAL)
    resumed = searched(context)
    assert decisions_of(resumed) == decisions_of(whole)
    assert points_of(resumed) == points_of(whole)
    assert {state for *_, state in decisions_of(whole).values()} == {"completed", "stopped"}
    assert not (context.folder / "tune").list_names()


def decisions_of(records):
    """By trial number: what was drawn, the losses of all reports, and how it ended."""
    return {
        history.started.number: (
            dict(history.started.varied),
            [round(report.eval_loss, 6) for report in history.reports],
            history.state.value,
        )
        for history in replay(records).values()
    }


def cut_two_reports(journal):
    """Of the journal's end, as of a disk that has lied."""
    lines = journal.read_text().splitlines(keepends=True)
    last = [number for number, line in enumerate(lines) if '"event":"progressed"' in line]
    journal.write_text("".join(lines[: last[-2]]))


def test_a_trial_that_was_lost_with_its_slot_goes_on_when_the_search_is_resumed(files, cluster):
    space = "search.space={lora: {method: {rank: 2}}}"
    context, killed = context_of(files, "lost", space, "search.trials=1", "search.max_failures=0"), []

    def kill_slot(record):
        if isinstance(record, TrialProgressed) and not killed:
            killed.append(kill_process(*SLOT))

    (lost,) = replay(searched(context, kill_slot)).values()
    assert (lost.state, lost.impossible, len(lost.reports)) == ("failed", False, 1)
    assert lost.reason == "lost its slot: its process or its node ended"
    assert outcome_of_no_success([lost], "again").outcome is Outcome.LOST
    records = searched(context)
    (found,) = replay(records).values()
    assert (found.state, len(found.reports)) == ("completed", 2)
    assert found.reports[0] == lost.reports[0]
    assert searched(context) == records  # all has ended, and nothing is done again


class RequestInbox:
    """People who say what they want in this process. The way through the storage is test_control.py's."""

    def __init__(self):
        self.asked, self.replies = [], {}

    def ask(self, command):
        number = str(len(self.replies) + len(self.asked))
        self.asked.append(Request(request_id=number, by="ann@desk", time=1.0, command=command))

    def poll(self):
        new, self.asked = self.asked, []
        return new

    def reply(self, request, reply):
        self.replies[request.request_id] = reply


def test_a_trial_stopped_by_a_person_is_evaluated_where_it_stands(files, cluster):
    space = "search.space={lora: {method: {rank: 2}}}"
    context = context_of(files, "told", space, "search.trials=1", "trial.budget={epochs: 2000, evaluations: 1}")
    inbox = RequestInbox()

    def ask(event):
        if isinstance(event, TrialStarted):
            inbox.ask(StopTrial(trial="1"))

    records = recorded(context, ask, inbox=inbox)
    (history,) = replay(records).values()
    assert inbox.replies["0"].message == "trial 1 finishes its step, reports and ends"
    assert (history.state, history.reason) == ("stopped", "stopped by ann@desk")
    (report,) = history.reports
    assert report.step == len(report.steps)
    assert history.best == report  # it left a checkpoint


def eval_losses_in_ray_s_metrics(search):
    """By trial number, as Prometheus would scrape them."""
    (node,) = ray.nodes()
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    with urllib.request.urlopen(address, timeout=60) as answer:
        lines = answer.read().decode().splitlines()
    samples = [
        line for line in lines if line.startswith("ray_turnwise_trial_eval_loss{") and f'search="{search}"' in line
    ]
    return {int(re.search(r'trial="(\d+)"', line)[1]): float(line.rpartition(" ")[2]) for line in samples}


def test_a_running_trial_is_among_ray_s_own_metrics(files, cluster):
    space = "search.space={lora: {method: {rank: 2}}}"
    context = context_of(files, "shown", space, "search.trials=1", "trial.budget={epochs: 2000, evaluations: 2000}")
    inbox, shown = RequestInbox(), {}

    def look():
        with contextlib.suppress(AssertionError):
            until(lambda: shown.update(eval_losses_in_ray_s_metrics("shown")) or shown, seconds=120)
        inbox.ask(StopTrial(trial="1"))

    looking = threading.Thread(target=look)

    def look_once(event):
        if isinstance(event, TrialProgressed) and looking.ident is None:
            looking.start()

    records = recorded(context, look_once, inbox=inbox)
    looking.join()
    (history,) = replay(records).values()
    assert shown[1] in [pytest.approx(report.eval_loss) for report in history.reports]


def test_a_trial_that_can_never_fit_is_refused_with_the_arithmetic(files, cluster):
    experiment = load_experiment(files / "toy.yaml", ["resources.full.workers=64", "trial.batch.rows_per_step=64"])
    with pytest.raises(
        InsufficientCapacityError,
        match=r"64 workers with 1 CPU each need 64 places on nodes\n.*1 x \(2 CPU\): 1 x 2 places",
    ):
        check_capacity(experiment, capacity_of_cluster())


def test_work_is_done_in_another_process_with_the_resources_of_a_worker(cluster):
    workers = WorkersSpec(cpus_per_worker=2.0)
    assert run_on_worker(workers, os.getpid) != os.getpid()
    assert run_on_worker(workers, lambda: ray.get_runtime_context().get_assigned_resources()) == {"CPU": 2.0}
    with pytest.raises(ValueError, match="invalid literal"):
        run_on_worker(workers, lambda: int("x"))


def test_what_no_worker_can_compute_ends_the_search_once(files, cluster):
    context = context_of(files, "flash", ONE_SLOT)
    model = context.experiment.model.model_copy(update={"attention": "flash_attention_2"})
    context = replace(context, experiment=context.experiment.model_copy(update={"model": model}))
    trials = TrialHistories()
    with pytest.raises(UnfitWorkersError, match="have no package flash-attn") as caught:
        run_search(context, trials)
    histories = list(trials.values())
    failed = [history for history in histories if history.state == "failed"]
    assert failed
    assert {history.reason for history in failed} == {str(caught.value)}
    assert len(histories) < 6  # of those that had not begun none was tried
    assert all(history.state in ("failed", "stopped") for history in histories)  # Tune ends those that ran, silently


def test_a_storage_that_fails_under_the_journal_ends_the_search_with_its_own_error(files, cluster):
    def journal(event):
        if isinstance(event, TrialProgressed):
            raise StorageError("s3://bucket/runs: away for 300 seconds; resume the search")

    with pytest.raises(StorageError, match="away for 300 seconds"):
        recorded(context_of(files, "away", "search.trials=2"), journal)


def test_a_process_that_is_connected_to_ray_is_told_so_before_a_search_is_prepared(files, cluster):
    with pytest.raises(InputError, match="connected to Ray already"):
        prepare_search(load_experiment(files / "toy.yaml"))
