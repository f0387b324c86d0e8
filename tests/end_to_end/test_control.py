"""A running search whose trials people extend, clone and stop, and the search that is resumed after it."""

import json
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
from mlflow import MlflowClient

from components.records.commands import StopTrial
from components.records.events import replay
from components.records.journal import Journal
from components.records.mailbox import Mailbox
from components.records.manifest import searches_in
from components.storage.open_folder import folder_at
from tests.support.programs import SECONDS, command, environment, ran
from tests.support.servers import until
from tests.support.toy_search import toy_search_folder

CHANGES = """
data: {eval_fraction: 0.18}
trial: {budget: {epochs: 80, evaluations: 80}}
search:
  trials: 2
  space:
    lora:
      method: {kind: lora, rank: {choice: [2, 4]}}
      optimizer: {learning_rate: {log_uniform: [2.0e-3, 1.0e-2]}}
resources: {full: {workers: 2}}
"""


def told(folder, arguments):
    """What control.py says of an instruction that must be accepted."""
    process = ran(folder, "control", "toy.yaml", *arguments)
    assert process.returncode == 0, process.stderr
    return process.stdout.strip()


def reports(folder, number):
    """How many the trial of that number has made, by the journal."""
    journals = [folder_at(path.parent) for path in folder.glob("runs/toy/*/journal.jsonl")]
    histories = replay(Journal(journals[0]).read()) if journals else {}
    return sum(len(history.reports) for history in histories.values() if history.started.number == number)


def test_a_running_search_takes_instructions_and_a_resumed_one_knows_them(tmp_path):
    folder = toy_search_folder(tmp_path, CHANGES, conversations=40)
    first = subprocess.Popen(
        command("tune", "toy.yaml"), cwd=folder, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )  # fmt: skip
    try:
        until(lambda: reports(folder, 1) and reports(folder, 2), seconds=SECONDS)
        clone = ("clone", "1", "--set", "optimizer.learning_rate=1e-4", "--warm")
        with ThreadPoolExecutor() as people:  # at once: on a fast machine these trials last for seconds
            extended, cloned, stopped = people.map(
                partial(told, folder), [("extend", "1", "--by", "25%"), clone, ("stop", "2")]
            )
        assert "may spend" in extended
        assert cloned == "trial 3 is trial 1 with your changes, and begins with its weights; it runs before what waits"
        assert stopped == "trial 2 finishes its step, reports and ends"
        until(lambda: reports(folder, 3), seconds=SECONDS)
        refused = ran(folder, "control", "toy.yaml", "stop", "2")
        assert refused.returncode == 2
        assert "trial 2 has ended already: stopped (stopped by " in refused.stderr
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()
    state = json.loads(ran(folder, "tune", "toy.yaml", "--watch", "--json").stdout)
    assert (state["planned"], state["driver"]["pid"], state["finished"]) == (3, first.pid, False)
    unheard = ran(folder, "control", "toy.yaml", "extend", "3", "--by", "20%", "--patience", "1")
    assert unheard.returncode == 7
    assert "The request stands in" in unheard.stderr

    second = ran(folder, "tune", "toy.yaml", "--resume", "--json")
    assert second.returncode == 0, second.stderr[-2000:]
    trials = {trial["number"]: trial for trial in json.loads(second.stdout)["trials"]}
    (manifest,) = searches_in(folder_at(folder / "runs" / "toy"))
    search = folder_at(folder / "runs" / "toy" / manifest.search_id)
    by = Mailbox(search).ask(StopTrial(trial="1")).by
    budget = manifest.budget
    longer = round(budget * 1.25)
    late = round(budget * 1.2)
    assert trials[1]["target_tokens"] == pytest.approx(longer, rel=0.02), trials[1]["reason"]
    assert sorted(trials[1]["instructions"]) == [
        f"cloned as trial 3 with its weights by {by}",
        f"extended to {longer:,} target tokens by {by}",
    ]
    assert trials[3]["instructions"] == [f"extended to {late:,} target tokens by {by}"]
    assert (trials[2]["state"], trials[2]["reason"]) == ("stopped", f"stopped by {by}")
    assert trials[2]["target_tokens"] < budget
    assert (trials[3]["parent"], trials[3]["state"]) == (trials[1]["trial_id"], "completed")
    assert trials[3]["varied"]["optimizer.learning_rate"] == 1e-4
    assert trials[3]["target_tokens"] == pytest.approx(late, rel=0.02)

    histories = replay(Journal(search).read())
    parent, clone = histories[trials[1]["trial_id"]], histories[trials[3]["trial_id"]]
    warm = next(report for report in parent.reports if report.checkpoint == clone.started.warm_from)
    assert clone.reports[0].eval_loss == pytest.approx(warm.eval_loss, abs=0.05)
    steps = [step.step for report in parent.reports for step in report.steps]
    assert steps == list(range(1, len(steps) + 1))

    client = MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")
    runs = {
        run.data.tags.get("turnwise.trial_id"): run.data.tags
        for experiment in client.search_experiments()
        for run in client.search_runs([experiment.experiment_id])
    }
    assert runs[parent.trial_id]["turnwise.extended_to"] == str(longer)
    assert runs[parent.trial_id]["turnwise.clone.3"] == clone.trial_id
    assert runs[clone.trial_id]["turnwise.parent"] == parent.trial_id
    assert runs[trials[2]["trial_id"]]["turnwise.stopped_by"] == by
    assert "/#/jobs/" in runs[clone.trial_id]["ray.dashboard"]
    assert runs[clone.trial_id]["ray.node"]
    assert runs[clone.trial_id]["turnwise.device"] == "cpu"
    view = ran(folder, "tune", "toy.yaml", "--watch")
    assert view.returncode == 0
    assert "lora (warm clone of 1)" in view.stdout
    assert f"of {longer:,})" in view.stdout
