"""People tell a running search what to do with its trials, as they do it: from another process, through the storage."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from mlflow import MlflowClient

from components.experiment.errors import ExperimentError
from components.experiment.load import load_experiment
from components.experiment.space import change_trial, weights_fit
from components.experiment.spec import FullMethod, LoraMethod, TrialSpec
from components.records import heartbeat as driver
from components.records.commands import CloneTrial, ExtendTrial, Reply, StopTrial
from components.records.events import replay
from components.records.heartbeat import DriverHeartbeat, DriverInbox
from components.records.journal import Journal
from components.records.mailbox import Mailbox
from components.records.manifest import SearchManifest, searches_in
from components.storage.open import folder_at
from tests.support.servers import until
from tests.support.toy import tiny_model_directory, toy_conversations, write_messages_jsonl
from workflows import control, tune

ROOT = Path(__file__).parents[2]
EXPERIMENT = """
name: toy
model: {path: model}
data: {train: data.jsonl, eval_fraction: 0.18, max_tokens: 128}
trial:
  budget: {epochs: 80, evaluations: 80}
  batch: {rows_per_step: 2, rows_per_micro_batch: 2}
  precision: fp32
search:
  trials: 2
  scheduler: {name: none}
  space:
    lora:
      method: {kind: lora, rank: {choice: [2, 4]}}
      optimizer: {learning_rate: {log_uniform: [2.0e-3, 1.0e-2]}}
