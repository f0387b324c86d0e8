"""The training loop: one trial, from its first step to the end of its budget.

It knows Workers, not Ray. Whoever drives it calls `advance()` again and again, and gets a Progress each time.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from components.data.batch import Batch
from components.data.collate import collate
from components.data.prepare import PreparedDataset
from components.data.sampler import Position, StepSampler, micro_batches
from components.experiment.spec import TrialSpec
from components.models.base.reference import BaseReference
from components.models.load_trained import SPEC_FILE
from components.records.events import Extension, Progress, StepMetrics, budget_at
from components.storage.background_upload import BackgroundUpload
from components.storage.base import Folder
from components.training.checkpoint import (
    load_optimizer,
    load_weights,
    save_optimizer,
    save_weights,
    write_checkpoint,
    write_json,
)
from components.training.data_parallel import shared
from components.training.evaluate import evaluate
from components.training.loss import ScoredModel
from components.training.optimizer import learning_rate_factor, make_optimizer, set_learning_rate
from components.training.workers import Workers


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingData:
    """What all trials of a search train on."""

    dataset: PreparedDataset
    max_tokens: int
    pad_token_id: int


@dataclass(slots=True)
class Counters:
    """How far a trial has come; part of its checkpoint."""

    step: int = 0
    target_tokens: int = 0
    seconds: float = 0.0
    worker_seconds: float = 0.0
    reports: int = 0
    reported_step: int = 0  # the last report's; 0 before the first


@dataclass(slots=True)
class Stretch:
    """What happened since the report before, summed over all workers. Part of a checkpoint between two reports."""

    steps: list[StepMetrics] = field(default_factory=list)
    loss_sum: float = 0.0
    num_targets: int = 0
    num_tokens: int = 0
    seconds: float = 0.0

    def plain(self) -> dict[str, Any]:
        return {**asdict(self), "steps": [step.model_dump(mode="json") for step in self.steps]}

    @classmethod
    def of(cls, plain: dict[str, Any]) -> Stretch:
        return cls(**{**plain, "steps": [StepMetrics.model_validate(step) for step in plain["steps"]]})


def never() -> bool:
    return False


class Diverged(Exception):
    """Training left the finite numbers: the end of this trial, not of the slot it runs in."""


class TrialRun:
    """One trial's model, optimizer and place in the data. Every worker of the trial holds one and calls it alike."""

    def __init__(
        self,
        spec: TrialSpec,
        scored: ScoredModel,
        data: TrainingData,
        workers: Workers,
        base: BaseReference,
    ) -> None:
        self.spec, self.scored, self.data, self.workers, self.base = spec, scored, data, workers, base
        self.train_store, self.eval_store = data.dataset.train, data.dataset.eval
        self.planned = spec.budget.in_target_tokens(self.train_store.total_targets)
        self.budget = self.planned  # more, once somebody has extended the trial
        self.sampler = StepSampler(self.train_store.lengths, spec.batch, max_tokens=data.max_tokens, seed=spec.seed)
        self.position = Position(epoch=0, step=0)
        self.counters, self.stretch = Counters(), Stretch()
        self.model = scored.model
        self.shared = shared(scored, workers)
        self.optimizer = make_optimizer(self.model, spec.optimizer, workers.device)

    @property
    def done(self) -> bool:
        return self.counters.target_tokens >= self.budget

    def advance(
        self,
        interrupted: Callable[[], bool] = never,
        extensions: Sequence[Extension] = (),
        ended: Callable[[], bool] = never,
    ) -> Progress | None:
        """Trains up to the next evaluation and evaluates. A trial that left the finite numbers says so and is done.

        `interrupted` is asked after every step. Where any worker's says yes, all return None after the same step; to
        advance again goes on from there, and the report that comes is that of a stretch nobody interrupted.

        `extensions` are all that the trial has been given so far. The learning rate follows the share of the budget that
        stands where the stretch begins, so it rises with an extension; evaluations keep their distance.

        `ended` is asked like `interrupted`: where any worker's says yes, the trial is evaluated there and then.
        """
        self.budget = budget_at(self.counters.reported_step, self.planned, extensions)
        mark = self.planned * (self.counters.reports + 1) / self.spec.budget.evaluations
        self.scored.train()
        try:
            while self.counters.target_tokens < min(mark, self.budget):
                self.step()
                leave, end = self._anybody(interrupted, ended)
                if leave:
                    return None
                if end:
                    break
            eval_loss, eval_num_targets = self._evaluate()
        except Diverged as reason:
            return self._progress(math.inf, 0, diverged=str(reason))
        # One step of a small data set may pass several marks; its report stands for all of them.
        passed = self.counters.target_tokens * self.spec.budget.evaluations // self.planned
        self.counters.reports = max(self.counters.reports + 1, passed)
        self.counters.reported_step = self.counters.step
        progress, self.stretch = self._progress(eval_loss, eval_num_targets), Stretch()
        return progress

    def save(self, directory: Folder, uploads: BackgroundUpload) -> None:
        """Writes a checkpoint; all workers call it. See write_checkpoint for when it stands."""
        write_checkpoint(directory, self.workers, self._write, uploads)

    def load(self, directory: Path) -> None:
        """Goes on from a checkpoint of the same TrialSpec: on CPU bit-equal to never having stopped."""
        state = json.loads((directory / "state.json").read_text(encoding="utf-8"))
        load_weights(self.model, directory)
        load_optimizer(self.optimizer, self.model, directory, state["optimizer"])
        self.counters = Counters(**state["counters"])
        # Earlier versions wrote checkpoints at reports only, where nothing has happened since.
        self.stretch = Stretch.of(state["stretch"]) if "stretch" in state else Stretch()
        self.position = Position(**state["position"])

    def _anybody(self, *notices: Callable[[], bool]) -> list[bool]:
        """A notice reaches one worker sooner than another; they must leave the loop after the same step."""
        return [count > 0 for count in self.workers.sum([float(notice()) for notice in notices])]

    def step(self) -> None:
        """One optimizer step over all workers."""
        began, step = time.perf_counter(), self.counters.step + 1
        # What is random in a step (dropout) depends on nothing before it, so a checkpoint needs no random state.
        torch.manual_seed((self.spec.seed * 1_000_003 + step) * 1_009 + self.workers.worker_rank)
        batches = self._next_batches()
        num_targets, num_tokens = self._sizes(batches)
        (loss_sum,) = self.workers.sum([self._backward(batches, num_targets)])
        grad_norm = self.shared.clip_gradients(self.spec.optimizer.max_grad_norm)
        loss = loss_sum / num_targets
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            raise Diverged(f"step {step}: loss {loss}, gradient norm {grad_norm}; lower optimizer.learning_rate")
        target_tokens = self.counters.target_tokens + num_targets
        factor = learning_rate_factor(self.spec.schedule, target_tokens / self.budget)
        learning_rate = self.spec.optimizer.learning_rate * factor
        set_learning_rate(self.optimizer, learning_rate)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        elapsed = time.perf_counter() - began
        self.counters.step, self.counters.target_tokens = step, target_tokens
        self.counters.seconds += elapsed
        self.counters.worker_seconds += elapsed * self.workers.count
        self.stretch.loss_sum += loss_sum
        self.stretch.num_targets += num_targets
        self.stretch.num_tokens += num_tokens
        self.stretch.seconds += elapsed
        self.stretch.steps.append(
            StepMetrics(
                step=step,
                target_tokens=target_tokens,
                loss=loss,
                learning_rate=learning_rate,
                grad_norm=grad_norm,
                seconds=self.counters.seconds,
                time=time.time(),
            )
        )

    def _sizes(self, batches: list[Batch]) -> tuple[int, int]:
        """(targets, tokens without padding) of a step over all workers."""
        num_targets = sum(batch.num_targets for batch in batches)
        num_tokens = sum(int((batch.segment_ids_BT > 0).sum()) for batch in batches)
        all_targets, all_tokens = self.workers.sum([float(num_targets), float(num_tokens)])
        return int(all_targets), int(all_tokens)

    def _next_batches(self) -> list[Batch]:
        """This worker's micro-batches of the next step; as many on every worker."""
        rows, self.position = self.sampler.next_step(self.position)
        shares = micro_batches(
            rows,
            worker_rank=self.workers.worker_rank,
            worker_count=self.workers.count,
            rows_per_micro_batch=self.spec.batch.rows_per_micro_batch,
        )
        return [collate(self.train_store, share, self.data.pad_token_id).to(self.workers.device) for share in shares]

    def _backward(self, batches: list[Batch], num_targets: int) -> float:
        """Accumulates the gradient of (loss summed over all workers / num_targets). Returns this worker's loss sum."""
        return sum(
            self.shared.backward(batch, 1 / num_targets, is_last=number == len(batches))
            for number, batch in enumerate(batches, start=1)
        )

    def _evaluate(self) -> tuple[float, int]:
        eval_loss, num_targets = evaluate(
            self.scored,
            self.eval_store,
            self.workers,
            max_tokens=self.data.max_tokens,
            rows_per_batch=self.spec.batch.rows_per_micro_batch,
            pad_token_id=self.data.pad_token_id,
        )
        if not math.isfinite(eval_loss):
            raise Diverged(f"step {self.counters.step}: eval loss {eval_loss}; lower optimizer.learning_rate")
        return eval_loss, num_targets

    def _progress(self, eval_loss: float, eval_num_targets: int, diverged: str | None = None) -> Progress:
        stretch = self.stretch
        return Progress(
            step=self.counters.step,
            target_tokens=self.counters.target_tokens,
            epoch=self.counters.target_tokens / self.train_store.total_targets,
            train_loss=stretch.loss_sum / stretch.num_targets if stretch.num_targets else math.nan,
            eval_loss=eval_loss,
            eval_num_targets=eval_num_targets,
            tokens_per_second=stretch.num_tokens / stretch.seconds if stretch.seconds else 0.0,
            seconds=self.counters.seconds,
            workers=self.workers.count,
            worker_seconds=self.counters.worker_seconds,
            steps=tuple(stretch.steps),
            done=self.done or diverged is not None,
            diverged=diverged,
        )

    def _write(self, directory: Path) -> None:
        """This worker's files of a checkpoint."""
        save_weights(self.model, directory, self.workers)
        numbers = save_optimizer(self.optimizer, self.model, directory, self.workers)
        if self.workers.worker_rank > 0:
            return
        (directory / SPEC_FILE).write_text(self.spec.model_dump_json(indent=1) + "\n", encoding="utf-8")
        self.base.write(directory)
        state = {
            "counters": asdict(self.counters),
            "stretch": self.stretch.plain(),
            "position": asdict(self.position),
            "optimizer": numbers,
        }
        write_json(directory / "state.json", state)
