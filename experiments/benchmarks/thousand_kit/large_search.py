"""The events of a large search that nobody ran: losses that fall, slots that serve one trial after another, early ends."""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

from components.experiment.spec import (
    AshaSpec,
    DataSpec,
    ExperimentSpec,
    FullMethod,
    LoraMethod,
    ModelSpec,
    SearchSpec,
    TrialSpec,
)
from components.records.events import (
    Progress,
    StepMetrics,
    TrialEnded,
    TrialEvent,
    TrialProgressed,
    TrialStarted,
    TrialState,
)

REPORTS, STEPS, TARGETS, SLOTS = 20, 25, 400, 64  # of a trial; of a report; of a step; at once
BUDGET = REPORTS * STEPS * TARGETS
STEP_SECONDS, EVALUATION_SECONDS = 1.3, 4.0
JUDGED, STOPPED_SHARE = 10, 0.2  # so many of those that come to this report end there
BRANCHES = ("lora", "full")
BEGAN = 1.8e9  # Unix seconds


def experiment(trials: int) -> ExperimentSpec:
    space = {"lora": {"method": {"kind": "lora"}}, "full": {"method": {"kind": "full"}}}
    return ExperimentSpec(
        name="thousand",
        model=ModelSpec(path="model"),
        data=DataSpec(train="conversations.jsonl"),
        search=SearchSpec(space=space, trials=trials, scheduler=AshaSpec()),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Trial:
    """`floor` and `tau` are of its loss curve, in nats and in steps."""

    number: int
    floor: float
    tau: float
    learning_rate: float

    @property
    def trial_id(self) -> str:
        return f"{self.number:08x}"

    @property
    def branch(self) -> str:
        return BRANCHES[self.number % len(BRANCHES)]

    @property
    def num_reports(self) -> int:
        return JUDGED if self.floor > 2.0 - STOPPED_SHARE else REPORTS  # floors lie evenly between 1 and 2

    def loss_at(self, step: int) -> float:
        return self.floor + 2.5 * math.exp(-step / self.tau)


def events(trials: int, seed: int = 0) -> Iterator[TrialEvent]:
    """Yields a whole search's, in the order of their times: SLOTS trials run at any time."""
    numbers, waiting = random.Random(seed), iter(range(1, trials + 1))
    due: list[tuple[float, int, TrialEvent, Iterator[TrialEvent]]] = []  # of each slot the next event

    def begin(slot: int, at: float) -> None:
        if (number := next(waiting, None)) is not None:
            go_on(slot, at, _events_of(_drawn(number, numbers), slot, at, numbers))

    def go_on(slot: int, at: float, trial: Iterator[TrialEvent]) -> None:
        event = next(trial, None)
        if event is None:
            begin(slot, at)
        else:
            heapq.heappush(due, (event.time, slot, event, trial))

    for slot in range(SLOTS):
        begin(slot, BEGAN + slot / SLOTS)
    while due:
        at, slot, event, trial = heapq.heappop(due)
        yield event
        go_on(slot, at, trial)


def _drawn(number: int, numbers: random.Random) -> _Trial:
    return _Trial(
        number=number,
        floor=numbers.uniform(1.0, 2.0),
        tau=numbers.uniform(60.0, 200.0),
        learning_rate=10 ** numbers.uniform(-5.0, -3.0),
    )


def _events_of(trial: _Trial, slot: int, began: float, numbers: random.Random) -> Iterator[TrialEvent]:
    yield _started(trial, began)
    now, held = began, 0.0
    for number in range(1, trial.num_reports + 1):
        step_seconds = STEP_SECONDS * numbers.uniform(0.8, 1.2)
        steps = _steps(trial, number, now, step_seconds, numbers)
        now += STEPS * step_seconds + EVALUATION_SECONDS
        held = STEPS * step_seconds + EVALUATION_SECONDS + numbers.random()
        yield _progressed(trial, number, slot, steps, now, held)
    state = TrialState.COMPLETED if trial.num_reports == REPORTS else TrialState.STOPPED
    reason = "" if state is TrialState.COMPLETED else "the scheduler gave its place to others"
    yield TrialEnded(trial_id=trial.trial_id, state=state, reason=reason, held=held, time=now)


def _started(trial: _Trial, at: float) -> TrialStarted:
    method = LoraMethod(rank=16) if trial.branch == "lora" else FullMethod()
    varied = {"optimizer.learning_rate": trial.learning_rate, "schedule.warmup_fraction": 0.05}
    return TrialStarted(
        trial_id=trial.trial_id,
        number=trial.number,
        branch=trial.branch,
        spec=TrialSpec(method=method),
        workers=1,
        varied=varied,
        time=at,
    )


def _steps(trial: _Trial, report: int, began: float, seconds: float, numbers: random.Random) -> tuple[StepMetrics, ...]:
    first = (report - 1) * STEPS + 1
    return tuple(
        StepMetrics(
            step=step,
            target_tokens=step * TARGETS,
            loss=trial.loss_at(step) + numbers.gauss(0.0, 0.05),
            learning_rate=trial.learning_rate * (1 - step / (REPORTS * STEPS + 1)),
            grad_norm=numbers.uniform(0.3, 1.5),
            seconds=step * seconds,
            time=began + (step - first + 1) * seconds,
        )
        for step in range(first, first + STEPS)
    )


def _progressed(
    trial: _Trial, report: int, slot: int, steps: tuple[StepMetrics, ...], now: float, held: float
) -> TrialProgressed:
    last = steps[-1].step
    progress = Progress(
        step=last,
        target_tokens=last * TARGETS,
        epoch=last / 180,
        train_loss=sum(step.loss for step in steps) / STEPS,
        eval_loss=trial.loss_at(last) + 0.02 * math.sin(last),
        eval_num_targets=51_200,
        tokens_per_second=600 / STEP_SECONDS,
        seconds=steps[-1].seconds,
        evaluation_seconds=report * EVALUATION_SECONDS,
        worker_seconds=steps[-1].seconds,
        evaluation_worker_seconds=report * EVALUATION_SECONDS,
        steps=steps,
        checkpoint=f"/storage/thousand/20270115-080000-abcdef/checkpoints/{trial.trial_id}/{last:08d}",
        done=report == REPORTS,
        scores={"token_accuracy": 0.5 + 0.001 * report},
    )
    return TrialProgressed(
        trial_id=trial.trial_id,
        progress=progress,
        slot=f"slot_{slot:02d}",
        node=f"10.0.0.{slot // 8} {slot // 8:056x}",
        device="NVIDIA H100 80GB HBM3 (CUDA_VISIBLE_DEVICES=0)",
        held=held,
        time=now,
    )
