"""What one trial needs on its machine: the dry run of its largest step, its memory, and its operations."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass

from components.conversations.chat_formats import load_chat_format
from components.conversations.load_format import format_spec_in
from components.conversations.tokenizers.load_tokenizer import load_tokenizer
from components.data.prepare import PreparedDataset, prepare_experiment
from components.data.rows import rows_of
from components.errors import InputError
from components.experiment.report_marks import rungs_of
from components.experiment.spec import ExperimentSpec, LoraMethod, ModelSpec, TrialSpec, WorkersSpec
from components.models.base.context import context_of
from components.models.base.load_base import config_of, resolve_model
from components.models.dtypes import DTYPES
from components.planning.dry_run import DryRun, dry_run_step
from components.planning.instance_types import NodeTable
from components.planning.memory import MemoryPlan, WorkerGroup, memory_plan, physical_memory, verification_plan
from components.planning.workload import Workload, workload
from components.storage.size import GB
from components.training.model_settings import abilities_for, settle
from components.training.rung_sample import RungSample
from components.training.vocabulary_check import check_vocabulary

THIS_MACHINE = "this machine"


@dataclass(frozen=True, kw_only=True)
class PlanCase:
    """All that decides how much memory one worker needs. The fewest workers of an elastic trial need most."""

    model: ModelSpec
    spec: TrialSpec
    workers: WorkersSpec

    @property
    def quantize(self) -> str | None:
        """How the base is quantized, if it is."""
        return self.spec.method.quantize if isinstance(self.spec.method, LoraMethod) else None


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """`memory` is that of a worker, `proof` that of the process that verifies the winner."""

    case: PlanCase
    workload: Workload
    dry_run: DryRun
    memory: MemoryPlan
    proof: MemoryPlan

    @property
    def needed(self) -> int:
        """Bytes of one process at the fullest moment of the trial and of its verification."""
        return max(self.memory.total, self.proof.total)

    def short(self, available: int) -> int:
        """How many bytes are missing if each worker has so many `available`.

        The verification is one process: it has the whole machine's CPU memory, but no larger a GPU than a worker.
        """
        alone = available if self.memory.device == "gpu" else available * self.case.workers.min_workers
        return max(0, self.memory.total - available, self.proof.total - alone)

    @property
    def flops_per_token(self) -> float:
        return self.dry_run.training_flops / (self.workload.batch.rows * self.workload.batch.tokens)

    @property
    def flops_per_evaluated_token(self) -> float:
        return self.dry_run.evaluation_flops / (self.workload.evaluated.rows * self.workload.evaluated.tokens)

    @property
    def flops_per_trial(self) -> float:
        trained = self.workload.trained_tokens * self.flops_per_token
        return trained + self.workload.evaluated_tokens * self.flops_per_evaluated_token


class Estimator:
    """The model and data of one experiment, from which any number of cases are estimated.

    Args:
        weights: the base model's weights are fetched, too; a dry run needs none.
        shared: as for `prepare`, of a search over several base models.

    Raises:
        InputError: the model has no configuration.
        ValueError: the model or the data cannot be used.
    """

    def __init__(
        self, experiment: ExperimentSpec, table: NodeTable, *, weights: bool, shared: Set[str] | None = None
    ) -> None:
        self.table = table
        directory = resolve_model(experiment.model, weights=weights)
        if not (directory / "config.json").exists():
            raise InputError(f"model.path={experiment.model.path}: the directory has no config.json to plan by")
        self.config = config_of(directory)
        abilities = abilities_for(experiment, self.config)
        self.dataset: PreparedDataset = prepare_experiment(
            experiment, directory, context=context_of(directory), shared=shared
        )
        stores = self.dataset.train, self.dataset.eval
        self.settings = settle(experiment, self.config, abilities, has_trees=any(store.has_forks for store in stores))
        self.experiment = self.settings.experiment
        self.train, self.eval = (rows_of(store, separate=self.settings.layout == "separate") for store in stores)
        sample = RungSample.of(self.dataset.eval, self.experiment.evaluation.conversations_at_rungs)
        self.sampled_rows = None if sample is None else sample.rows_of(self.eval)
        tokenizer = load_tokenizer(directory)
        chat_format = load_chat_format(tokenizer, format_spec_in(directory, experiment.format_spec))
        check_vocabulary(self.config, tokenizer, chat_format, self.dataset, name=experiment.model.path)
        self.pad_token_id = chat_format.pad_token_id

    def estimate(self, case: PlanCase) -> Estimate:
        """Takes seconds. Raises ValueError for a model that cannot run without the values of its weights."""
        spec, workers = case.spec, case.workers
        work = workload(
            self.train,
            self.eval,
            spec,
            max_tokens=self.experiment.data.max_tokens,
            workers=workers.min_workers,
            rungs=rungs_of(self.experiment, spec.budget.in_target_tokens(self.train.total_targets)),
            sample=self.sampled_rows,
        )
        group = WorkerGroup(
            count=workers.min_workers,
            on_gpu=workers.gpus_per_worker > 0,
            parallel=workers.parallel,
            cpu_offload=workers.cpu_offload,
            trials=workers.trials_at_once,
        )
        dry_run = dry_run_step(self.config, case.model, spec, work.batch, evaluated=work.evaluated, synced=group.synced)
        memory = memory_plan(dry_run, spec, group)
        proof = verification_plan(dry_run, group, base_bytes=_base_bytes(case, dry_run))
        return Estimate(case=case, workload=work, dry_run=dry_run, memory=memory, proof=proof)

    def bytes_per_worker(self, workers: WorkersSpec) -> dict[str, int]:
        """What each type of machine offers to one worker."""
        if not workers.gpus_per_worker:
            return {THIS_MACHINE: physical_memory() // workers.min_workers}
        share = min(1.0, workers.gpus_per_worker)
        return {name: int(node.gpu_memory_gb * GB * share) for name, node in self.table.nodes.items()}

    def types_that_fit(self, estimate: Estimate) -> tuple[str, ...]:
        offered = self.bytes_per_worker(estimate.case.workers)
        return tuple(name for name, available in offered.items() if not estimate.short(available))


def _base_bytes(case: PlanCase, dry_run: DryRun) -> int:
    """Of the base model, not quantized, which a verification loads."""
    adapter = dry_run.trained_parameters if isinstance(case.spec.method, LoraMethod) else 0
    return (dry_run.parameters - adapter) * DTYPES[case.model.dtype_of(case.spec)].itemsize
