"""What to change in an experiment whose branch fits on no machine, the cheapest changes first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from components.experiment.spec import LoraMethod
from components.planning.branch_plan import Remedy
from components.planning.estimate import Estimate, Estimator, PlanCase

MAX_SHARDS = 8  # of a model


def remedies(estimator: Estimator, estimate: Estimate) -> Iterator[Remedy]:
    """Changes that need less memory, each on top of those before, until some type of machine holds the trial."""
    changes: tuple[str, ...] = ()
    for change, case in smaller_cases(estimate.case):
        smaller = estimator.estimate(case)
        if smaller.needed >= estimate.needed:
            continue
        estimate, changes = smaller, (*changes, change)
        fits_on = estimator.types_that_fit(smaller)
        yield Remedy(changes=changes, total_bytes=smaller.needed, fits_on=fits_on)
        if fits_on:
            return


def smaller_cases(case: PlanCase) -> Iterator[tuple[str, PlanCase]]:
    """(the change, the case with it and all before it), in the order of what they cost: time, precision, machines."""
    if not case.spec.gradient_checkpointing:
        case = _with(case, gradient_checkpointing=True)
        yield "gradient_checkpointing: true", case
    while case.spec.batch.rows_per_micro_batch > 1:
        rows = case.spec.batch.rows_per_micro_batch // 2
        case = _with(case, batch=case.spec.batch.model_copy(update={"rows_per_micro_batch": rows}))
        yield f"batch.rows_per_micro_batch: {rows}", case
    if isinstance(case.spec.method, LoraMethod):
        yield from _smaller_lora(case, case.spec.method)
    else:
        yield from _smaller_full(case)


def _smaller_lora(case: PlanCase, method: LoraMethod) -> Iterator[tuple[str, PlanCase]]:
    if case.model.dtype_of(case.spec) == "fp32":
        changes = ["precision: bf16"] * (case.spec.precision == "fp32")
        case = _with(case, precision="bf16")
        if case.model.dtype_of(case.spec) == "fp32":
            changes.append("dtype: bf16")
            case = _with(case, dtype="bf16")
        yield " and ".join(changes), case
    for quantize in ("int8", "nf4") if case.quantize is None else ():
        changed = method.model_copy(update={"quantize": quantize})
        yield f"method.quantize: {quantize}", _with(case, method=changed)


def _smaller_full(case: PlanCase) -> Iterator[tuple[str, PlanCase]]:
    workers = case.workers
    optimizer = case.spec.optimizer
    if workers.gpus_per_worker and workers.parallel == "ddp" and optimizer.name == "adamw":
        changed = optimizer.model_copy(update={"name": "paged_adamw_8bit"})
        yield "optimizer.name: paged_adamw_8bit", _with(case, optimizer=changed)
    most = min(MAX_SHARDS, case.spec.batch.rows_per_step)
    count = workers.min_workers if workers.parallel == "ddp" and workers.min_workers > 1 else 2 * workers.min_workers
    whole = _with(case, optimizer=optimizer.model_copy(update={"name": "adamw"}))
    while count <= most:
        sharded = workers.model_copy(update={"parallel": "fsdp", "workers": count})
        case = replace(whole, workers=sharded)
        yield f"resources.full: {{parallel: fsdp, workers: {count}}} and optimizer.name: adamw", case
        count *= 2
    if case.workers.parallel == "fsdp" and not case.workers.cpu_offload and workers.gpus_per_worker:
        offloaded = case.workers.model_copy(update={"cpu_offload": True})
        yield "resources.full.cpu_offload: true", replace(case, workers=offloaded)


def _with(case: PlanCase, **changes: Any) -> PlanCase:
    return replace(case, spec=case.spec.model_copy(update=changes))
