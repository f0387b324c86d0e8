"""Trains one trial after another on a base model that stays in memory."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import cast

from torch import nn
from transformers import PreTrainedModel

from components.errors import InputError
from components.experiment.base_precisions import BaseVariant, base_variant
from components.experiment.generation_rules import WITHOUT
from components.experiment.spec import FLASH_ATTENTION, Dtype, LoraMethod, ModelSpec, TrialSpec, why_alone
from components.models.attention_backend import INSTALL_ADVICE, attention_of, is_usable
from components.models.base.load_base import load_base_model
from components.models.base.reference import BaseReference
from components.models.base.reusable import ReusableBase
from components.models.quantization_backend import WAYS_OUT, missing_package, why_unusable
from components.models.shared_base import SharedBase
from components.records.events import Extension, InterimCheckpoint, Progress
from components.storage.background_upload import BackgroundUpload
from components.storage.folder import Folder
from components.training.checkpoint import load_weights
from components.training.checkpoint_names import at_report, between_reports
from components.training.co_training import CoTraining, SharedTraining
from components.training.data_parallel import set_gradient_checkpointing
from components.training.fsdp import ShardedBase
from components.training.loss import ScoredModel
from components.training.model_abilities import can_keep_apart
from components.training.out_of_memory import RowsExceedMemory, is_out_of_memory
from components.training.pace import Pace
from components.training.reply_scores import ReplyScores
from components.training.signals import NO_SIGNALS, NoSignals, TrialSignals
from components.training.trainer import Trainer
from components.training.training_data import TrainingData
from components.training.workers import UnfitWorkersError, Workers

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Isolation:
    """Of packed conversations from each other: `packs` if there is any, `apart` if there is without masks."""

    packs: bool
    apart: bool


class TrialRunner:
    """Holds the base model and at most one running trial. Each worker of a slot has one."""

    def __init__(
        self,
        model: ModelSpec,
        data: TrainingData,
        workers: Workers,
        base: BaseReference,
        checkpoints: Folder,
        rungs: tuple[int, ...] = (),
        pace: Pace | None = None,
        shared: SharedTraining | None = None,
    ) -> None:
        """`rungs`: where every trial reports beside its regular evaluations, in target tokens. `pace`: that of its trials.

        `shared`: of a slot where other runners train trials on the same base, each in a thread of its own.
        """
        self.rungs = rungs
        self.model, self.data, self.workers, self.base, self.checkpoints = model, data, workers, base, checkpoints
        self.warm = ReusableBase(self._load)
        self.sharded = ShardedBase(self._load_mapped, workers)
        self.run: Trainer | None = None
        self.pace = pace or Pace()
        self.shared = shared
        self.uploads = BackgroundUpload()
        self.trial_id = ""
        self._isolations: dict[tuple[BaseVariant, str], Isolation] = {}

    @property
    def running(self) -> Trainer:
        if self.run is None:
            raise RuntimeError("no trial has been started")
        return self.run

    def warm_up(self, kind: BaseVariant) -> None:
        """Loads the base model before the first trial needs it."""
        missing = not is_usable(self.model.attention) or (kind.quantize is not None and why_unusable())
        if self.workers.parallel == "fsdp" or missing:  # the first trial says what is missing
            return
        if self.shared is None:
            self.warm.load(kind)
            return
        with contextlib.suppress(InputError):  # as the first trial says
            self.shared.group(lambda: self._base_of(kind))

    def start(
        self, trial_id: str, spec: TrialSpec, warm_from: Folder | None = None, max_rows: int | None = None
    ) -> None:
        """Starts a new trial on a clean model; the trial before leaves no trace in it.

        Raises InputError for an impossible spec, and UnfitWorkersError if no trial of this model can be trained here.

        Args:
            warm_from: a checkpoint of another trial, whose weights this one begins with. Nothing else of it is used.
            max_rows: how many are computed at once at most, where the spec's micro-batch does not fit into memory.
        """
        with self._clean_after_failure():
            self._start(trial_id, spec, warm_from, max_rows)

    def advance(self, signals: TrialSignals = NO_SIGNALS) -> Progress | InterimCheckpoint:
        """Trains up to the next report and writes its checkpoint (none if the trial diverged). See Trainer.advance.

        A preempted trial writes an interim checkpoint instead, which is complete on return. The next call continues from
        there. Raises RowsExceedMemory if its rows do not fit into memory.
        """
        with self._clean_after_failure():
            return self._advance(self.running, signals)

    def load(self, checkpoint: Folder) -> None:
        """Continues the running trial from a checkpoint; all workers call it."""
        with self._clean_after_failure():
            directory = checkpoint.download()
            with self._alone(self.running):
                self.running.load(directory)
        self.workers.barrier()
        checkpoint.evict()

    def replay_to(self, step: int, extensions: Sequence[Extension] = ()) -> None:
        """Trains again up to the report at `step`, of which there is no checkpoint, e.g. for its upload had not ended.

        Training is deterministic (on a GPU nearly, as its sums may be in another order), so these steps are not reported
        again; only their checkpoints are written again. Raises ValueError if they diverge this time.
        """
        while self.running.counters.reported_step < step:
            progress = self.advance(NoSignals(extensions))
            if isinstance(progress, Progress) and progress.diverged is not None:
                raise ValueError(
                    f"the steps to the report at {step}, repeated for a lost checkpoint: {progress.diverged}"
                )

    def end(self) -> None:
        """Forgets the trial, if there is one."""
        run, self.run = self.run, None
        if self.shared is not None and run is not None:
            self.shared.current.leave(run)

    def wait_for_uploads(self) -> None:
        """Waits until no upload is running. A failed upload is logged, and its checkpoint is lost.

        Its trial has ended, and a reader of the checkpoint will miss it. The next trial must not fail for that.
        """
        try:
            self.uploads.wait()
        except OSError as error:
            log.error("trial %s: its last checkpoint is lost: %s", self.trial_id, error)

    def _start(self, trial_id: str, spec: TrialSpec, warm_from: Folder | None, max_rows: int | None) -> None:
        self.end()  # frees the old optimizer before the new one is made
        self.wait_for_uploads()
        self.trial_id = trial_id
        self.pace.begin()
        self._check_attention()
        self._check_quantization(spec)
        weights = None if warm_from is None else warm_from.download()
        if self.shared is None:
            self.run = self._trainer(self._clean_model(spec), spec, weights, max_rows)
        else:
            group = self.shared.group(lambda: self._base_of(base_variant(self.model, spec)))
            self.run = self._joined(group, spec, weights, max_rows)

    def _trainer(self, scored: ScoredModel, spec: TrialSpec, weights: Path | None, max_rows: int | None) -> Trainer:
        spec = self._with_packing(scored, spec)
        set_gradient_checkpointing(scored.model, spec)
        if weights is not None:
            load_weights(scored.model, weights)
        # A trained model is loaded later with the same base as here, even where the experiment says `auto`.
        model = self.base.model.for_trial(spec).model_copy(update={"attention": scored.attention})
        base = self.base.model_copy(update={"model": model})
        return Trainer(spec, scored, self.data, self.workers, base, self.rungs, self._reply_scores, max_rows, self.pace)

    def _joined(self, group: CoTraining, spec: TrialSpec, weights: Path | None, max_rows: int | None) -> Trainer:
        """Returns a trial that is trained with others from its next step on."""
        if reason := why_alone(spec.method, self.workers.count):
            raise InputError(f"{reason}; or set search.trials_per_slot: 1")
        model = group.add(cast(LoraMethod, spec.method), spec.seed)
        try:
            with group.alone(model):
                trainer = self._trainer(self._scored(model, spec), spec, weights, max_rows)
            group.join(trainer)
        except Exception:
            group.forget(model)
            raise
        return trainer

    def _advance(self, run: Trainer, signals: TrialSignals) -> Progress | InterimCheckpoint:
        try:
            progress = run.advance(signals) if self.shared is None else self.shared.current.advance(run, signals)
        except Exception as error:
            if is_out_of_memory(error):
                raise RowsExceedMemory(f"{type(error).__name__}: {error}") from error
            raise
        folder = self.checkpoints / self.trial_id
        if progress is None:
            interim = folder / between_reports(run.counters.reported_step, run.counters.step)
            self._save(run, interim)
            self._flush_uploads()
            self._delete_earlier(interim)
            return InterimCheckpoint(step=run.counters.step, checkpoint=str(interim))
        if progress.diverged is not None:
            return progress
        if run.evaluation is not None and self.workers.worker_rank == 0:
            run.evaluation.write(self.checkpoints.parent, self.trial_id, progress.step)
        directory = folder / at_report(progress.step)
        self._save(run, directory)
        if progress.done:
            self._flush_uploads()
        return progress.model_copy(update={"checkpoint": str(directory)})

    @contextlib.contextmanager
    def _clean_after_failure(self) -> Iterator[None]:
        """A trial that fails in the middle may leave a sharded model gathered in part: no other trial uses that one."""
        try:
            yield
        except Exception:
            self.end()
            self.sharded.drop()
            raise

    def _alone(self, run: Trainer) -> contextlib.AbstractContextManager[None]:
        """Inside, this trial's weights are the model's, and no other's."""
        return contextlib.nullcontext() if self.shared is None else self.shared.current.alone(run.model)

    def _save(self, run: Trainer, directory: Folder) -> None:
        if self.shared is not None:
            self.uploads.wait()  # while others go on
        with self._alone(run):
            run.save(directory, self.uploads)

    def _flush_uploads(self) -> None:
        """Returns once the uploads of all workers have completed, so that any of them may leave."""
        self.uploads.wait()
        self.workers.barrier()

    def _delete_earlier(self, interim: Folder) -> None:
        """Deletes interim checkpoints before the newest one, so that a trial that is often interrupted has one at most."""
        if self.workers.worker_rank == 0:
            for name in interim.parent.list_names():
                if "+" in name and name < interim.name:
                    (interim.parent / name).delete()

    def _clean_model(self, spec: TrialSpec) -> ScoredModel:
        if self.workers.parallel == "fsdp":
            return self.sharded.acquire(spec.computed_in, self.model.dtype_of(spec))
        return self._scored(self.warm.acquire(base_variant(self.model, spec), spec.method, spec.seed), spec)

    def _base_of(self, kind: BaseVariant) -> SharedBase:
        return SharedBase(self.warm.load(kind))

    def _scored(self, model: nn.Module, spec: TrialSpec) -> ScoredModel:
        device = self.workers.device
        return ScoredModel(model, precision=spec.computed_in, attention=attention_of(model), device=device)

    @cached_property
    def _reply_scores(self) -> ReplyScores | None:
        plan = self.data.generation
        if plan is None:
            return None
        if self.workers.parallel == "fsdp":
            raise InputError(f"parallel: fsdp shards the weights, and evaluation generates text; {WITHOUT}")
        return ReplyScores.of(plan, self.data.dataset.eval, self.base, self.data.max_tokens)

    def _check_attention(self) -> None:
        """All workers raise, or none: a worker that trains would wait endlessly for one that does not."""
        if self.model.attention != FLASH_ATTENTION:
            return
        (unfit,) = self.workers.sum([float(not is_usable(self.model.attention))])
        if unfit:
            raise UnfitWorkersError(
                f"model.attention={FLASH_ATTENTION}: {unfit:.0f} of {self.workers.count} workers of a trial have no package"
                f" flash-attn, or no GPU that it supports; {INSTALL_ADVICE}"
            )

    def _check_quantization(self, spec: TrialSpec) -> None:
        """All workers raise, or none, as above. Trials of other methods may succeed, so this ends no search."""
        missing = missing_package([spec])
        (unfit,) = self.workers.sum([float(bool(missing))])
        if unfit:
            reason = missing or f"another worker of this trial cannot use bitsandbytes; {WAYS_OUT}"
            raise InputError(f"{reason} ({unfit:.0f} of {self.workers.count} workers)")

    def _load(self, kind: BaseVariant) -> PreTrainedModel:
        model = self.model.model_copy(update={"dtype": kind.dtype})
        return load_base_model(model, device=self.workers.device, quantize=kind.quantize)

    def _load_mapped(self, dtype: Dtype) -> PreTrainedModel:
        return load_base_model(self.model.model_copy(update={"dtype": dtype}), as_stored=True)

    def _with_packing(self, scored: ScoredModel, spec: TrialSpec) -> TrialSpec:
        """Returns the trial with what `batch.packing: auto` comes to. Raises InputError if rows cannot be packed."""
        wanted, scored.keeps_apart = spec.batch.packing, False
        packs = wanted is not False and self._isolates_rows(scored, spec)
        if wanted is True and not packs:
            raise InputError(
                f"model.path={self.model.path}: with model.attention={scored.attention} it lets packed conversations see"
                " each other; set batch.packing: false"
            )
        if wanted == "auto" and not packs:
            log.warning(
                "rows are not packed: with attention %s packed conversations would see each other", scored.attention
            )
        return spec.model_copy(update={"batch": spec.batch.model_copy(update={"packing": packs})})

    def _isolates_rows(self, scored: ScoredModel, spec: TrialSpec) -> bool:
        """Whether conversations that share a row do not see each other, tried once for each loaded base.

        Without masks if that keeps them apart on every worker, else with them.
        """
        kind = base_variant(self.model, spec), spec.computed_in
        if kind not in self._isolations:
            # Where one worker has no such kernel, another may not try without it: a sharded model computes on all or none.
            (cannot,) = self.workers.sum([float(not self._may_keep_apart(scored))])
            apart = not cannot and self._all_isolate(scored, apart=True)
            self._isolations[kind] = Isolation(apart=apart, packs=apart or self._all_isolate(scored, apart=False))
        scored.keeps_apart = self._isolations[kind].apart
        return self._isolations[kind].packs

    def _may_keep_apart(self, scored: ScoredModel) -> bool:
        """A class may expect a mask. A sharded model must not find out itself: an error would leave it half gathered."""
        if not (scored.may_keep_apart and self.workers.parallel == "fsdp"):
            return scored.may_keep_apart
        config = cast(PreTrainedModel, scored.model).config
        return can_keep_apart(config, scored.attention, longest=self.data.max_tokens)

    def _all_isolate(self, scored: ScoredModel, *, apart: bool) -> bool:
        """Each worker has measured it on its own device, and all must come to the same decision."""
        try:
            isolates = scored.isolates_packed_rows(apart)
        except Exception as error:
            if not apart or self.workers.parallel == "fsdp":
                raise
            log.info("packed rows have masks: without them this model raises %s: %s", type(error).__name__, error)
            isolates = False
        (leaks,) = self.workers.sum([float(not isolates)])
        return not leaks
