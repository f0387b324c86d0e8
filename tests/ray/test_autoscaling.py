"""A search of unequal trials on a cluster that is nothing but its head: nodes come, one is lost, and all go.

One search, submitted as a job to a real head with a real autoscaler and simulated nodes (clusters.py), is watched by all
tests of this module. Its wide trials are held up (their workers are stopped, as by a machine that hangs) until the narrow
nodes have gone, and then their node is killed. What the trials report must be what one process reports that has never
heard of Ray.
"""

import collections
import contextlib
import json
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from components.data.prepare import PreparedDataset
from components.experiment.load_experiment import load_experiment
from components.experiment.report_marks import rungs_of
from components.models.base.reference import BaseReference
from components.records.events import replay
from components.records.journal import Journal
from components.records.manifest import searches_in
from components.storage.open_folder import folder_at
from components.training.training_data import TrainingData
from components.training.trial_runner import TrialRunner
from components.training.workers import OneWorker
from tests.support.clusters import RAY, cluster, node_type
from tests.support.servers import until
from tests.support.toy_search import toy_search_folder

ROOT = Path(__file__).parents[2]
SECONDS = 400  # for each thing that is waited for; all of them together take a minute on a quiet machine
CHANGES = """
data: {eval_fraction: 0.5}
trial: {batch: {rows_per_micro_batch: 1}}
search:
  trials: 5
  seed: 3
  scheduler: {name: asha, reduction_factor: 2}
  space:
    lora:
      method: {kind: lora, rank: {choice: [2, 4]}}
      optimizer: {learning_rate: {log_uniform: [1.0e-4, 1.0e-2]}}
    small_lora:
      method: {kind: lora, rank: 2}
      optimizer: {learning_rate: {log_uniform: [1.0e-4, 1.0e-2]}}
    full:
      method: {kind: full}
      optimizer: {learning_rate: 5.0e-3}
    lame_full:                   # comes when all others have been scored, and is the worst
      method: {kind: full}
      optimizer: {learning_rate: 1.0e-7}
resources:
  full: {workers: 2, placement: strict_pack}
  lora: {workers: 1, node_labels: {pool: narrow}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("autoscaling")
    tracking = f"tracking: {{uri: 'sqlite:///{folder}/mlflow.db'}}"
    return toy_search_folder(folder, CHANGES + tracking, absolute=True)


@pytest.fixture(scope="module")
def head(folder):
    types = {"small": node_type(cpus=1, most=1, labels={"pool": "narrow"}), "wide": node_type(cpus=2, most=1)}
    with cluster(folder, types, idle_seconds=2) as head:
        yield head


def histories_in(folder):
    place = folder_at(folder / "runs" / "toy")
    searches = searches_in(place)
    return list(replay(Journal(place / searches[-1].search_id).read()).values()) if searches else []


class Submitted:
    """The search, as a job of the cluster."""

    def __init__(self, folder, head):
        self.folder = folder
        submit = [RAY, "job", "submit", "--address", head.dashboard, "--working-dir", ".", "--"]
        with (folder / "job.log").open("wb") as log:
            self.process = subprocess.Popen(
                [*submit, "python", "workflows/tune.py", str(folder / "toy.yaml")],
                cwd=ROOT,
                env=head.environment() | {"OMP_NUM_THREADS": "1"},
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    @property
    def log(self):
        return (self.folder / "job.log").read_text()

    def trials(self, method):
        return [history for history in histories_in(self.folder) if history.started.branch.endswith(method)]

    def goes_on_until(self, holds, poll_seconds=0.1):
        deadline = time.monotonic() + SECONDS
        while not holds():
            assert self.process.poll() is None, self.log[-3000:]
            assert time.monotonic() < deadline, self.log[-3000:]
            time.sleep(poll_seconds)


def train_workers(nodes):
    """The processes of all Train workers on these nodes."""
    found = []
    for process in (child for node in nodes for child in psutil.Process(node.pid).children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            if any("RayTrainWorker" in word for word in process.cmdline()):
                found.append(process)
    return found


@pytest.fixture(scope="module")
def job(folder, head):
    """The submitted search, ended: (it, its status, the node that was killed)."""
    job = Submitted(folder, head)
    try:
        job.goes_on_until(lambda: len(train_workers(head.nodes("wide"))) == 2)
        wide = train_workers(head.nodes("wide"))
        job.goes_on_until(lambda: any(trial.reports for trial in job.trials("full")), poll_seconds=0.01)
        for worker in wide:
            worker.suspend()
        job.goes_on_until(lambda: [trial.state == "running" for trial in job.trials("lora")] == [False] * 3)
        job.goes_on_until(lambda: [node.kind for node in head.nodes()] == ["wide"])
        killed = head.kill_node("wide")
        status = job.process.wait(SECONDS)
    finally:
        job.process.kill()
        job.process.wait()
    until(lambda: head.nodes() == [], SECONDS)
    return job, status, killed


@pytest.fixture(scope="module")
def refused(folder, head):
    """A search of trials that can never fit, beside the other one: (its end, its folder)."""
    place = folder / "refused"
    wishes = [f"storage.path={place}", "resources.full.workers=3", "trial.batch.rows_per_step=3"]
    command = [sys.executable, "workflows/tune.py", str(folder / "toy.yaml"), *(f"--set={wish}" for wish in wishes)]
    ended = subprocess.run(
        command,
        cwd=ROOT,
        env=head.environment() | {"RAY_ADDRESS": head.address, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    return ended, place


@pytest.fixture(scope="module")
def timeline(folder, head, job):
    command = [sys.executable, "workflows/timeline.py", str(folder / "toy.yaml"), "--address", head.dashboard]
    environment = head.environment() | {"PYTHONPATH": str(ROOT)}
    shown, told = (
        subprocess.Popen([*command, *how], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
        for how in ([], ["--json"])
    )
    print("", shown.communicate(timeout=SECONDS)[0], sep="\n")  # for people, by pytest -s
    return json.loads(told.communicate(timeout=SECONDS)[0])


def test_a_trial_that_does_not_fit_the_largest_cluster_is_refused_at_once(refused):
    ended, place = refused
    assert ended.returncode == 3, ended.stderr[-2000:]
    assert "the cluster has no room for a trial, even at its largest (2 nodes beside the head)" in ended.stderr
    assert "3 workers with 1 CPU each need 3 places on one node (strict_pack)" in ended.stderr
    assert "wide, 1 x (2 CPU): 1 x 2 places" in ended.stderr
    assert searches_in(folder_at(place / "toy")) == []


def test_the_job_ends_well_though_a_node_was_killed(job):
    search, status, _ = job
    assert status == 0, search.log[-3000:]
    assert "Champion: models:/turnwise-toy@champion is version 1" in search.log


def test_every_trial_ended_and_some_were_stopped_early(folder, job):
    states = collections.Counter(history.state for history in histories_in(folder))
    assert states.total() == 5
    assert states["failed"] == 0
    assert states["stopped"] >= 1
    assert states["completed"] >= 1


def test_nodes_come_for_trials_and_all_go_and_the_lost_one_is_replaced(timeline, job):
    _, _, killed = job
    assert collections.Counter(node["type"] for node in timeline) == {"head": 1, "small": 1, "wide": 2}
    assert {node["type"] for node in timeline if node["ended"] is None} == {"head"}
    assert killed.node_id in {node["node_id"] for node in timeline}


def test_trials_run_on_the_nodes_they_are_meant_for(timeline):
    ran = {(node["type"], stretch["number"]) for node in timeline for stretch in node["trials"]}
    assert ran == {("wide", 1), ("wide", 2), ("small", 3), ("small", 4), ("small", 5)}


def test_a_node_whose_trials_are_over_goes_while_another_works(timeline):
    (small,) = [node for node in timeline if node["type"] == "small"]
    assert small["ended"] < max(stretch["ended"] for node in timeline for stretch in node["trials"])


def test_what_the_trials_reported_is_what_one_process_reports(folder, job):
    """Whatever was killed, resumed, and trained by two workers on its way."""
    torch.set_num_threads(1)
    experiment = load_experiment(folder / "toy.yaml")
    (manifest,) = searches_in(folder_at(folder / "runs" / "toy"))
    data = TrainingData(dataset=PreparedDataset.open(folder_at(manifest.prepared)), max_tokens=128, pad_token_id=0)
    reference = BaseReference(model=experiment.model, digest="sha256:toy", chat_format="auto")
    rungs = rungs_of(experiment, manifest.budget)
    session = TrialRunner(experiment.model, data, OneWorker(), reference, folder_at(folder / "again"), rungs)
    for history in histories_in(folder):
        session.start(history.trial_id, history.started.spec)
        for report in history.reports:
            again = session.advance()
            assert (report.step, report.eval_loss) == (again.step, pytest.approx(again.eval_loss, abs=1e-5))
