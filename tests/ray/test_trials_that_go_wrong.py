"""Trials whose workers run out of memory, hang and crash, on a real Ray cluster: a user's own function brings it about."""

import logging
from dataclasses import replace

import pytest
import torch

from components.cluster.ray_session import connected
from components.cluster.run_search import run_search
from components.cluster.slots.hang_watch import HangRule
from components.cluster.slots.search_context import SearchContext
from components.cluster.slots.worker import make_runner
from components.records.events import TrialProgressed
from components.records.histories import TrialHistories
from components.scoring.score_model import GenerationPlan
from components.training.workers import OneWorker
from tests.support.recorded_searches import context_of
from tests.support.sessions import curve
from tests.support.toy_search import toy_search_folder

CHANGES = """
data: {eval_fraction: 0.15}
trial:
  budget: {epochs: 4, evaluations: 3}
  batch: {rows_per_step: 8, rows_per_micro_batch: 4, packing: false}
search:
  trials: 2
  space:
    unlucky: {method: {kind: full}}
    broken: {method: {kind: lora, rank: 2}}
resources: {lora: {workers: 1}, full: {workers: 2}}
evaluation: {generate: {conversations: 4, max_new_tokens: 4, scores: [{name: "plants:said", direction: maximize}]}}
"""
# The second worker of `unlucky` runs out of memory after the first evaluation, and is stopped after the second one. The only
# worker of `broken` crashes in every evaluation.
PLANTS = """
import ctypes, os, signal
from pathlib import Path
import torch
import torch.distributed as dist

HERE = Path(__file__).parent

def out_of_memory(rows):
    if rows > 2:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

def stopped(rows):
    os.kill(os.getpid(), signal.SIGSTOP)

def plant(fault):
    def hook(module, inputs):
        if module.training and isinstance(module, torch.nn.Embedding):
            fault(len(inputs[0]))
    torch.nn.modules.module.register_module_forward_pre_hook(hook)

def said(conversations, answers):
    if not dist.is_initialized() or dist.get_world_size() == 1:
        ctypes.string_at(0)
    if dist.get_rank() == 1:
        for fault in (out_of_memory, stopped):
            try:
                (HERE / fault.__name__).touch(exist_ok=False)
            except FileExistsError:
                continue
            plant(fault)
            break
    return [float(len(answer)) for answer in answers]
"""


@pytest.fixture
def context(tmp_path):
    folder = toy_search_folder(tmp_path, CHANGES, conversations=25, absolute=True)
    (folder / "plants.py").write_text(PLANTS)
    context = context_of(folder, "wrong")
    plan = GenerationPlan(generate=context.experiment.generation, working_directory=str(folder))
    return replace(context, generation=plan)


def undisturbed(context, spec):
    """What one process trains, without asking the model anything."""
    torch.set_num_threads(1)
    quiet = SearchContext(
        **{name: getattr(context, name) for name in ("experiment", "search_id", "prepared", "budget")},
        folder=context.folder / "undisturbed",
        pad_token_id=0,
        base=context.base,
    )
    runner, found = make_runner(quiet, OneWorker()), []
    runner.start("alone", spec)
    while not found or not found[-1].done:
        found.append(runner.advance())
    return curve(found)


@pytest.mark.long  # four minutes: two hangs are waited for
def test_what_goes_wrong_in_a_trial_costs_rows_or_time_or_that_trial_alone(context, monkeypatch, caplog):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    histories, reported = TrialHistories(), []

    def note(event):
        if isinstance(event, TrialProgressed):
            reported.append((event.restarts, event.progress.max_rows))

    rule = HangRule(seconds=8.0, factor=100.0, seconds_at_first=60.0)
    with connected(num_cpus=3), histories.subscribed(note), caplog.at_level(logging.WARNING):
        run_search(context, histories, hangs=rule)
    trials = {history.started.branch: history for history in histories.values()}
    unlucky, broken = trials["unlucky"], trials["broken"]
    assert (unlucky.state, unlucky.reason) == ("completed", "")
    assert reported == [(0, None), (1, 2), (1, 2)]
    assert "ran out of memory: it goes on with at most 2 rows" in caplog.text
    assert curve(unlucky.reports) == pytest.approx(undisturbed(context, unlucky.started.spec), abs=2e-5)
    assert (broken.state, broken.impossible, broken.reports) == ("failed", True, ())
    crashed = "its workers failed 3 times at the same place, the last time: Segmentation fault in string_at ("
    assert broken.reason.startswith(crashed)
