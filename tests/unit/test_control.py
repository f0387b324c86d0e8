"""People tell a running search what to do with its trials, as they do it: from another process, through the storage."""

import json
import os
import subprocess
import sys
import time

import pytest

from components.experiment.experiment_errors import ExperimentError
from components.experiment.load_experiment import load_experiment
from components.experiment.space import change_trial, weights_fit
from components.experiment.spec import FullMethod, LoraMethod, TrialSpec
from components.records import driver_presence as driver
from components.records.commands import CloneTrial, CommandReply, ExtendTrial, StopTrial
from components.records.driver_presence import DriverHeartbeat, DriverInbox
from components.records.mailbox import Mailbox
from components.records.manifest import SearchManifest
from components.storage.open_folder import folder_at
from tests.support.programs import environment
from tests.support.servers import until
from tests.support.toy_search import toy_experiment
from workflows import control, tune


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy.yaml").write_text(toy_experiment("resources: {full: {workers: 2}}"))
    return tmp_path


def test_requests_are_served_in_the_order_of_asking_until_they_have_a_reply(tmp_path):
    box = Mailbox(folder_at(tmp_path))
    commands = [StopTrial(trial="1"), ExtendTrial(trial="2", share=0.5), CloneTrial(trial="2", changes={"a.b": 1})]
    asked = []
    for command in commands:
        asked.append(box.ask(command))
        time.sleep(0.002)
    assert [request.command for request in Mailbox(folder_at(tmp_path)).waiting()] == commands
    box.reply(asked[0].request_id, CommandReply(accepted=True, message="so be it"))
    assert [request.command for request in Mailbox(folder_at(tmp_path)).waiting()] == commands[1:]
    assert box.reply_to(asked[0].request_id).message == "so be it"
    assert box.reply_to(asked[1].request_id) is None


def test_what_is_no_request_is_told_so_and_holds_nobody_up(tmp_path):
    box = Mailbox(folder_at(tmp_path))
    command = box.ask(StopTrial(trial="1")).command
    (tmp_path / "requests" / "0-odd.json").write_text('{"command": {"kind": "dance"}}')
    assert [request.command for request in box.waiting()] == [command]
    assert not box.reply_to("0-odd").accepted


def test_an_inbox_gives_each_request_once_and_leaves_the_unanswered_to_the_next(tmp_path, monkeypatch):
    monkeypatch.setattr(driver, "POLL_SECONDS", 0.01)
    box = Mailbox(folder_at(tmp_path))
    first, second = box.ask(StopTrial(trial="1")), box.ask(StopTrial(trial="2"))
    taken = []
    with DriverInbox(folder_at(tmp_path)) as inbox:
        until(lambda: taken.extend(inbox.poll()) or len(taken) >= 2, seconds=60)
        time.sleep(0.1)
        assert inbox.poll() == []
        inbox.reply(first, CommandReply(accepted=False, message="no"))
        inbox.show({"Ray dashboard": "http://here"})
        inbox.close("champion")
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
