"""Trials that share a slot, on a real Ray cluster: each as it would be alone, also when its host or the worker is killed."""

import json
from dataclasses import replace

import pytest
import torch

from components.cluster.slots.worker import make_runner
from components.records.events import TrialEnded, TrialProgressed, TrialStarted, replay
from components.training.workers import OneWorker
from tests.support.recorded_searches import SLOT, context_of, final_losses, kill_process, own_cluster, recorded
from tests.support.toy_search import toy_search_folder

CHANGES = """
data: {eval_fraction: 0.15}
trial: {budget: {epochs: 6, evaluations: 3}, batch: {rows_per_step: 4, rows_per_micro_batch: 4}}
search:
  trials: 5
  trials_per_slot: 3
  space:
    lora:
      method: {kind: lora, rank: {choice: [2, 4]}, dropout: 0.1}
      optimizer: {learning_rate: {log_uniform: [2.0e-3, 1.0e-2]}}
"""
BOTH = """search.space={
  lora: {method: {kind: lora, rank: 4, dropout: 0.1}, optimizer: {learning_rate: {log_uniform: [2.0e-3, 1.0e-2]}}},
  full: {method: {kind: full}, optimizer: {learning_rate: {log_uniform: [2.0e-3, 1.0e-2]}}}}"""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return toy_search_folder(tmp_path_factory.mktemp("shared"), CHANGES, conversations=25, absolute=True)


@pytest.fixture(scope="module")
def cluster():
    with own_cluster(num_cpus=1):
        yield


def alone(context, records):
    """The last losses of the same trials in one process, one after another."""
    torch.set_num_threads(1)
    runner = make_runner(replace(context, folder=context.folder / "alone"), OneWorker())
    losses = {}
    for history in replay(records).values():
        runner.start(history.trial_id, history.started.spec)
        while not (progress := runner.advance()).done:
            pass
        losses[history.started.number] = progress.eval_loss
    return losses


def runs_of(context):
    return list((context.folder / "slots").path.glob("slot-*"))


def most_at_once(records):
    running, most = set(), 0
    for record in records:
        if isinstance(record, TrialStarted):
            running.add(record.trial_id)
        if isinstance(record, TrialEnded):
            running.discard(record.trial_id)
        most = max(most, len(running))
    return most


def test_trials_that_share_a_slot_are_as_they_are_alone_and_others_have_their_own(files, cluster):
    context = context_of(files, "together", BOTH)
    records = recorded(context)
    histories = replay(records).values()
    assert [(history.state, len(history.reports)) for history in histories] == [("completed", 3)] * 5
    assert sorted(history.started.branch for history in histories) == ["full"] * 2 + ["lora"] * 3
    lora = {history.trial_id for history in histories if history.started.branch == "lora"}
    assert most_at_once([record for record in records if record.trial_id in lora]) == 3
    slots = {record.trial_id: record.slot for record in records if isinstance(record, TrialProgressed)}
    assert len({slots[trial] for trial in lora}) == 3  # of which one had a run
    assert len(runs_of(context)) == 1 + len({slots[trial] for trial in slots.keys() - lora})
    assert final_losses(records) == pytest.approx(alone(context, records), abs=1e-5)


def test_a_host_without_a_trial_waits_for_its_guests(files, cluster):
    """The first trial ends early, and no other waits for its place."""
    wild, mild = (
        {"method": {"kind": "lora", "rank": 2}, "optimizer": {"learning_rate": rate}} for rate in (1e30, 1e-3)
    )
    context = context_of(files, "waits", f"search.space={json.dumps({'wild': wild, 'mild': mild})}", "search.trials=2")
    records = recorded(context)
    ends = [record.trial_id for record in records if isinstance(record, TrialEnded)]
    histories = replay(records)
    assert [(histories[trial].started.branch, histories[trial].state) for trial in ends] == [
        ("wild", "failed"),
        ("mild", "completed"),
    ]
    assert len(runs_of(context)) == 1


def test_when_their_worker_is_killed_all_of_its_trials_go_on(files, cluster):
    context, killed = context_of(files, "worker"), []

    def kill(event):
        if isinstance(event, TrialProgressed) and not killed:
            killed.append(kill_process("RayTrainWorker"))

    records = recorded(context, kill)
    assert len(killed) == 1
    assert len(runs_of(context)) == 1
    assert final_losses(records) == pytest.approx(alone(context, records), abs=1e-5)


def test_when_a_slot_is_killed_the_others_go_on_in_its_run_or_in_another(files, cluster):
    """It is the host, whose run ends with it, or a guest, whose seat another one takes."""
    context, killed = context_of(files, "slots", "search.max_failures=3"), []

    def kill(event):
        if isinstance(event, TrialProgressed) and len(killed) < 3:
            killed.append(kill_process(*SLOT))

    records = recorded(context, kill)
    assert len(killed) == 3
    assert len(runs_of(context)) >= 2
    assert {history.state for history in replay(records).values()} == {"completed"}
    assert final_losses(records) == pytest.approx(alone(context, records), abs=1e-5)
