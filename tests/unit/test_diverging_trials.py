"""A loss that is infinite or not a number wins nothing, is valid JSON, and is no success of a program."""

import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from components.records.events import best_report
from components.reports.json_line import json_line
from components.reports.leaderboard import best_loss, ranked
from components.reports.search_summary import TrialSummary
from components.statistics.paired_bootstrap import paired_bootstrap
from tests.support.records import history, progress
from tests.support.toy import tiny_model_directory, toy_conversations, write_messages_jsonl
from workflows.cli import Exit
from workflows.evaluate import main as evaluate


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A model, the same with weights so large that its logits overflow, and conversations."""
    folder = tmp_path_factory.mktemp("models")
    tiny_model_directory(folder / "sound")
    shutil.copytree(folder / "sound", folder / "broken")
    file = folder / "broken" / "model.safetensors"
    weights = load_file(file)
    weights["model.norm.weight"] = torch.full_like(weights["model.norm.weight"], 3e38)
    save_file(weights, file, metadata={"format": "pt"})
    write_messages_jsonl(folder / "data.jsonl", toy_conversations(4))
    return folder


def evaluated(models, capsys, name, *more):
    status = evaluate([str(models / name), "--data", str(models / "data.jsonl"), "--json", *more])

    def refused(constant):
        raise AssertionError(f"{constant} is no JSON")

    return status, json.loads(capsys.readouterr().out, parse_constant=refused)


def test_a_model_that_scores_nan_is_null_in_json_and_no_success(models, capsys):
    status, result = evaluated(models, capsys, "broken")
    assert (status, result["loss"], result["conversations"]) == (Exit.NOT_FINITE, None, 4)
    assert "nan nats per target" in result["sentence"]


@pytest.mark.parametrize(("model", "other"), [("sound", "broken"), ("broken", "sound")])
def test_a_comparison_with_nan_is_won_by_nobody(models, capsys, model, other):
    status, result = evaluated(models, capsys, model, "--against", str(models / other))
    assert status == Exit.NOT_FINITE
    assert result["verdict"]["beats"] is False
    assert result["verdict"]["difference"] is None


def test_a_sound_model_is_a_success(models, capsys):
    status, result = evaluated(models, capsys, "sound")
    assert status == Exit.DONE
    assert 0 < result["loss"] < 10


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_the_gate_lets_no_sum_through_that_is_not_finite(bad):
    good = [10.0] * 30
    assert not paired_bootstrap("base", [bad, *good], [20.0, *([20.0] * 30)], [10] * 31, confidence=0.95).beats
    assert not paired_bootstrap("base", [10.0, *good], [math.nan, *([20.0] * 30)], [10] * 31, confidence=0.95).beats


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_checkpoint_whose_loss_is_not_finite_is_never_the_best(bad, place):
    losses = [2.0, 1.0]
    losses.insert(place, bad)
    assert best_report([progress(step, loss, checkpoint="there") for step, loss in enumerate(losses)]).eval_loss == 1.0
    assert best_report([progress(1, bad, checkpoint="there")]) is None


def test_a_trial_that_has_only_such_checkpoints_comes_after_all_that_have_a_loss():
    trials = [history(1, math.nan), history(2, 3.0), history(3, math.nan, 2.0), history(4, -math.inf)]
    assert [trial.started.number for trial in ranked(trials)] == [3, 2, 1, 4]
    assert best_loss(trials[0]) == math.inf
    assert json.loads(TrialSummary.of(trials[0]).model_dump_json())["eval_loss"] is None


def test_null_stands_for_what_json_does_not_know_however_deep():
    line = json_line({"a": [math.nan, (1.5, -math.inf)], "b": {"c": math.inf}, "d": "模", "e": None, "f": True})
    assert line == '{"a": [null, [1.5, null]], "b": {"c": null}, "d": "模", "e": null, "f": true}'
