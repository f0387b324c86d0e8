"""The arithmetic of experiments/benchmarks/step_speed.py, and its contestants on a tiny model."""

import multiprocessing
from dataclasses import replace

import pytest
import torch
from transformers import AutoConfig

from components.experiment.spec import FullMethod
from components.planning.meta_model import meta_model
from experiments.benchmarks.gpu_kit.speed_peak import model_flops
from experiments.benchmarks.step_kit import hand, hugging_face, ours
from experiments.benchmarks.step_kit.contestants import OURS, YARDSTICK
from experiments.benchmarks.step_kit.page import history_line, page
from experiments.benchmarks.step_kit.profile import profiled
from experiments.benchmarks.step_kit.race import Race, run_race
from experiments.benchmarks.step_kit.result import result_of
from experiments.benchmarks.step_kit.turns import Block, Turns
from experiments.benchmarks.step_kit.works import StepSize, short_random, sizes
from experiments.benchmarks.step_kit.yardstick import FLOPS

FACTS = {"date": "2026-01-01", "commit": "abc"}
SIZE = StepSize(tokens=100, targets=40, flops=1e9)


def block(seconds, *losses, cpu_seconds=None):
    return Block(seconds=seconds, cpu_seconds=cpu_seconds or seconds, losses=losses)


def race(*, theirs=(3.0, 8.0, 10.0), their_loss=2.0):
    """Ours takes one, two and five seconds a step, as the machine slows down."""
    rounds = [
        {OURS: block(mine, 2.0), "trl": block(other, their_loss, cpu_seconds=2 * mine), YARDSTICK: block(mine, 0.0)}
        for mine, other in zip((1.0, 2.0, 5.0), theirs, strict=True)
    ]
    warm_up = {OURS: block(1.0, 2.0, 2.0), "trl": block(1.0, 2.0, 2.0), YARDSTICK: block(1.0)}
    peaks = {OURS: 10**9, "trl": 2 * 10**9, YARDSTICK: 0}
    return Race(warm_up=warm_up, rounds=rounds, peaks=peaks)


def result(found):
    return result_of("lora-1024", "bf16", found, [SIZE] * 6, 1)


def test_ratios_are_those_of_neighbouring_blocks_whatever_the_machine_does_meanwhile():
    mine, other = result(race()).lines
    assert (other.times, other.cpu_times) == (3.0, 2.0)  # of 3, 4 and 2; their medians alone would say 4
    assert mine.tokens_per_second == 50.0
    assert mine.share == 1e9 / FLOPS
    assert mine.share == 2 * other.share
    assert "| TRL's SFTTrainer | 8.00 | 12 | 25 | **3.00** | 2.00 |" in page("", [result(race())], FACTS)


def test_another_loss_is_another_work():
    assert all(line.is_same_work for line in result(race(their_loss=2.01)).lines)
    other = result(race(their_loss=2.03))
    assert not other.lines[1].is_same_work
    assert "(other work!)" in page("", [other], FACTS)


def test_who_is_lost_is_left_out_and_said():
    found = race()
    found.lost["hand"] = "its process died"
    assert "| by hand, all in one dtype | left out: its process died |" in page("", [result(found)], FACTS)
    found.lost[OURS] = "its process died"
    with pytest.raises(ValueError, match="lora-1024: its process died"):
        result(found)


def test_a_page_keeps_the_sections_of_other_works():
    one = page("", [result(race())], FACTS)
    other = result_of("full-1024", "bf16", race(), [SIZE] * 6, 1)
    both = page(one, [other], FACTS)
    assert both.count("\n## ") == 2
    assert page(both, [other], FACTS) == both
    assert '"cpu_ratio": 2.0' in history_line(other, FACTS)


def test_the_head_is_counted_for_targets_only(tiny_model):
    config = AutoConfig.from_pretrained(tiny_model)
    model = meta_model(config, FullMethod(), dtype="fp32", attention="sdpa")
    spared = model_flops(model, config, [10]) - model_flops(model, config, [10], targets=4)
    assert spared == 6 * 6 * config.hidden_size * config.vocab_size


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("method", ["lora", "full"])
def test_contestants_compute_the_same_losses_on_the_same_rows(tiny_model, tmp_path, method, precision):
    torch.set_num_threads(1)
    work = replace(short_random(method, tmp_path, 4, str(tiny_model)), precision=precision)
    runs = [ours.run, hand.run_in_one_dtype, hugging_face.run_transformers, *[hand.run_mixed] * (precision == "bf16")]
    blocks = {run: blocks_of(run, work) for run in runs}
    mine = [loss for each in blocks[ours.run] for loss in each.losses]
    assert len(mine) == 3
    assert len(set(mine)) == 3  # the steps are different ones
    for found in blocks.values():
        assert [loss for each in found for loss in each.losses] == pytest.approx(mine, rel=5e-5)
        assert all(each.cpu_seconds > 0 for each in found)
    assert len(sizes(work)) == 4
    assert all(0 < size.targets < size.tokens <= 4 * 32 for size in sizes(work))


def test_processes_take_turns_and_one_that_fails_is_lost(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    found = run_race(short_random("lora", tmp_path, 4, str(tiny_model)), [OURS, "nobody"], rounds=1, seconds=100.0)
    assert found.lost == {"nobody": "KeyError: 'nobody'"}
    assert len(found.losses(OURS)) == 3
    assert 0 < found.peaks[OURS] < 2 * 10**8  # its libraries are not among it


def test_the_profile_names_kinds_of_work_and_operations(tiny_model, tmp_path):
    text = profiled(short_random("lora", tmp_path, 4, str(tiny_model)))
    assert all(f"| {kind} |" in text for kind in ("matmul", "attention", "casts and copies", "optimizer", "loss"))
    assert "| mm |" in text


def blocks_of(run, work):
    """A contestant's blocks of two steps and of one."""
    here, there = multiprocessing.Pipe()
    for steps in (2, 1, 0):
        here.send(steps)
    run(work, Turns(there))
    return [here.recv(), here.recv()]
