"""The kit's part chatglm3: it passes with a tiny model, and what is broken on the way is seen."""

import copy
import itertools
import os
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from components.models.chatglm import convert
from experiments.benchmarks.gpu_kit import chatglm3, chatglm3_files, chatglm3_use
from experiments.benchmarks.gpu_kit.chatglm3 import FALLS, STEPS, learned
from experiments.benchmarks.gpu_kit.chatglm3_files import Pace, Written, layers_that_fit, measured_pace
from experiments.benchmarks.gpu_kit.settings import Settings
from experiments.benchmarks.gpu_kit.shapes import config_of


@pytest.fixture
def settings(tmp_path):
    torch.set_num_threads(1)
    return Settings(device_name="cpu", shapes="tiny", scratch=tmp_path, deadline=time.time() + 250)


def test_a_tiny_chatglm3_goes_all_the_way(settings, monkeypatch):
    monkeypatch.setenv("TURNWISE_CACHE", "the user's own")
    checks = {check.asked: check for check in chatglm3.run(settings)}
    assert [check for check in checks.values() if check.verdict not in ("passed", "measured")] == []
    verdicts = [check.verdict for check in checks.values()]
    assert (verdicts.count("passed"), verdicts.count("measured")) == (8, 5)
    assert all(f"QLoRA{asked.removeprefix('LoRA')}" in checks for asked in checks if asked.startswith("LoRA: 20 steps"))
    assert (settings.scratch / "cache" / "chatglm").is_dir()
    assert os.environ["TURNWISE_CACHE"] == "the user's own"


def test_what_is_broken_on_the_way_is_seen(settings, monkeypatch):
    def damaged(tensors, *arguments):
        convert_weights({name: 1.01 * tensor for name, tensor in tensors.items()}, *arguments)

    def without_adapters(*arguments, **named):
        loaded = load(*arguments, **named)
        for name, parameter in loaded.model.named_parameters():
            if "lora_B" in name:
                parameter.data.zero_()
        return loaded

    def forgetful(*arguments, **options):
        replies.append(reply(*arguments, **options))
        return replace(replies[-1], text=f"{len(replies)}")

    def merged_wrongly(model):
        merged = merge(model)
        merged.get_output_embeddings().weight.data.mul_(3.0)
        return merged

    replies = []
    convert_weights, load = convert.save_file, chatglm3_use.load_trained
    reply, merge = chatglm3_use.reply_to, chatglm3_use.merge
    monkeypatch.setattr(convert, "save_file", damaged)
    monkeypatch.setattr(chatglm3_use, "load_trained", without_adapters)
    monkeypatch.setattr(chatglm3_use, "reply_to", forgetful)
    monkeypatch.setattr(chatglm3_use, "merge", merged_wrongly)
    monkeypatch.setattr(chatglm3, "find_spec", lambda _: None)
    verdicts = [(check.asked, check.verdict) for check in chatglm3.run(settings)]
    assert [asked.partition(",")[0] for asked, verdict in verdicts if verdict == "failed"] == [
        "converted weights are those that were written",
        "LoRA: saved",
        "LoRA: 64 tokens",
        "LoRA: merged beside the adapter",
    ]
    assert [asked for asked, verdict in verdicts if verdict == "skipped"] == ["QLoRA"]


@pytest.mark.parametrize(
    ("losses", "verdict"),
    [
        ([9.0] * 19 + [9.0 - FALLS], "passed"),
        ([9.0] * 19 + [9.01 - FALLS], "failed"),
        ([9.0] * 18 + [8.0], "failed"),
        ([9.0] * 10 + [float("nan")] + [8.0] * 9, "failed"),
    ],
)
def test_twenty_finite_losses_that_fall_are_asked_for(losses, verdict):
    assert STEPS == 20
    steps = [SimpleNamespace(loss=loss) for loss in losses]
    assert learned("LoRA", SimpleNamespace(steps=steps, tokens_per_second=1.0), 512).verdict == verdict


def test_as_many_layers_are_written_as_time_and_disk_allow():
    def fitting(seconds=1000.0, free=1e12):
        pace = Pace(write=0.5e-9, digest=0.5e-9, load=0.25e-9)  # seconds a byte: 2.5 in all for a GB
        return layers_that_fit(pace, layer_bytes=4 * 10**8, other_bytes=10**9, layers=28, seconds=seconds, free=free)

    assert fitting() == 28
    assert fitting(seconds=18 + 2.5 * 5.1) == 10
    assert fitting(free=2e9 + 2 * 5.1e9) == 10
    assert fitting(seconds=1) == 2


def test_a_model_with_fewer_layers_says_so(tmp_path):
    whole = Written(directory=tmp_path, layers=28, all_layers=28, bytes=12_500_000_000, seconds=9.0)
    part = Written(directory=tmp_path, layers=15, all_layers=28, bytes=7_100_000_000, seconds=6.0)
    assert whole.sentence() == "12.5 GB in 9.0 s, all 28 layers"
    assert part.sentence() == "7.1 GB in 6.0 s, with 15 of its 28 layers, for want of time or disk"


def test_a_machine_is_timed_by_what_leaves_nothing_behind(settings, monkeypatch):
    monkeypatch.setattr(chatglm3_files, "PROBE_BYTES", 2**20)
    pace = measured_pace(settings)
    assert min(pace.write, pace.digest, pace.load) > 0
    assert list(settings.scratch.iterdir()) == []


def test_the_real_sizes_are_written_as_the_tiny_ones_are(settings, monkeypatch):
    config = config_of("chatglm3-6b", settings)
    config.vocab_size, config.num_hidden_layers = 2048, 3
    monkeypatch.setattr(chatglm3_files, "config_of", lambda *_: copy.deepcopy(config))
    monkeypatch.setattr(chatglm3_files, "PROBE_BYTES", 2**20)
    written, _, converted = itertools.islice(chatglm3.run(replace(settings, shapes="real")), 3)
    assert "all 3 layers" in written.seen
    assert (converted.verdict, converted.seen) == ("passed", "6 of 6 equal")
