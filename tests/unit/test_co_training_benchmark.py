"""The arithmetic of experiments/benchmarks/co_training.py, and its trials on a tiny model."""

import pytest
import torch

from experiments.benchmarks.co_training_kit.measure import Measured, Seconds, measured
from experiments.benchmarks.co_training_kit.page import page, ratio
from experiments.benchmarks.co_training_kit.trials import SIZES, Setting, Size


def line(trials, *pairs, peak_bytes=10**9):
    together, in_turn = zip(*pairs, strict=True)
    return Measured(
        size="small",
        trials=trials,
        together=tuple(Seconds(clock=2 * each, cpu=each) for each in together),
        in_turn=tuple(Seconds(clock=2 * each, cpu=each) for each in in_turn),
        peak_bytes=peak_bytes,
    )


def test_ratios_are_those_of_neighbouring_steps_and_memory_that_of_each_more_trial():
    one, four = line(1, (1.0, 1.0)), line(4, (1.0, 3.0), (2.0, 4.0), (5.0, 5.0), peak_bytes=4 * 10**9)
    assert ratio(four, "cpu") == ratio(four, "clock") == 2.0
    text = page([one, four], {"date": "2026-01-01"})
    assert "| 1 | 256 | 256 | **1.00** | 1.00 | 1 | 1,000 |  |" in text
    assert "| 4 | 512 | 256 | **2.00** | 2.00 | 3 | 4,000 | 1,000 |" in text


def test_trials_of_the_benchmark_are_trained_together_and_in_turn(tiny_model, tmp_path, monkeypatch):
    torch.set_num_threads(1)
    monkeypatch.setitem(SIZES, "small", Size(rows=2, tokens=16))
    found = measured("small", 3, Setting(model=str(tiny_model)), folder=tmp_path / "data", rounds=2, seconds=100.0)
    assert (found.trials, found.tokens) == (3, 96)
    assert len(found.together) == len(found.in_turn) == 2
    assert all(each.cpu > 0 for each in (*found.together, *found.in_turn))
    assert found.peak_bytes > 0


def test_without_time_there_is_one_round(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setitem(SIZES, "small", Size(rows=1, tokens=16))
    found = measured("small", 1, Setting(model=str(tiny_model)), folder=tmp_path / "data", rounds=5, seconds=0.0)
    assert ratio(found, "cpu") == pytest.approx(found.in_turn[0].cpu / found.together[0].cpu)
    assert len(found.together) == 1
