"""A place where one trial after another is trained on a base model that stays in memory."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from torch import nn
from transformers import PreTrainedModel

from components.experiment.base_variants import BaseVariant, base_variant
from components.experiment.spec import FLASH_ATTENTION, Dtype, LoraMethod, ModelSpec, TrialSpec
from components.models.attention_backend import WAY_OUT, is_usable
from components.models.base.load import load_base_model
from components.models.base.reference import BaseReference
from components.models.base.reusable import ReusableBase
from components.records.events import Extension, Interim, Progress
from components.storage.background_upload import BackgroundUpload
from components.storage.base import Folder
from components.training.checkpoint import load_weights
from components.training.checkpoint_names import at_report, between_reports
from components.training.fsdp import ShardedBase
from components.training.loss import ScoredModel
from components.training.trainer import TrainingData, TrialRun, never
from components.training.workers import UnfitWorkersError, Workers

log = logging.getLogger(__name__)


class Session:
    """Holds the base model and at most one running trial. Each worker of a slot has one."""

    def __init__(
        self, model: ModelSpec, data: TrainingData, workers: Workers, base: BaseReference, checkpoints: Folder
    ) -> None:
        self.model, self.data, self.workers, self.base, self.checkpoints = model, data, workers, base, checkpoints
        self.warm = ReusableBase(self._loaded)
        self.sharded = ShardedBase(self._mapped, workers, attention=model.attention)
        self.run: TrialRun | None = None
        self.uploads = BackgroundUpload()
        self.trial_id = ""
        self._isolates: dict[BaseVariant, bool] = {}

    def warm_up(self, kind: BaseVariant) -> None:
        """Loads the base model; without it the first trial waits for that."""
        if self.workers.parallel == "ddp" and is_usable(self.model.attention):
            self.warm.load(kind)

    def start(self, trial_id: str, spec: TrialSpec, warm_from: Folder | None = None) -> None:
        """A clean model for a new trial; the one before leaves no trace.

        Raises ValueError for an impossible spec, and UnfitWorkersError where no trial of this model can be trained.

        `warm_from` is a checkpoint of another trial: its weights are where this one begins, and nothing else of it.
        """
        self.run = None  # frees the old optimizer before the new one is made
        self.settle()
        self.trial_id = trial_id
        self._check_attention()
        scored = self._clean_model(spec)
        if spec.batch.packing:
            self._assert_isolation(scored, spec)
        set_gradient_checkpointing(scored.model, spec)
        if warm_from is not None:
            load_weights(scored.model, warm_from.download())
        # What is trained is loaded again with its base as it was here, whatever the experiment leaves to `auto`.
        base = self.base.model_copy(update={"model": self.base.model.for_trial(spec)})
        self.run = TrialRun(spec, scored, self.data, self.workers, base)

    def advance(
        self,
        interrupted: Callable[[], bool] = never,
        extensions: Sequence[Extension] = (),
        ended: Callable[[], bool] = never,
    ) -> Progress | Interim:
        """To the next report, with a checkpoint beside it (none if the trial diverged).

        If `interrupted` says so (TrialRun.advance): to an interim checkpoint; to advance again goes on from there.
        `extensions` are all that the trial has been given so far. If `ended` says so, the report comes after this step.
        """
        run = self.running
        progress = run.advance(interrupted, extensions, ended)
        folder = self.checkpoints / self.trial_id
        if progress is None:
            interim = folder / between_reports(run.counters.reported_step, run.counters.step)
            run.save(interim, self.uploads)
            self._arrived()
            return Interim(step=run.counters.step, checkpoint=str(interim))
        if progress.diverged is not None:
            return progress
        directory = folder / at_report(progress.step)
        run.save(directory, self.uploads)
        if progress.done:
            self._arrived()
        return progress.model_copy(update={"checkpoint": str(directory)})

    def load(self, checkpoint: Folder) -> None:
        """Goes on from a checkpoint of the running trial; all workers call it."""
        self.running.load(checkpoint.download())
        self.workers.barrier()
        checkpoint.evict()

    def catch_up(self, step: int, extensions: Sequence[Extension] = ()) -> None:
        """Trains again up to the report at `step`, which was told before its checkpoint had arrived.

        The same as before comes of it, so nobody is told again; this time the checkpoint arrives.
        """
        while self.running.counters.reported_step < step:
            self.advance(extensions=extensions)

    def settle(self) -> None:
        """Until nothing is on its way to the storage. What could not be sent is said in the log, and lost.

        Its trial has ended, and whoever looks for the checkpoint finds none; the next trial is not to blame.
        """
        try:
            self.uploads.wait()
        except OSError as error:
            log.error("trial %s: its last checkpoint is lost: %s", self.trial_id, error)

    def _arrived(self) -> None:
        """From all workers: who leaves now leaves nothing behind."""
        self.uploads.wait()
        self.workers.barrier()

    def _clean_model(self, spec: TrialSpec) -> ScoredModel:
        if self.workers.parallel == "fsdp":
            return self.sharded.begin(spec.precision, self.model.dtype_of(spec))
        model = self.warm.acquire(base_variant(self.model, spec), spec.method, spec.seed)
        attention, device = self.model.attention, self.workers.device
        return ScoredModel(model, precision=spec.precision, attention=attention, device=device)

    def _check_attention(self) -> None:
        """All workers agree: one that trains on would wait in vain for one that cannot."""
        if self.model.attention != FLASH_ATTENTION:
            return
        (unfit,) = self.workers.sum([float(not is_usable(self.model.attention))])
        if unfit:
            raise UnfitWorkersError(
                f"model.attention={FLASH_ATTENTION}: {unfit:.0f} of {self.workers.count} workers of a trial have no package"
                f" flash-attn, or no GPU that it supports; {WAY_OUT}"
            )

    def _loaded(self, kind: BaseVariant) -> PreTrainedModel:
        model = self.model.model_copy(update={"dtype": kind.dtype})
        return load_base_model(model, device=self.workers.device, quantize=kind.quantize)

    def _mapped(self, dtype: Dtype) -> PreTrainedModel:
        return load_base_model(self.model.model_copy(update={"dtype": dtype}), as_stored=True)

    def _assert_isolation(self, scored: ScoredModel, spec: TrialSpec) -> None:
        """Tried once for each loaded base: conversations that share a row must not see each other."""
        kind = base_variant(self.model, spec)
        if kind not in self._isolates:
            self._isolates[kind] = scored.isolates_packed_rows()
        if not self._isolates[kind]:
            raise ValueError(
                f"model.path={self.model.path}: with model.attention={self.model.attention} it lets packed conversations see"
                " each other; set batch.packing: false"
            )

    @property
    def running(self) -> TrialRun:
        if self.run is None:
            raise RuntimeError("no trial has been started in this session")
        return self.run


def set_gradient_checkpointing(model: nn.Module, spec: TrialSpec) -> None:
    """Recomputes activations in the backward pass, if the trial asks for it."""
    if not spec.gradient_checkpointing:
        return
    model.activation_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
    if isinstance(spec.method, LoraMethod):
        # The frozen embeddings give no gradient, and a checkpointed block without an input gradient trains nothing.
        model.enable_input_require_grads()  # type: ignore[operator]
