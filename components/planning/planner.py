"""What each branch of a search will need: memory, GPU-hours and money, before a machine is rented."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from components.conversations.chat_formats import load_chat_format
from components.conversations.tokenizers.load import load_tokenizer
from components.data.prepare import PreparedDataset, prepare_experiment
from components.experiment.base_variants import dtype_warnings
from components.experiment.space import Branch, branch_order, branches_of, corners, trial_spec
from components.experiment.spec import ExperimentSpec, LoraMethod, ModelSpec, TrialSpec, WorkersSpec
from components.models.base.load import config_of, resolve_model
from components.models.dtypes import DTYPES
from components.planning.calibrate import Calibration, Candidate, calibrate
from components.planning.dry_run import DryRun, dry_run_step
from components.planning.experiment_plan import BranchPlan, ExperimentPlan, Fit, Remedy, Span
from components.planning.instance_types import NodeTable, NodeType
from components.planning.memory import Group, MemoryPlan, memory_plan, proof_plan
from components.planning.workload import Workload, trials_worth, workload
from components.training.check_vocabulary import check_vocabulary

GB = 1e9
THIS_MACHINE = "this machine"
MAX_SHARES = 8


@dataclass(frozen=True, kw_only=True)
class PlanCase:
    """All that decides what one worker holds. Of an elastic trial the fewest workers hold most."""

    model: ModelSpec
    spec: TrialSpec
    workers: WorkersSpec


@dataclass(frozen=True, kw_only=True)
class Estimate:
    situation: PlanCase
    workload: Workload
    rehearsal: DryRun
    memory: MemoryPlan
    proof: MemoryPlan

    @property
    def needed(self) -> int:
        """Of one process at the fullest moment of the trial and of its proof."""
        return max(self.memory.total, self.proof.total)

    def short(self, room: int) -> int:
        """Bytes that a worker's `room` lacks for the trial, or for the proof of it: one process that has the machine's CPU
        memory for itself, but no larger a GPU than the worker."""
        alone = room if self.memory.device == "gpu" else room * self.situation.workers.min_workers
        return max(0, self.memory.total - room, self.proof.total - alone)

    @property
    def flops_per_token(self) -> float:
        return self.rehearsal.training_flops / (self.workload.batch.rows * self.workload.batch.tokens)

    @property
    def flops_per_evaluated_token(self) -> float:
        return self.rehearsal.evaluation_flops / (self.workload.evaluated.rows * self.workload.evaluated.tokens)

    @property
    def flops_per_trial(self) -> float:
        trained = self.workload.trained_tokens * self.flops_per_token
        return trained + self.workload.evaluated_tokens * self.flops_per_evaluated_token


class Planner:
    """One experiment's model and data, asked about one situation after another."""

    def __init__(self, experiment: ExperimentSpec, table: NodeTable, *, weights: bool) -> None:
        self.experiment, self.table = experiment, table
        directory = resolve_model(experiment.model, weights=weights)
        if not (directory / "config.json").exists():
            raise ValueError(f"model.path={experiment.model.path}: the directory has no config.json to plan by")
        self.config = config_of(directory)
        self.dataset: PreparedDataset = prepare_experiment(experiment, directory)
        tokenizer = load_tokenizer(directory)
        chat_format = load_chat_format(tokenizer, experiment.chat_format)
        check_vocabulary(self.config, tokenizer, chat_format, self.dataset, name=experiment.model.path)
        self.pad_token_id = chat_format.pad_token_id

    def estimate(self, situation: PlanCase) -> Estimate:
        spec, workers = situation.spec, situation.workers
        work = workload(
            self.dataset.train,
            self.dataset.eval,
            spec,
            max_tokens=self.experiment.data.max_tokens,
            workers=workers.min_workers,
        )
        group = Group(
            count=workers.min_workers,
            on_gpu=workers.gpus_per_worker > 0,
            parallel=workers.parallel,
            cpu_offload=workers.cpu_offload,
        )
        rehearsal = dry_run_step(
            self.config, situation.model, spec, work.batch, evaluated=work.evaluated, synced=group.synced
        )
        memory = memory_plan(rehearsal, spec, group)
        proof = proof_plan(rehearsal, group, base_bytes=_base_bytes(situation, rehearsal))
        return Estimate(situation=situation, workload=work, rehearsal=rehearsal, memory=memory, proof=proof)

    def rooms(self, workers: WorkersSpec) -> dict[str, int]:
        """Bytes for one worker on each kind of machine."""
        if not workers.gpus_per_worker:
            return {THIS_MACHINE: physical_memory() // workers.min_workers}
        share = min(1.0, workers.gpus_per_worker)
        return {name: int(node.gpu_memory_gb * GB * share) for name, node in self.table.nodes.items()}

    def fitting(self, estimate: Estimate) -> tuple[str, ...]:
        rooms = self.rooms(estimate.situation.workers)
        return tuple(name for name, room in rooms.items() if not estimate.short(room))


def plan_experiment(
    experiment: ExperimentSpec, table: NodeTable, *, calibrated: bool, told: Callable[[str], None]
) -> ExperimentPlan:
    """Raises ValueError for a model that cannot be rehearsed.

    Args:
        calibrated: every branch that can takes a few real steps on this machine.
        told: what it is at, for people.
    """
    planner = Planner(experiment, table, weights=calibrated)
    told(planner.dataset.summary())
    for warning in dtype_warnings(experiment):
        told(f"Warning: {warning}")
    worst = {}
    for branch in branches_of(experiment).values():
        told(f"{branch.name}: one step is rehearsed")
        worst[branch.name] = _worst_corner(planner, branch)
        if whole_logits := worst[branch.name][1].rehearsal.whole_logits:
            told(f"{branch.name}: logits are computed at all positions, which takes memory: {whole_logits}")
    plans = []
    for name, (corner, estimate) in worst.items():
        measured = _measured(planner, name, estimate, told) if calibrated else None
        plans.append(_branch_plan(planner, name, corner, estimate, measured))
    return ExperimentPlan(
        experiment=experiment.name,
        model=experiment.model.path,
        prices_as_of=f"{table.as_of:%Y-%m-%d}",
        utilization=table.utilization,
        branches=tuple(plans),
    )


def physical_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _worst_corner(planner: Planner, branch: Branch) -> tuple[dict[str, Any], Estimate]:
    """Where memory is largest. Corners that differ in no size, such as a learning rate, are tried once."""
    experiment = planner.experiment
    tried: dict[str, tuple[dict[str, Any], Estimate]] = {}
    for values in corners(branch):
        spec = trial_spec(experiment, branch, values)
        sizes = _sizes(spec)
        if sizes.model_dump_json() not in tried and not _is_smaller(branch, values):
            situation = PlanCase(model=experiment.model, spec=sizes, workers=experiment.resources.of(spec.method))
            tried[sizes.model_dump_json()] = dict(values), planner.estimate(situation)
    return max(tried.values(), key=lambda corner: corner[1].memory.total)


def _sizes(spec: TrialSpec) -> TrialSpec:
    """The trial with everything set to one value that no size depends on."""
    method = spec.method
    if isinstance(method, LoraMethod):
        method = method.model_copy(update={"alpha": 1.0, "rslora": False, "dropout": 0.1 if method.dropout else 0.0})
    plain = TrialSpec.model_fields
    optimizer = plain["optimizer"].default.model_copy(update={"name": spec.optimizer.name})
    return spec.model_copy(update={"method": method, "optimizer": optimizer, "schedule": plain["schedule"].default})


GROWING = ("method.rank", "batch.rows_per_micro_batch", "method.dropout")


def _is_smaller(branch: Branch, values: Mapping[str, Any]) -> bool:
    """Whether more of something that only ever takes memory is in the space."""
    return any(
        values[path] < max(branch.domains[path].extremes())
        for path in GROWING
        if path in branch.domains and path in values
    )


def _base_bytes(situation: PlanCase, rehearsal: DryRun) -> int:
    """Of the base model as it is, which a proof loads."""
    adapter = rehearsal.trained_parameters if isinstance(situation.spec.method, LoraMethod) else 0
    return (rehearsal.parameters - adapter) * DTYPES[situation.model.dtype_of(situation.spec)].itemsize


def _quantize(situation: PlanCase) -> str | None:
    return situation.spec.method.quantize if isinstance(situation.spec.method, LoraMethod) else None


def _measured(planner: Planner, name: str, estimate: Estimate, told: Callable[[str], None]) -> Calibration | None:
    """None, with a word why, where a branch cannot be tried on this machine: the others may."""
    if estimate.situation.workers.parallel == "fsdp":
        told(f"{name}: not measured, for one process cannot be several that share a model")
        return None
    told(f"{name}: a few real steps")
    try:
        return calibrate(_candidate(planner, estimate))
    except ValueError as error:
        told(f"{name}: not measured. {error}")
        return None


def _candidate(planner: Planner, estimate: Estimate) -> Candidate:
    workers = estimate.situation.workers
    return Candidate(
        model=estimate.situation.model,
        spec=estimate.situation.spec,
        prepared=planner.dataset.directory,
        max_tokens=planner.experiment.data.max_tokens,
        pad_token_id=planner.pad_token_id,
        largest_step=estimate.workload.largest_step,
        tokens_in_step=estimate.workload.tokens_in_step,
        on_gpu=workers.gpus_per_worker > 0,
        threads=max(1, int(workers.cpus_per_worker)),
    )


def _branch_plan(
    planner: Planner,
    name: str,
    corner: dict[str, Any],
    estimate: Estimate,
    measured: Calibration | None,
) -> BranchPlan:
    experiment, workers, spec = planner.experiment, estimate.situation.workers, estimate.situation.spec
    trials = _trials_of(experiment, name)
    low, high = trials_worth(experiment.search.scheduler, spec.budget, estimate.workload.target_tokens, trials)
    worth = Span(low=low, high=high)
    fits = tuple(_fit(planner, node, room, estimate, worth, measured) for node, room in planner.rooms(workers).items())
    lost = not any(fit.fits for fit in fits)
    quantize = _quantize(estimate.situation)
    return BranchPlan(
        branch=name,
        method=f"{spec.method.kind}, {quantize}" if quantize else spec.method.kind,
        corner=corner,
        workers=workers.min_workers,
        parallel=workers.parallel,
        parameters=estimate.rehearsal.parameters,
        trained_parameters=estimate.rehearsal.trained_parameters,
        memory=estimate.memory,
        proof=estimate.proof,
        rows=estimate.workload.batch.rows,
        tokens=estimate.workload.batch.tokens,
        trials=trials,
        tokens_per_trial=estimate.workload.trained_tokens,
        flops_per_token=estimate.flops_per_token,
        search_tokens=worth.times(estimate.workload.trained_tokens),
        fits=fits,
        remedies=tuple(remedies(planner, estimate)) if lost else (),
        calibration=measured,
    )


def _trials_of(experiment: ExperimentSpec, branch: str) -> int:
    return sum(turn.name == branch for turn in branch_order(experiment))


def _fit(planner: Planner, name: str, room: int, estimate: Estimate, worth: Span, measured: Calibration | None) -> Fit:
    fit = Fit(node=name, room_bytes=room, short_bytes=estimate.short(room))
    node = planner.table.nodes.get(name) if estimate.situation.workers.gpus_per_worker else None
    speed = _speed(planner.table, node, estimate, measured)
    if speed is None:
        return fit
    hours = worth.times(estimate.flops_per_trial / speed / 3600)
    if node is None:
        return fit.model_copy(update={"hours": hours})
    spot = node.spot_dollars_per_gpu_hour
    dollars = {"dollars": hours.times(node.dollars_per_gpu_hour), "spot_dollars": hours.times(spot) if spot else None}
    return fit.model_copy(update={"hours": hours, **dollars})


def _speed(table: NodeTable, node: NodeType | None, estimate: Estimate, measured: Calibration | None) -> float | None:
    """Floating-point operations a second of one worker there; a measured GPU tells what share of their peak others reach."""
    reached = None if measured is None else measured.tokens_per_second * estimate.flops_per_token
    if node is None:
        return reached
    precision = estimate.situation.spec.precision
    peak = _peak(node, precision)
    known = [each for each in table.nodes.values() if measured is not None and each.gpu in measured.device]
    if reached is not None and known:
        return reached * peak / _peak(known[0], precision)
    return table.utilization * peak


def _peak(node: NodeType, precision: str) -> float:
    return 1e12 * (node.bf16_tflops if precision == "bf16" else node.fp32_tflops)


def remedies(planner: Planner, estimate: Estimate) -> Iterator[Remedy]:
    """Changes that take less memory, each on top of those before, until some kind of machine holds it."""
    changes: tuple[str, ...] = ()
    for change, changed in _changes(estimate.situation):
        smaller = planner.estimate(changed)
        if smaller.needed >= estimate.needed:
            continue
        estimate, changes = smaller, (*changes, change)
        yield Remedy(changes=changes, total_bytes=smaller.needed, fits_on=planner.fitting(smaller))
        if planner.fitting(smaller):
            return


def _changes(situation: PlanCase) -> Iterator[tuple[str, PlanCase]]:
    """In the order of what they cost: time first, then precision, then machines."""
    if not situation.spec.gradient_checkpointing:
        situation = _with(situation, gradient_checkpointing=True)
        yield "gradient_checkpointing: true", situation
    while situation.spec.batch.rows_per_micro_batch > 1:
        rows = situation.spec.batch.rows_per_micro_batch // 2
        situation = _with(situation, batch=situation.spec.batch.model_copy(update={"rows_per_micro_batch": rows}))
        yield f"batch.rows_per_micro_batch: {rows}", situation
    if isinstance(situation.spec.method, LoraMethod):
        yield from _for_lora(situation)
    else:
        yield from _for_full(situation)


def _for_lora(situation: PlanCase) -> Iterator[tuple[str, PlanCase]]:
    method = situation.spec.method
    if situation.model.dtype_of(situation.spec) == "fp32":
        changes = ["precision: bf16"] * (situation.spec.precision == "fp32")
        situation = _with(situation, precision="bf16")
        if situation.model.dtype_of(situation.spec) == "fp32":
            changes.append("dtype: bf16")
            situation = _with(situation, dtype="bf16")
        yield " and ".join(changes), situation
    for quantize in ("int8", "nf4") if _quantize(situation) is None else ():
        changed = method.model_copy(update={"quantize": quantize})
        yield f"method.quantize: {quantize}", _with(situation, method=changed)


def _for_full(situation: PlanCase) -> Iterator[tuple[str, PlanCase]]:
    workers = situation.workers
    optimizer = situation.spec.optimizer
    if workers.gpus_per_worker and workers.parallel == "ddp" and optimizer.name == "adamw":
        changed = optimizer.model_copy(update={"name": "paged_adamw_8bit"})
        yield "optimizer.name: paged_adamw_8bit", _with(situation, optimizer=changed)
    most = min(MAX_SHARES, situation.spec.batch.rows_per_step)
    first = workers.min_workers if workers.parallel == "ddp" and workers.min_workers > 1 else 2 * workers.min_workers
    whole = _with(situation, optimizer=optimizer.model_copy(update={"name": "adamw"}))
    count = first
    while count <= most:
        sharded = workers.model_copy(update={"parallel": "fsdp", "workers": count})
        situation = replace(whole, workers=sharded)
        yield f"resources.full: {{parallel: fsdp, workers: {count}}} and optimizer.name: adamw", situation
        count *= 2
    if situation.workers.parallel == "fsdp" and not situation.workers.cpu_offload and workers.gpus_per_worker:
        offloaded = situation.workers.model_copy(update={"cpu_offload": True})
        yield "resources.full.cpu_offload: true", replace(situation, workers=offloaded)


def _with(situation: PlanCase, **changes: Any) -> PlanCase:
    return replace(situation, spec=situation.spec.model_copy(update=changes))
