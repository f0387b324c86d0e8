"""What each branch of a search will need: memory, GPU-hours and money, before a machine is rented."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from components.data.same_words import shared_sources
from components.experiment.base_precisions import dtype_warnings
from components.experiment.branch_models import branches_by_model, view_of
from components.experiment.report_marks import rungs_of
from components.experiment.space import Branch, branch_order, branches_of, corners, trial_spec
from components.experiment.spec import ExperimentSpec, LoraMethod, TrialSpec, WorkersSpec
from components.planning.branch_plan import BranchPlan, NodeFit, Span
from components.planning.calibrate import Calibration, CalibrationRequest, calibrate_trial
from components.planning.disk_plan import DiskCase, disk_use
from components.planning.experiment_plan import ExperimentPlan
from components.planning.instance_types import InstanceType, NodeTable
from components.planning.remedies import remedies
from components.planning.trial_estimate import Estimate, Estimator, PlanCase
from components.planning.workload import trials_worth
from components.records.disk_use import DiskUse
from components.records.on_message import OnMessage, ignore_message
from components.training.budget_units import BudgetUnits, rescaled

# More of one of these only ever needs more memory.
GROWING = ("method.rank", "batch.rows_per_micro_batch", "method.dropout")


def plan(
    experiment: ExperimentSpec,
    table: NodeTable,
    *,
    calibrate: bool = False,
    on_message: OnMessage = ignore_message,
) -> ExperimentPlan:
    """Plans every branch at the corner of its space that needs most memory. Prepares the data as a search would.

    Args:
        table: the machines, their speeds and prices.
        calibrate: every branch that can takes a few real steps on this machine.
        on_message: what is being done, in sentences for people.

    Raises:
        ValueError: the model or the data cannot be used, or no dry run of the model is possible.
    """
    plans = {}
    for warning in dtype_warnings(experiment):
        on_message(f"Warning: {warning}")
    estimators = _estimators(experiment, table, weights=calibrate)
    for estimator in estimators:
        on_message(estimator.dataset.summary())
        on_message(estimator.settings.sentence)
        plans.update(_plan_base(experiment, estimator, calibrate=calibrate, on_message=on_message))
    return ExperimentPlan(
        experiment=experiment.name,
        model=", ".join(model.path for model in branches_by_model(experiment)),
        prices_as_of=f"{table.as_of:%Y-%m-%d}",
        utilization=table.utilization,
        branches=tuple(plans[name] for name in experiment.search.space),
        disk=_disk(experiment, estimators),
        disk_budget_gb=experiment.storage.budget_gb,
    )


def _disk(experiment: ExperimentSpec, estimators: Sequence[Estimator]) -> DiskUse:
    default = estimators[0]
    units = BudgetUnits.of(default.dataset, by_bytes=len(estimators) > 1)
    cases = [DiskCase(experiment=each.experiment, config=each.config, dataset=each.dataset) for each in estimators]
    return disk_use(experiment, cases, units.planned(default.experiment.trial.budget))


def _estimators(experiment: ExperimentSpec, table: NodeTable, *, weights: bool) -> list[Estimator]:
    """Returns one for each base model, with its branches, and with the data and the budget that a search would give it."""
    views = [view_of(experiment, model, names) for model, names in branches_by_model(experiment).items()]
    estimators = [Estimator(view, table, weights=weights) for view in views]
    if len(views) == 1:
        return estimators
    shared = shared_sources([estimator.dataset for estimator in estimators])
    if shared is not None:
        estimators = [Estimator(view, table, weights=weights, shared=shared) for view in views]
    written = estimators[0].dataset.train.total_targets
    for estimator in estimators:
        estimator.experiment = rescaled(estimator.experiment, of=written, to=estimator.dataset.train.total_targets)
    return estimators


def _plan_base(
    whole: ExperimentSpec, estimator: Estimator, *, calibrate: bool, on_message: OnMessage
) -> dict[str, BranchPlan]:
    """Returns the plans of the branches of one base model."""
    worst = {}
    for branch in branches_of(estimator.experiment).values():
        on_message(f"{branch.name}: a dry run of one step")
        worst[branch.name] = _worst_corner(estimator, branch)
        if whole_logits := worst[branch.name][1].dry_run.whole_logits:
            on_message(f"{branch.name}: logits are computed at all positions, which takes memory: {whole_logits}")
    plans = {}
    for name, (corner, estimate) in worst.items():
        measured = _calibrate(estimator, name, estimate, on_message) if calibrate else None
        trials = sum(turn.name == name for turn in branch_order(whole))
        plans[name] = _branch_plan(estimator, name, corner, estimate, measured, trials)
    return plans


def _worst_corner(estimator: Estimator, branch: Branch) -> tuple[dict[str, Any], Estimate]:
    """Where memory is largest. Corners that differ in no size, such as a learning rate, are estimated once."""
    experiment = estimator.experiment
    estimated: dict[str, tuple[dict[str, Any], Estimate]] = {}
    for values in corners(branch):
        spec = trial_spec(experiment, branch, values)
        sizes = _sizes(spec)
        if sizes.model_dump_json() not in estimated and not _is_smaller(branch, values):
            case = PlanCase(model=experiment.model, spec=sizes, workers=experiment.workers_of(spec.method))
            estimated[sizes.model_dump_json()] = dict(values), estimator.estimate(case)
    return max(estimated.values(), key=lambda corner: corner[1].memory.total)


def _sizes(spec: TrialSpec) -> TrialSpec:
    """The trial with one value for everything that no size depends on."""
    method = spec.method
    if isinstance(method, LoraMethod):
        method = method.model_copy(update={"alpha": 1.0, "rslora": False, "dropout": 0.1 if method.dropout else 0.0})
    plain = TrialSpec.model_fields
    optimizer = plain["optimizer"].default.model_copy(update={"name": spec.optimizer.name})
    return spec.model_copy(update={"method": method, "optimizer": optimizer, "schedule": plain["schedule"].default})


def _is_smaller(branch: Branch, values: Mapping[str, Any]) -> bool:
    """Whether another corner has more of something that only ever needs memory."""
    return any(
        values[path] < max(branch.domains[path].extremes())
        for path in GROWING
        if path in branch.domains and path in values
    )


def _calibrate(estimator: Estimator, name: str, estimate: Estimate, on_message: OnMessage) -> Calibration | None:
    """None, with a message, where a branch cannot run on this machine: the other branches may."""
    if estimate.case.workers.parallel == "fsdp":
        on_message(f"{name}: not measured, for one process cannot be several that share a model")
        return None
    on_message(f"{name}: a few real steps")
    try:
        return calibrate_trial(_calibration_request(estimator, estimate))
    except ValueError as error:
        on_message(f"{name}: not measured. {error}")
        return None


def _calibration_request(estimator: Estimator, estimate: Estimate) -> CalibrationRequest:
    workers = estimate.case.workers
    return CalibrationRequest(
        model=estimate.case.model,
        spec=estimate.case.spec,
        prepared=estimator.dataset.directory,
        max_tokens=estimator.experiment.data.max_tokens,
        pad_token_id=estimator.pad_token_id,
        layout=estimator.settings.layout,
        largest_step=estimate.workload.largest_step,
        tokens_in_step=estimate.workload.tokens_in_step,
        on_gpu=workers.gpus_per_worker > 0,
        threads=max(1, int(workers.cpus_per_worker)),
    )


def _branch_plan(
    estimator: Estimator,
    name: str,
    corner: dict[str, Any],
    estimate: Estimate,
    measured: Calibration | None,
    trials: int,
) -> BranchPlan:
    experiment, workers, spec = estimator.experiment, estimate.case.workers, estimate.case.spec
    budget = estimate.workload.target_tokens
    low, high = trials_worth(experiment.search.scheduler, budget, trials, rungs_of(experiment, budget))
    worth = Span(low=low, high=high)
    offered = estimator.bytes_per_worker(workers).items()
    fits = tuple(_node_fit(estimator.table, node, size, estimate, worth, measured) for node, size in offered)
    quantize = estimate.case.quantize
    return BranchPlan(
        branch=name,
        base=experiment.model.path,
        method=", ".join(filter(None, [spec.method.kind, quantize, _together(workers)])),
        corner=corner,
        workers=workers.min_workers,
        parallel=workers.parallel,
        parameters=estimate.dry_run.parameters,
        trained_parameters=estimate.dry_run.trained_parameters,
        memory=estimate.memory,
        proof=estimate.proof,
        rows=estimate.workload.batch.rows,
        tokens=estimate.workload.batch.tokens,
        trials=trials,
        tokens_per_trial=estimate.workload.trained_tokens,
        flops_per_token=estimate.flops_per_token,
        search_tokens=worth.times(estimate.workload.trained_tokens),
        fits=fits,
        remedies=() if any(fit.fits for fit in fits) else tuple(remedies(estimator, estimate)),
        calibration=measured,
    )


def _together(workers: WorkersSpec) -> str:
    return f"{workers.trials_at_once} trials a slot" if workers.trials_at_once > 1 else ""


def _node_fit(
    table: NodeTable, name: str, available: int, estimate: Estimate, worth: Span, measured: Calibration | None
) -> NodeFit:
    fit = NodeFit(node=name, room_bytes=available, short_bytes=estimate.short(available))
    node = table.nodes.get(name) if estimate.case.workers.gpus_per_worker else None
    speed = _flops_per_second(table, node, estimate, measured)
    if speed is None:
        return fit
    hours = worth.times(estimate.flops_per_trial / speed / 3600)
    if node is None:
        return fit.model_copy(update={"hours": hours})
    spot = node.spot_dollars_per_gpu_hour
    dollars = {"dollars": hours.times(node.dollars_per_gpu_hour), "spot_dollars": hours.times(spot) if spot else None}
    return fit.model_copy(update={"hours": hours, **dollars})


def _flops_per_second(
    table: NodeTable, node: InstanceType | None, estimate: Estimate, measured: Calibration | None
) -> float | None:
    """Of one worker on that node. The share of its peak that a measured GPU reached is assumed of the others, too."""
    reached = None if measured is None else measured.tokens_per_second * estimate.flops_per_token
    if node is None:
        return reached
    precision = estimate.case.spec.precision
    known = [each for each in table.nodes.values() if measured is not None and each.is_of(measured.device)]
    if reached is not None and known:
        return reached * node.peak_flops(precision) / known[0].peak_flops(precision)
    return table.utilization * node.peak_flops(precision)