resources: {full: {workers: 2}}
"""
SECONDS = 240


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy.yaml").write_text(EXPERIMENT)
    return tmp_path


def test_requests_are_served_in_the_order_of_asking_until_they_have_a_reply(tmp_path):
    box = Mailbox(folder_at(tmp_path))
    wishes = [StopTrial(trial="1"), ExtendTrial(trial="2", share=0.5), CloneTrial(trial="2", changes={"a.b": 1})]
    asked = []
    for wish in wishes:
        asked.append(box.ask(wish))
        time.sleep(0.002)
    assert [request.wish for request in Mailbox(folder_at(tmp_path)).waiting()] == wishes
    box.reply(asked[0].request_id, Reply(accepted=True, message="so be it"))
    assert [request.wish for request in Mailbox(folder_at(tmp_path)).waiting()] == wishes[1:]
    assert box.reply_to(asked[0].request_id).message == "so be it"
    assert box.reply_to(asked[1].request_id) is None


def test_what_is_no_request_is_told_so_and_holds_nobody_up(tmp_path):
    box = Mailbox(folder_at(tmp_path))
    wish = box.ask(StopTrial(trial="1")).wish
    (tmp_path / "requests" / "0-odd.json").write_text('{"wish": {"kind": "dance"}}')
    assert [request.wish for request in box.waiting()] == [wish]
    assert not box.reply_to("0-odd").accepted


def test_a_desk_gives_out_each_request_once_and_leaves_what_has_no_reply_for_the_next_driver(tmp_path, monkeypatch):
    monkeypatch.setattr(driver, "POLL_SECONDS", 0.01)
    box = Mailbox(folder_at(tmp_path))
    first, second = box.ask(StopTrial(trial="1")), box.ask(StopTrial(trial="2"))
    taken = []
    with DriverInbox(folder_at(tmp_path)) as desk:
        until(lambda: taken.extend(desk.take()) or len(taken) >= 2, seconds=60)
        time.sleep(0.1)
        assert desk.take() == []
        desk.reply(first, Reply(accepted=False, message="no"))
        desk.show({"Ray dashboard": "http://here"})
        desk.close("champion")
    sign = DriverHeartbeat.read(folder_at(tmp_path))
    assert (sign.outcome, sign.links, sign.pid) == ("champion", {"Ray dashboard": "http://here"}, os.getpid())
    assert box.reply_to(first.request_id).message == "no"
    assert [request.request_id for request in Mailbox(folder_at(tmp_path)).waiting()] == [second.request_id]


def test_a_clone_is_held_to_the_rules_of_the_space_all_problems_together(folder):
    experiment = load_experiment("toy.yaml")
    parent = TrialSpec(method=LoraMethod(rank=4), batch=experiment.trial.batch, budget=experiment.trial.budget)
    changed = change_trial(experiment, parent, {"optimizer.learning_rate": "1e-4", "method.kind": "full"})
    assert (changed.optimizer.learning_rate, changed.method) == (1e-4, FullMethod())
    assert changed.batch == parent.batch
    impossible = {"method.rank": 0, "seed": 3, "budget.epochs": 9, "optimizer.learning_rate.peak": 1, "optimizer.lr": 1}
    with pytest.raises(ExperimentError) as error:
        change_trial(experiment, parent, impossible)
    assert [problem.location for problem in error.value.problems] == [
        "method.rank", "seed", "budget.epochs", "optimizer.learning_rate", "optimizer.lr",
    ]  # fmt: skip
    with pytest.raises(ExperimentError, match="leaves workers idle"):
        change_trial(experiment, parent, {"method.kind": "full", "batch.rows_per_step": 1})


@pytest.mark.parametrize(
    ("method", "fits"),
    [
        (LoraMethod(rank=4, alpha=1.0, dropout=0.5, rslora=True), True),
        (LoraMethod(rank=8), False),
        (LoraMethod(rank=4, dora=True), False),
        (LoraMethod(rank=4, target_modules=("q_proj",)), False),
        (FullMethod(), False),
    ],
)
def test_weights_fit_where_the_method_has_their_shape(method, fits):
    assert weights_fit(LoraMethod(rank=4), method) is fits


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["extend", "1", "--by", "half"], "--by half: write it as a share"),
        (["extend", "1", "--by=-50%"], "--by -50%: write it as a share"),
        (["clone", "1", "--set", "rank"], "--set rank: write it as key.subkey=value"),
        (["stop", "1"], "no search is running in"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anybody_is_asked(folder, capsys, arguments, words):
    with pytest.raises(SystemExit) as ended:
        control.main(["toy.yaml", *arguments])
    assert ended.value.code == 2
    assert words in capsys.readouterr().err


def test_a_view_of_no_search_says_which_there_are(folder, capsys):
    manifest = SearchManifest(
        search_id="one", experiment=load_experiment("toy.yaml"), created=1.0, prepared="p", budget=10, finished=True
    )
    manifest.write(manifest.experiment.folder / "one")
    with pytest.raises(SystemExit) as ended:
        tune.main(["toy.yaml", "--watch", "two"])
    assert ended.value.code == 2
    assert "no search two in" in capsys.readouterr().err
    assert tune.main(["toy.yaml", "--watch", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["finished"]
    assert tune.main(["toy.yaml", "--watch"]) == 0
    assert "search one has ended" in capsys.readouterr().out


def test_the_view_needs_neither_torch_nor_ray_nor_mlflow():
    heavy = "{'torch', 'ray', 'mlflow', 'transformers'} & set(sys.modules)"
    code = f"import sys, workflows.tune, workflows.terminal, workflows.control; print({heavy} or 'light')"
    ran = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "light"


def environment():
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def program(name, *arguments):
    return [sys.executable, str(ROOT / "workflows" / f"{name}.py"), "toy.yaml", *arguments]


def ran(name, *arguments):
    return subprocess.run(
        program(name, *arguments), env=environment(), capture_output=True, text=True, timeout=SECONDS, check=False
    )


def told(arguments):
    """What control.py says of an instruction that must be accepted."""
    process = ran("control", *arguments)
    assert process.returncode == 0, process.stderr
    return process.stdout.strip()


def reports(folder, number):
    """How many the trial of that number has made, by the journal."""
    journals = [folder_at(path.parent) for path in folder.glob("runs/toy/*/journal.jsonl")]
    histories = replay(Journal(journals[0]).read()) if journals else {}
    return sum(len(history.reports) for history in histories.values() if history.started.number == number)


@pytest.mark.end_to_end
def test_a_trial_is_extended_cloned_and_stopped_while_it_runs_and_a_resumed_search_knows_it(folder):
    tiny_model_directory(folder / "model")
    write_messages_jsonl(folder / "data.jsonl", toy_conversations(40))
    first = subprocess.Popen(
        program("tune"), env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )  # fmt: skip
    try:
        until(lambda: reports(folder, 1) and reports(folder, 2), seconds=SECONDS)
        clone = ("clone", "1", "--set", "optimizer.learning_rate=1e-4", "--warm")
        with ThreadPoolExecutor() as people:  # at once: on a fast machine these trials last for seconds
            extended, cloned, stopped = people.map(told, [("extend", "1", "--by", "25%"), clone, ("stop", "2")])
        assert "may spend" in extended
        assert cloned == "trial 3 is trial 1 with your changes, and begins with its weights; it runs before what waits"
        assert stopped == "trial 2 finishes its step, reports and ends"
        until(lambda: reports(folder, 3), seconds=SECONDS)
        refused = ran("control", "stop", "2")
        assert refused.returncode == 2
        assert "trial 2 has ended already: stopped (stopped by " in refused.stderr
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()
    state = json.loads(ran("tune", "--watch", "--json").stdout)
    assert (state["planned"], state["driver"]["pid"], state["finished"]) == (3, first.pid, False)
    unheard = ran("control", "extend", "3", "--by", "20%", "--patience", "1")
    assert unheard.returncode == 7
    assert "The request stands in" in unheard.stderr

    second = ran("tune", "--resume", "--json")
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
    view = ran("tune", "--watch")
    assert view.returncode == 0
    assert "lora (warm clone of 1)" in view.stdout
    assert f"of {longer:,})" in view.stdout
