"""The training loop: one trial, from its first step to the end of its budget.

It knows Workers, not Ray. Its caller calls `advance()` repeatedly; each call returns a Progress.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from components.conversations.target_bytes import BITS_PER_BYTE, to_bits
from components.data.batch import Batch
from components.data.collate import collate
from components.data.general_text import PassageRows
from components.data.rows import RowStore, rows_of
from components.data.sampler import PackedRow, Position, StepSampler, micro_batches
from components.experiment.report_marks import next_mark, passes_evaluation
from components.experiment.spec import EVAL_LOSS, GENERAL_LOSS, TrialSpec
from components.models.base.reference import BaseReference
from components.models.load_trained import SPEC_FILE
from components.records.evaluation_record import ConversationScores, EvaluationRecord
from components.records.events import (
    TARGET_BYTES,
    TARGET_TOKENS,
    Progress,
    RungEvaluation,
    StepMetrics,
    budget_at,
)
from components.storage.background_upload import BackgroundUpload
from components.storage.folder import Folder
from components.storage.foreign_files import explain_foreign, read_object
from components.training.budget_units import BudgetUnits
from components.training.checkpoint import (
    load_optimizer,
    load_weights,
    save_optimizer,
    save_weights,
    write_checkpoint,
    write_json,
)
from components.training.counters import Counters, ReportInterval
from components.training.data_parallel import parallelize
from components.training.evaluate import all_losses
from components.training.loss import ScoredModel
from components.training.optimizer import learning_rate_factor, make_optimizer, set_learning_rate
from components.training.pace import Pace
from components.training.reply_scores import ReplyScores
from components.training.rung_sample import RungSample
from components.training.signals import NO_SIGNALS, TrialSignals
from components.training.step_draw import StepDraw
from components.training.training_data import TrainingData
from components.training.workers import Workers


def _per_byte(losses: ConversationScores, num_bytes: Sequence[int]) -> ConversationScores:
    return ConversationScores(sums=tuple(map(to_bits, losses.sums)), weights=tuple(map(float, num_bytes)))


class Diverged(Exception):
    """A loss or gradient is not finite. It ends this trial, not the slot that the trial runs in."""


class Trainer:
    """One trial's model, optimizer and position in the data. Every worker holds one and makes the same calls."""

    def __init__(
        self,
        spec: TrialSpec,
        scored: ScoredModel,
        data: TrainingData,
        workers: Workers,
        base: BaseReference,
        rungs: tuple[int, ...] = (),
        replies: ReplyScores | None = None,
        max_rows: int | None = None,
        pace: Pace | None = None,
    ) -> None:
        """`rungs`: where the trial reports beside its regular evaluations, in the budget's units, ascending.

        `replies` scores what the model says at evaluations, if that was asked for. `max_rows` are computed at once at most,
        where the spec's micro-batch does not fit into memory: steps and losses are the same, up to the order of sums.
        `pace` gets a mark for every step, and for every batch of the loss's evaluation.
        """
        self.spec, self.scored, self.data, self.workers, self.base = spec, scored, data, workers, base
        self.replies, self.max_rows, self.pace = replies, max_rows, pace or Pace()
        self.rows_at_once = min(spec.batch.rows_per_micro_batch, max_rows or spec.batch.rows_per_micro_batch)
        separate = data.layout == "separate"
        self.train_store, self.eval_store = (
            rows_of(store, separate=separate) for store in (data.dataset.train, data.dataset.eval)
        )
        self.units = BudgetUnits.of(data.dataset, by_bytes=data.by_bytes)
        self.planned = self.units.planned(spec.budget)
        self.rungs = rungs
        self.budget = self.planned  # larger once the trial has been extended
        self.sampler = StepSampler(self.train_store.lengths, spec.batch, max_tokens=data.max_tokens, seed=spec.seed)
        self.position = Position(epoch=0, step=0)
        self.counters, self.interval = Counters(), ReportInterval()
        self.evaluation: EvaluationRecord | None = None  # the last report's, unless that has the sample alone
        self.rung: RungEvaluation | None = None  # the last report's
        self.mark = 0  # where the next report is, in the budget's units
        self.preempted = self.stopped = False
        self.model = scored.model
        self.parallel_model = parallelize(scored, workers)
        self.optimizer = make_optimizer(self.model, spec.optimizer, workers.device)

    @property
    def done(self) -> bool:
        return self.spent >= self.budget

    @property
    def spent(self) -> int:
        return self.units.spent(self.counters.target_tokens)

    def advance(self, signals: TrialSignals = NO_SIGNALS) -> Progress | None:
        """Trains up to the next evaluation or rung, then evaluates. A trial that has diverged reports that and is done.

        The signals are read after every step. If any worker's trial is preempted, all workers return None after the same
        step. The next call continues from there, and its report is that of an uninterrupted interval. If any worker's
        trial must stop, it is evaluated after that step.

        The learning rate follows the share of the budget as of the interval's first step, so it rises with an extension.
        The distance between evaluations stays the same. One step of a small data set may pass several marks; they share one
        report.
        """
        self.begin_interval(signals)
        try:
            with self.pace.watched("step"):
                while self.wants_step:
                    self.step()
                    self.heed(signals)
                    self.pace.mark()
        except Diverged as reason:
            return self.diverged(reason)
        return None if self.preempted else self.report()

    def begin_interval(self, signals: TrialSignals) -> None:
        """Decides up to where steps are made before the next report, as of the signals' extensions."""
        self.budget = budget_at(self.counters.reported_step, self.planned, signals.extensions)
        self.mark = next_mark(self.counters.reported_tokens, self.planned, self.spec.budget.evaluations, self.rungs)
        self.preempted = self.stopped = False
        self.scored.train()

    @property
    def wants_step(self) -> bool:
        """Whether the interval has a step left."""
        return not (self.preempted or self.stopped) and self.spent < min(self.mark, self.budget)

    def heed(self, signals: TrialSignals) -> None:
        """Reads the signals after a step. All workers come to the same: they must leave the loop after the same step."""
        preempted, stop = self.workers.sum([float(signals.preempted()), float(signals.stop_requested())])
        self.preempted, self.stopped = preempted > 0, stop > 0

    def report(self) -> Progress:
        """Ends the interval with an evaluation."""
        try:
            self.evaluation, self.rung = self._evaluate(last=self.done or self.stopped)
        except Diverged as reason:
            return self.diverged(reason)
        self.counters.reported_step, self.counters.reported_tokens = self.counters.step, self.spent
        progress, self.interval = self._progress(), ReportInterval()
        return progress

    def diverged(self, reason: Diverged) -> Progress:
        """The last report of a trial that has diverged."""
        self.evaluation, self.rung = None, None
        return self._progress(diverged=str(reason))

    def save(self, directory: Folder, uploads: BackgroundUpload) -> None:
        """Writes a checkpoint; all workers call it. See write_checkpoint for when it is complete."""
        write_checkpoint(directory, self.workers, self._write, uploads)

    def load(self, directory: Path) -> None:
        """Continues from a checkpoint of the same TrialSpec: on CPU bit-equal to an uninterrupted trial.

        Raises InputError if it cannot be read, or is of another model.
        """
        with explain_foreign(directory, "no checkpoint that this trial can go on from"):
            state = read_object(directory / "state.json")
            load_weights(self.model, directory)
            load_optimizer(self.optimizer, self.model, directory, state["optimizer"])
            self.counters = Counters(**state["counters"])
            # Earlier versions wrote checkpoints at reports only, where the interval is empty.
            self.interval = ReportInterval.from_json(state["stretch"]) if "stretch" in state else ReportInterval()
            self.position = Position(**state["position"])

    def step(self) -> None:
        """Makes one optimizer step over all workers. Raises Diverged."""
        draw = self.draw()
        losses = self._backward([batch.to(self.workers.device) for batch in draw.batches], draw.num_targets)
        self.finish(draw, losses)

    def draw(self) -> StepDraw:
        """Draws the next step's rows, and leaves torch's generator where the step's own random numbers begin."""
        began, step = time.perf_counter(), self.counters.step + 1
        # Randomness in a step (dropout) does not depend on earlier steps, so a checkpoint needs no random state.
        torch.manual_seed((self.spec.seed * 1_000_003 + step) * 1_009 + self.workers.worker_rank)
        rows, self.position = self.sampler.next_step(self.position)
        # Each worker knows the rows of all, so none has to ask the others how much the step has.
        indices = [index for row in rows for index in row]
        sizes = (self.train_store.num_targets, self.train_store.lengths)
        num_targets, num_tokens = (int(of_rows[indices].sum()) for of_rows in sizes)
        return StepDraw(began=began, batches=self._batches_of(rows), num_targets=num_targets, num_tokens=num_tokens)

    def finish(self, draw: StepDraw, losses: Sequence[Tensor], share: float = 1.0) -> None:
        """Ends a step whose gradient has been made: changes the weights, and counts. Raises Diverged instead.

        Args:
            losses: of each of this worker's micro-batches, summed over its targets.
            share: of the step's time, which was spent for this trial; the rest for others in the same passes.
        """
        step, num_targets = self.counters.step + 1, draw.num_targets
        grad_norm = self.parallel_model.clip_gradients(self.spec.optimizer.max_grad_norm)
        # Only now, when all of the step but its update has been queued on the device, is a loss waited for.
        (loss_sum,) = self.workers.sum([sum(torch.stack(list(losses)).tolist())])
        loss = loss_sum / num_targets
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            raise Diverged(f"step {step}: loss {loss}, gradient norm {grad_norm}; lower optimizer.learning_rate")
        target_tokens = self.counters.target_tokens + num_targets
        factor = learning_rate_factor(self.spec.schedule, self.units.spent(target_tokens) / self.budget)
        learning_rate = self.spec.optimizer.learning_rate * factor
        set_learning_rate(self.optimizer, learning_rate)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        elapsed = time.perf_counter() - draw.began
        self.counters.step, self.counters.target_tokens = step, target_tokens
        self.counters.seconds += elapsed
        self.counters.worker_seconds += elapsed * share * self.workers.count
        metrics = StepMetrics(
            step=step,
            target_tokens=self.spent,
            loss=loss,
            learning_rate=learning_rate,
            grad_norm=grad_norm,
            seconds=self.counters.seconds,
            time=time.time(),
        )
        self.interval.add(
            metrics, loss_sum=loss_sum, num_targets=num_targets, num_tokens=draw.num_tokens, seconds=elapsed
        )

    def _batches_of(self, rows: list[PackedRow]) -> list[Batch]:
        """Returns this worker's micro-batches of a step, in CPU memory. Their number is the same on every worker."""
        shares = micro_batches(
            rows,
            worker_rank=self.workers.worker_rank,
            worker_count=self.workers.count,
            rows_per_micro_batch=self.rows_at_once,
        )
        return [collate(self.train_store, share, self.data.pad_token_id, self.data.max_tokens) for share in shares]

    def _backward(self, batches: list[Batch], num_targets: int) -> list[Tensor]:
        """Accumulates the gradient of (loss summed over all workers / num_targets).

        Returns the loss sum of each of this worker's micro-batches, on the device.
        """
        with self.scored.accumulating() if len(batches) > 1 else contextlib.nullcontext():
            return [
                self.parallel_model.backward(batch, 1 / num_targets, is_last=number == len(batches))
                for number, batch in enumerate(batches, start=1)
            ]

    def _evaluate(self, *, last: bool) -> tuple[EvaluationRecord | None, RungEvaluation | None]:
        """Evaluates, and counts the time that it takes: it is paid for like training."""
        began = time.perf_counter()
        try:
            return self._measure(last=last)
        finally:
            elapsed = time.perf_counter() - began
            self.counters.evaluation_seconds += elapsed
            self.counters.evaluation_worker_seconds += elapsed * self.workers.count

    def _measure(self, *, last: bool) -> tuple[EvaluationRecord | None, RungEvaluation | None]:
        """A rung is decided by the sample, if there is one; where nothing else is passed, that is all that is evaluated."""
        before, evaluations = self.counters.reported_tokens, self.spec.budget.evaluations
        sample = self.data.sample if any(before < rung <= self.spent for rung in self.rungs) else None
        whole = sample is None or last or passes_evaluation(before, self.spent, self.planned, evaluations)
        only = None if whole else sample
        losses = self._losses_on(self.eval_store, None if only is None else only.rows_of(self.eval_store))
        if not math.isfinite(losses.value):
            raise Diverged(f"step {self.counters.step}: eval loss {losses.value}; lower optimizer.learning_rate")
        metrics = {EVAL_LOSS: losses, **self._in_bits(losses)}
        replies = self._score_replies(only, last=last)
        deciding = {**metrics, **replies} if self.data.metric.of_replies else metrics
        rung = None if sample is None else sample.evaluation(deciding)
        if not whole:
            return None, rung
        metrics |= replies
        if self.done and self.data.general:  # what it has forgotten in all; small beside the budget
            metrics[GENERAL_LOSS] = self._general_loss()
        return EvaluationRecord(metrics=metrics), rung

    def _general_loss(self) -> ConversationScores:
        """By passage, in nats per token; in bits per byte where the tokens of other trials are others."""
        losses = self._losses_on(PassageRows(self.data.general))
        if not self.data.by_bytes:
            return losses
        return _per_byte(losses, [passage.num_bytes for passage in self.data.general])

    def _losses_on(self, store: RowStore, rows: Sequence[int] | None = None) -> ConversationScores:
        with self.pace.watched("batch of the evaluation"):
            return all_losses(
                self.scored,
                store,
                self.workers,
                max_tokens=self.data.max_tokens,
                rows_per_batch=self.rows_at_once,
                pad_token_id=self.data.pad_token_id,
                rows=rows,
                after_batch=self.pace.mark,
            )

    def _in_bits(self, losses: ConversationScores) -> dict[str, ConversationScores]:
        """The same losses per byte of what the assistant says, which another tokenizer's compare with."""
        num_bytes = self.data.dataset.eval.target_bytes
        if not num_bytes.any():
            return {}
        return {BITS_PER_BYTE: _per_byte(losses, num_bytes.tolist())}

    def _score_replies(self, only: RungSample | None, *, last: bool) -> dict[str, ConversationScores]:
        """`only`: of these, and of none unless the search goes by what is said."""
        if self.replies is None or not (last or self.replies.plan.generate.when == "every"):
            return {}
        if only is not None and not self.data.metric.of_replies:
            return {}
        replies = self.replies if only is None else self.replies.within(only.conversations)
        # As many tokens at once as an evaluation of the loss has; a cache takes less memory than a training step.
        at_once = self.rows_at_once * self.data.max_tokens
        return replies.measure(self.scored, self.workers, max_batch_tokens=at_once)

    def _progress(self, diverged: str | None = None) -> Progress:
        metrics = self.evaluation.metrics if self.evaluation else {}
        losses = metrics.get(EVAL_LOSS)
        return Progress(
            step=self.counters.step,
            target_tokens=self.spent,
            counted=TARGET_BYTES if self.data.by_bytes else TARGET_TOKENS,
            epoch=self.counters.target_tokens / self.train_store.total_targets,
            train_loss=self.interval.train_loss,
            eval_loss=losses.value if losses else math.inf,
            eval_num_targets=int(sum(losses.weights)) if losses else 0,
            tokens_per_second=self.interval.tokens_per_second,
            seconds=self.counters.seconds,
            workers=self.workers.count,
            worker_seconds=self.counters.worker_seconds,
            evaluation_seconds=self.counters.evaluation_seconds,
            evaluation_worker_seconds=self.counters.evaluation_worker_seconds,
            steps=tuple(self.interval.steps),
            max_rows=self.max_rows,
            done=self.done or diverged is not None,
            diverged=diverged,
            metric=self.data.metric,
            scores={name: score.value for name, score in metrics.items() if name != EVAL_LOSS},
            rung=self.rung,
        )

    def _write(self, directory: Path) -> None:
        """Writes this worker's files of a checkpoint."""
        save_weights(self.model, directory, self.workers)
        numbers = save_optimizer(self.optimizer, self.model, directory, self.workers)
        if self.workers.worker_rank > 0:
            return
        (directory / SPEC_FILE).write_text(self.spec.model_dump_json(indent=1) + "\n", encoding="utf-8")
        self.base.write(directory)
        state = {
            "counters": asdict(self.counters),
            "stretch": self.interval.to_json(),
            "position": asdict(self.position),
            "optimizer": numbers,
        }
        write_json(directory / "state.json", state)
