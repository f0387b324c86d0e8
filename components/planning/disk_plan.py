"""What a search will keep on its storage: checkpoints, their sizes taken from models without weights, and what is beside."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from transformers import PreTrainedConfig

from components.data.prepare import PreparedDataset
from components.experiment.report_marks import report_marks, rungs_alone, rungs_of
from components.experiment.space import Branch, branch_order, branches_of, corner_trials
from components.experiment.spec import ExperimentSpec, LoraMethod, ModelSpec, TrialSpec
from components.planning.memory import optimizer_bytes
from components.planning.meta_model import meta_attention, meta_model
from components.records.disk_use import IN_A_BUCKET, ON_A_DISK, BranchDisk, DiskUse
from components.storage.size import tree_bytes

# Measured: a line of a step and of a report in the journal; of a conversation in an evaluation, by metric.
STEP_BYTES, REPORT_BYTES, SCORE_BYTES = 185, 900, 26
HEADER_BYTES = 120  # of a tensor in a file of safetensors
SMALL_FILES = 4000  # of a checkpoint


@dataclass(frozen=True, kw_only=True)
class DiskCase:
    """One base model. `experiment` is its view of the search."""

    experiment: ExperimentSpec
    config: PreTrainedConfig
    dataset: PreparedDataset


@dataclass(frozen=True, kw_only=True)
class CheckpointSize:
    """In bytes. `weights` stay when the trial has ended, `optimizer` goes."""

    weights: int
    optimizer: int


def disk_use(whole: ExperimentSpec, cases: Sequence[DiskCase], budget: int) -> DiskUse:
    """Takes a second for a model of billions of weights, and almost no memory.

    Any number of trials may run at once, unless search.max_concurrent_trials says otherwise.

    Args:
        budget: of each trial, in the search's units.
    """
    counts = _trials(whole)
    branches = {
        branch.name: _branch_disk(case, branch, budget, trials=counts[branch.name], at_once=sum(counts.values()))
        for case in cases
        for branch in branches_of(case.experiment).values()
    }
    prepared = {case.dataset.directory.uri: case.dataset.directory for case in cases}
    return DiskUse(
        branches=tuple(branches[name] for name in whole.search.space),
        prepared=sum(tree_bytes(directory.download()) for directory in prepared.values()),
        checkpoints=ON_A_DISK if whole.folder.complete_on_commit else IN_A_BUCKET,
        max_concurrent=whole.search.max_concurrent_trials,
    )


def checkpoint_size(config: PreTrainedConfig, model: ModelSpec, spec: TrialSpec) -> CheckpointSize:
    """Raises ValueError as meta_model does."""
    attention = meta_attention(model.attention, config)
    method = spec.method
    if isinstance(method, LoraMethod):
        method = method.model_copy(update={"quantize": None})  # of adapters no size depends on it
    built = meta_model(config, method, dtype=model.dtype_of(spec), attention=attention)
    trained = [parameter for parameter in built.parameters() if parameter.requires_grad]
    stored = trained if isinstance(method, LoraMethod) else list(built.parameters())
    state = optimizer_bytes(
        spec.optimizer,
        parameters=sum(parameter.numel() for parameter in trained),
        tensors=len(trained),
        weight_bytes=sum(parameter.nbytes for parameter in trained),
    )
    return CheckpointSize(
        weights=sum(parameter.nbytes for parameter in stored) + HEADER_BYTES * len(stored) + SMALL_FILES,
        optimizer=state + 3 * HEADER_BYTES * len(trained),
    )


def _trials(whole: ExperimentSpec) -> dict[str, int]:
    """Of each branch, with the repeats that search.confirm will ask for."""
    names, confirm = [branch.name for branch in branch_order(whole)], whole.search.confirm
    counts = {name: names.count(name) for name in whole.search.space}
    if confirm is None:
        return counts
    return {name: count + min(count, confirm.top) * confirm.seeds for name, count in counts.items()}


def _branch_disk(case: DiskCase, branch: Branch, budget: int, *, trials: int, at_once: int) -> BranchDisk:
    experiment = case.experiment
    specs = list(_largest(experiment, branch))
    sizes = [checkpoint_size(case.config, branch.model, spec) for spec in specs]
    largest = max(sizes, key=lambda size: size.weights + size.optimizer)
    return BranchDisk(
        branch=branch.name,
        kind=specs[0].method.kind,
        rank=max(map(_rank, specs)),
        trials=trials,
        weights=largest.weights,
        optimizer=largest.optimizer,
        records=max(_records(case, spec, budget) for spec in corner_trials(experiment, branch)),
        at_once=at_once,
        on_gpu=experiment.resources.of(specs[0].method).gpus_per_worker > 0,
    )


def _largest(experiment: ExperimentSpec, branch: Branch) -> Iterator[TrialSpec]:
    """The corners whose checkpoints differ in size; of several ranks the highest only."""
    found: dict[str, TrialSpec] = {}
    for spec in corner_trials(experiment, branch):
        method, shape = spec.method, "full"
        if isinstance(method, LoraMethod):
            shape = f"{method.target_modules} {method.dora}"
        key = f"{shape} {branch.model.dtype_of(spec)} {spec.optimizer.name}"
        if key not in found or _rank(spec) > _rank(found[key]):
            found[key] = spec
    yield from found.values()


def _rank(spec: TrialSpec) -> int:
    return spec.method.rank if isinstance(spec.method, LoraMethod) else 0


def _records(case: DiskCase, spec: TrialSpec, budget: int) -> int:
    """As if no conversations shared a row, so there may be fewer steps."""
    experiment, dataset = case.experiment, case.dataset
    train, held_out, generate = dataset.train, dataset.eval, experiment.generation
    epochs = spec.budget.epochs or (spec.budget.target_tokens or 0) / train.total_targets
    steps = math.ceil(epochs * math.ceil(len(train) / spec.batch.rows_per_step))
    rungs, evaluations = rungs_of(experiment, budget), spec.budget.evaluations
    reports = len(report_marks(budget, evaluations, rungs))
    asked = experiment.evaluation.conversations_at_rungs
    is_sampled = asked is not None and asked < len(held_out)  # such an evaluation is not kept by conversation
    kept = reports - (len(rungs_alone(budget, evaluations, rungs)) if is_sampled else 0)
    metrics = 1 + bool(held_out.target_bytes.any()) + (0 if generate is None else len(generate.scores))
    return steps * STEP_BYTES + reports * REPORT_BYTES + kept * metrics * len(held_out) * SCORE_BYTES
