"""A trial that does not fit: the plan refuses it, and forced, it dies by an out-of-memory error that the process survives."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import torch
import yaml

from components.data.prepare import PreparedDataset, prepare_experiment
from components.experiment.load_experiment import load_experiment
from components.experiment.space import branches_of, some_trial
from components.experiment.spec import ExperimentSpec
from components.models.base.context import context_of
from components.models.chatglm.config import glm_config, original_config
from components.models.chatglm.tiny_model import make_tiny
from components.planning.branch_plan import BranchPlan
from components.planning.experiment_plan import ExperimentPlan
from components.planning.instance_types import InstanceType, NodeTable
from components.planning.planner import plan
from components.storage.size import GB
from experiments.benchmarks.gpu_kit.checks import Check, passed_if
from experiments.benchmarks.gpu_kit.memory_trials import MemoryCase, Runners, run_trial
from experiments.benchmarks.gpu_kit.meters import Meter
from experiments.benchmarks.gpu_kit.run_parts import ROOT
from experiments.benchmarks.gpu_kit.settings import Settings
from experiments.benchmarks.gpu_kit.shapes import config_of
from experiments.benchmarks.gpu_kit.trials import RandomRunner

CARD = "this-card"
DATA = ROOT / "experiments/data/quickstart.jsonl"
MAX_TOKENS = 2048
# Full fine-tuning of 6 billion weights takes 132 GB. A card that holds it is given longer micro-batches.
ROWS = (1, 8, 64)
ENOUGH = 1e6  # GB: a card on which everything fits
OF_TENSORS = 0.6  # the part of the tensors that a CPU's stand-in for a card has room for
KEPT = 0.01  # of what the trial had to have: what may stay in use after it has died
AFTER = MemoryCase(shape="llama-1b", method="LoRA", tokens=1024)


def refused_and_forced(settings: Settings, meter: Meter, runners: Runners) -> Iterator[Check]:
    """On a CPU the card is a limit that the ledger of live tensors keeps."""
    runners.drop()
    directory = model_without_weights(settings)
    experiment, branch = refused_experiment(directory, settings)
    yield passed_if(
        branch is not None,
        "plan.py refuses what does not fit this card, with the arithmetic and what to change",
        "it refuses nothing" if branch is None else _words(branch),
    )
    if branch is not None:
        yield from forced(experiment, directory, branch, settings, meter, runners)


def model_without_weights(settings: Settings) -> Path:
    """A ChatGLM3 directory with the tokenizer of a tiny one and the sizes of the real one: a plan needs no weights."""
    directory = settings.scratch / "chatglm3"
    make_tiny(directory, str(DATA))
    if not settings.tiny:
        like = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        whole = original_config(config_of("chatglm3-6b", settings), like)
        (directory / "config.json").write_text(json.dumps(whole), encoding="utf-8")
    return directory


def refused_experiment(directory: Path, settings: Settings) -> tuple[ExperimentSpec, BranchPlan | None]:
    """Returns the first experiment that does not fit the card, and its plan; None if all of them do."""
    for rows in ROWS:
        experiment = _experiment(directory, rows, settings)
        planned = plan(experiment, _table(_room(experiment, settings)))
        if planned.without_room:
            return experiment, planned.branches[0]
    return experiment, None


def forced(
    experiment: ExperimentSpec,
    directory: Path,
    branch: BranchPlan,
    settings: Settings,
    meter: Meter,
    runners: Runners,
) -> Iterator[Check]:
    """Starts the trial that was refused, and afterwards one that fits."""
    with meter:
        meter.reset()
    before = meter.held
    error = _die(experiment, directory, branch, settings, meter)
    yield passed_if(
        error is not None,
        "forced, it dies of torch.OutOfMemoryError",
        "it ran" if error is None else error,
    )
    with meter:
        meter.reset()
    kept = meter.held - before
    yield passed_if(
        kept <= KEPT * branch.memory.tensors,
        f"what it took is free again: at most {KEPT:.0%} of the {branch.memory.tensors / GB:.3g} GB that it had to have stay",
        f"{kept / GB:.3g} GB stay",
        kept_bytes=kept,
    )
    AFTER.write_rows(settings)
    run_trial(AFTER, runners.of(AFTER), settings, meter)
    loss = runners.of(AFTER).running.interval.steps[-1].loss
    yield passed_if(
        math.isfinite(loss),
        "the process goes on: a trial that fits trains and is evaluated",
        f"{AFTER.name(settings)}: loss {loss:.3f}",
    )


def _die(
    experiment: ExperimentSpec, directory: Path, branch: BranchPlan, settings: Settings, meter: Meter
) -> str | None:
    """Returns the first line of the error, and keeps nothing else of it: its frames hold the tensors."""
    dataset = PreparedDataset.open(prepare_experiment(experiment, directory, context=context_of(directory)).directory)
    checkpoints = settings.scratch / "checkpoints"
    config = glm_config(directory)
    runner = RandomRunner(config, dataset, checkpoints, device=settings.device, max_tokens=MAX_TOKENS)
    room = contextlib.nullcontext() if settings.on_gpu else meter.limited_to(_room_for_tensors(branch))
    spec = some_trial(experiment, next(iter(branches_of(experiment).values())))
    try:
        with meter, room:
            runner.start("forced", spec)
            runner.running.scored.train()
            for _ in range(2):
                runner.running.step()
    except torch.OutOfMemoryError as error:
        return str(error).splitlines()[0]
    return None


def _experiment(directory: Path, rows: int, settings: Settings) -> ExperimentSpec:
    """Full fine-tuning of the model with micro-batches of so many rows."""
    content = {
        "name": "refused",
        "model": {"path": str(directory)},
        "data": {"train": str(DATA), "eval_fraction": 0.1, "max_tokens": MAX_TOKENS},
        "chat_format": "chatglm3",
        "trial": {
            "method": {"kind": "full"},
            "batch": {"rows_per_step": rows, "rows_per_micro_batch": rows, "packing": True},
            "budget": {"epochs": 1, "evaluations": 1},
            "precision": "bf16",
        },
        "search": {"trials": 1, "space": {"full": {"method": {"kind": "full"}}}},
        "resources": {"full": {"gpus_per_worker": 1}},
        "storage": {"path": str(settings.scratch / "refused")},
    }
    file = settings.scratch / f"refused_{rows}.yaml"
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    return load_experiment(file)


def _table(gigabytes: float) -> NodeTable:
    """A machine with one card of that size. Its speed and price are nobody's."""
    card = InstanceType(
        gpu="card", gpus=1, gpu_memory_gb=gigabytes, bf16_tflops=1.0, fp32_tflops=1.0, dollars_per_hour=1.0
    )
    return NodeTable(as_of=date.today(), nodes={CARD: card})


def _room(experiment: ExperimentSpec, settings: Settings) -> float:
    """GB of the card; without one, less than the trial needs."""
    if settings.on_gpu:
        return torch.cuda.get_device_properties().total_memory / GB
    (branch,) = plan(experiment, _table(ENOUGH)).branches
    return (branch.memory.total - branch.memory.tensors + _room_for_tensors(branch)) / GB


def _room_for_tensors(branch: BranchPlan) -> int:
    return int(OF_TENSORS * branch.memory.tensors)


def _words(branch: BranchPlan) -> str:
    sentence = ExperimentPlan.model_construct(branches=(branch,)).shortage()
    changes = branch.remedies[-1].changes if branch.remedies else ("nothing",)
    return f"{sentence}; it offers {', then '.join(changes)}"
