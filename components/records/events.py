"""What happens to trials, as plain values: all that cluster/, tracking/ and reports/ exchange.

A search is a stream of TrialEvents. Each is JSON on one line of the journal; `replay` turns any stream, repeated events
included, into the present state of every trial.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from components.experiment.spec import EVAL_LOSS, MetricSpec, TrialSpec
from components.records.packed_rows import PackedAs

# What budgets count.
TARGET_TOKENS: Final = "target tokens"
TARGET_BYTES: Final = "target bytes"


class TrialState(StrEnum):
    """The values are those of the journal, of --json and of the MLflow tags."""

    RUNNING = "running"
    COMPLETED = "completed"
    STOPPED = "stopped"
    FAILED = "failed"


class EventModel(BaseModel):
    """The base of all events and of what they consist of."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")


class StepMetrics(EventModel):
    """One optimizer step. `loss` is nats per target of this step; `seconds` is training time since the trial began."""

    step: int
    target_tokens: int
    loss: float
    learning_rate: float
    grad_norm: float
    seconds: float
    time: float = Field(description="Unix seconds at its end, by the first worker's clock.")


class RungEvaluation(EventModel):
    """What decides a rung: an evaluation of the same sample of held-out conversations for every trial."""

    conversations: int
    eval_loss: float = Field(description="Nats per target over the sample.")
    scores: dict[str, float] = Field({}, description="Other metrics over the sample, by name.")


class Progress(EventModel):
    """One report: the trial has trained up to here, was evaluated, and (with `checkpoint`) can be resumed from here."""

    step: int
    target_tokens: int = Field(
        description="Targets trained on so far, over all workers and epochs: of the budget, so in bytes if `counted` says so."
    )
    counted: Literal["target tokens", "target bytes"] = Field(
        TARGET_TOKENS, description="What budgets count: bytes in a search over several base models."
    )
    epoch: float
    train_loss: float = Field(description="Nats per target since the report before.")
    eval_loss: float = Field(
        description="Nats per target over the whole eval split, exact over workers; infinite where that was not evaluated."
    )
    eval_num_targets: int
    tokens_per_second: float = Field(
        description="All tokens, padding excluded, over all workers, since the report before."
    )
    seconds: float = Field(description="Training time since the trial began, evaluation and waiting excluded.")
    evaluation_seconds: float = Field(0.0, description="Time of evaluations since the trial began.")
    workers: int = Field(1, description="How many trained it when it reported; an elastic trial's number changes.")
    worker_seconds: float = Field(0.0, description="`seconds` of every worker: GPU-seconds where a worker is a GPU.")
    evaluation_worker_seconds: float = Field(0.0, description="`evaluation_seconds` of every worker.")
    steps: Annotated[Sequence[StepMetrics], PackedAs(StepMetrics)] = ()
    checkpoint: str | None = None
    max_rows: int | None = Field(
        None, description="In a micro-batch, where the trial's batch.rows_per_micro_batch did not fit into memory."
    )
    done: bool = False
    diverged: str | None = Field(None, description="Why the trial ended itself, e.g. a loss that is not finite.")
    metric: MetricSpec = Field(MetricSpec(), description="What the search goes by.")
    scores: dict[str, float] = Field({}, description="Other metrics of this evaluation, by name, over the whole split.")
    rung: RungEvaluation | None = Field(
        None, description="Of a report that passes a rung, where evaluation.conversations_at_rungs asks for a sample."
    )

    @property
    def objective(self) -> float:
        """What trials are ranked by: less is better. Infinity for a trial without this metric, e.g. a diverged one."""
        return self._objective(self.eval_loss, self.scores)

    @property
    def rung_objective(self) -> float:
        """What trials are compared by at a rung: the objective over the sample, where the search has one."""
        return self.objective if self.rung is None else self._objective(self.rung.eval_loss, self.rung.scores)

    @property
    def is_sampled(self) -> bool:
        """Whether the sample is all that was evaluated: the report passes a rung, and no regular evaluation."""
        return self.rung is not None and self.eval_num_targets == 0

    @property
    def all_worker_seconds(self) -> float:
        """Of training and evaluation."""
        return self.worker_seconds + self.evaluation_worker_seconds

    @property
    def standing(self) -> tuple[float, float]:
        """What reports and trials are sorted by, ascending: the objective, and where that is equal the eval loss."""
        return self.objective, self.eval_loss

    def _objective(self, eval_loss: float, scores: Mapping[str, float]) -> float:
        if self.metric.name == EVAL_LOSS:
            return self.metric.to_minimize(eval_loss)
        return self.metric.to_minimize(scores[self.metric.name]) if self.metric.name in scores else math.inf


NO_STANDING = (math.inf, math.inf)


class InterimCheckpoint(EventModel):
    """A checkpoint between two reports: the trial was interrupted here, and can be resumed as if it had not been."""

    step: int
    checkpoint: str


class TrialStarted(EventModel):
    event: Literal["started"] = "started"
    trial_id: str
    number: int = Field(description="1, 2, ... in the order of sampling.")
    branch: str
    spec: TrialSpec
    workers: int
    varied: dict[str, object] = Field(description="What the search drew: dotted path -> value.")
    parent: str | None = Field(None, description="The trial this one was cloned from.")
    warm_from: str | None = Field(None, description="The checkpoint of its parent whose weights it began with.")
    repeat: bool = Field(
        False, description="Its parent's configuration with another seed, asked for by search.confirm."
    )
    drawn_after: int | None = Field(
        None, description="How many ends of trials the sampler knew when it drew this one from results."
    )
    time: float = Field(description="Unix seconds.")


HELD = "Worker-seconds that it held slots since its last report, by the driver's clock."


class TrialProgressed(EventModel):
    event: Literal["progressed"] = "progressed"
    trial_id: str
    progress: Progress
    slot: str = Field(description="Where it ran; a slot serves one trial after another.")
    node: str | None = Field(None, description="The first worker's: IP address and Ray's id.")
    device: str | None = Field(
        None, description="The first worker's: cpu, or its GPU's name and what CUDA_VISIBLE_DEVICES is there."
    )
    held: float = Field(0.0, description=HELD)
    restarts: int = Field(0, description="Groups of its workers that died in its slot since its last report.")
    time: float


class TrialEnded(EventModel):
    event: Literal["ended"] = "ended"
    trial_id: str
    state: TrialState = Field(description="completed: whole budget; stopped: by the scheduler; failed: see reason.")
    reason: str = ""
    impossible: bool = Field(
        False, description="It failed by its own configuration, and would again; else its slot or its node was lost."
    )
    held: float = Field(0.0, description=HELD)
    time: float


class Stop(EventModel):
    """The trial ends after the step that it is at, with a report."""

    kind: Literal["stop"] = "stop"

    @property
    def sentence(self) -> str:
        return "stopped"


class Extension(EventModel):
    """A new budget, for what the trial trains from a step on.

    The step makes it repeatable: a trial that resumes from a checkpoint knows whether this budget was its budget there.
    """

    kind: Literal["extend"] = "extend"
    target_tokens: int = Field(description="The whole budget from then on.")
    from_step: int = Field(description="What is trained from this step on, or from a later one, has it.")

    @property
    def sentence(self) -> str:
        return f"extended to {self.target_tokens:,} target tokens"


class Clone(EventModel):
    """A new trial of the search, made from this one with changes."""

    kind: Literal["clone"] = "clone"
    trial_id: str
    number: int
    branch: str
    spec: TrialSpec
    varied: dict[str, object]
    warm_from: str | None = Field(None, description="A checkpoint whose weights it begins with.")
    repeat: bool = Field(False, description="The same configuration with another seed.")

    @property
    def sentence(self) -> str:
        if self.repeat:
            return f"repeated as trial {self.number} with seed {self.spec.seed}"
        return f"cloned as trial {self.number}" + (" with its weights" if self.warm_from else "")


class TrialInstructed(EventModel):
    """A person's command about a trial, which the running search has accepted."""

    event: Literal["instructed"] = "instructed"
    trial_id: str
    instruction: Annotated[Stop | Extension | Clone, Field(discriminator="kind")]
    request_id: str
    by: str = Field(description="user@host")
    time: float

    @property
    def sentence(self) -> str:
        """E.g. `extended to 3,000 target tokens by ann@desk`."""
        return f"{self.instruction.sentence} by {self.by}"


TrialEvent = TrialStarted | TrialProgressed | TrialEnded | TrialInstructed


class TrialHistory(EventModel):
    """All that is known of one trial. `reports` are ordered by step, one per step.

    A report that the journal tells twice counts once: the last one, unless that has no steps and so repeats what is known.
    """

    started: TrialStarted
    reports: tuple[Progress, ...] = ()
    instructions: tuple[TrialInstructed, ...] = ()
    state: TrialState = TrialState.RUNNING
    reason: str = ""
    impossible: bool = Field(False, description="It failed by its own configuration.")
    ended_at: float | None = None
    heard_at: float = Field(-math.inf, description="When it last started, reported or ended: Unix seconds.")
    held: float = Field(0.0, description="Worker-seconds that it has held slots, up to its last report or its end.")
    held_in_restarts: float = Field(0.0, description="Those of them that went into starting again and repeating work.")
    started_again: bool = Field(False, description="Since its last report.")

    @property
    def trial_id(self) -> str:
        return self.started.trial_id

    @property
    def last(self) -> Progress | None:
        return self.reports[-1] if self.reports else None

    @property
    def best(self) -> Progress | None:
        """The best report among those that left a checkpoint, by the metric of the search."""
        return best_report(self.reports)

    @property
    def max_rows(self) -> int | None:
        """As the last report says."""
        return self.last.max_rows if self.last else None

    @property
    def rows_per_micro_batch(self) -> int:
        """How many rows it computes at once at most: fewer than it was given where these did not fit into memory."""
        return self.max_rows or self.started.spec.batch.rows_per_micro_batch

    @property
    def stop(self) -> TrialInstructed | None:
        """The instruction to end it early; None if there is none."""
        return next((given for given in self.instructions if isinstance(given.instruction, Stop)), None)

    @property
    def extensions(self) -> tuple[Extension, ...]:
        return tuple(given.instruction for given in self.instructions if isinstance(given.instruction, Extension))

    @property
    def clones(self) -> tuple[Clone, ...]:
        return tuple(given.instruction for given in self.instructions if isinstance(given.instruction, Clone))

    @property
    def on_equal_terms(self) -> bool:
        """Whether it began with its own weights and has the budget of all, so that it compares with the others."""
        return self.started.warm_from is None and not self.extensions

    def budget(self, planned: int) -> int:
        """In target tokens, extensions included. `planned` is what every trial of the search was given."""
        return max([planned, *(extension.target_tokens for extension in self.extensions)])


def best_report(reports: Iterable[Progress]) -> Progress | None:
    """Returns the best report among those with a checkpoint and a finite objective: NaN compares with nothing.

    Of equal ones, as exact matches often are, it is the one with the least eval loss, then the first.
    """
    known = [report for report in reports if report.checkpoint is not None and math.isfinite(report.objective)]
    return min(known, key=lambda report: report.standing, default=None)


def budget_at(step: int, planned: int, extensions: Iterable[Extension]) -> int:
    """Returns the budget, in target tokens, of what a trial trains from this step to its next report."""
    return max([planned, *(given.target_tokens for given in extensions if given.from_step <= step)])


def apply_event(known: TrialHistory | None, event: TrialEvent) -> TrialHistory:
    """Returns a trial's history after one more event. A trial that starts again after an end is running again."""
    if isinstance(event, TrialStarted):
        if known is None:
            return TrialHistory(started=event, heard_at=event.time)
        again = {"started_again": known.started_again or event.time > known.heard_at}
        running = {"state": TrialState.RUNNING, "reason": "", "impossible": False, "ended_at": None}
        return known.model_copy(update={**running, **again, "heard_at": max(known.heard_at, event.time)})
    if known is None:
        raise ValueError(f"trial {event.trial_id} is reported before it started")
    if isinstance(event, TrialProgressed):
        reports = {report.step: report for report in known.reports}
        before = reports.get(event.progress.step)
        if before is None or event.progress.steps or not before.steps:
            reports[event.progress.step] = event.progress
        ordered = tuple(reports[step] for step in sorted(reports))
        return known.model_copy(update={"reports": ordered, **_held(known, event)})
    if isinstance(event, TrialInstructed):
        instructions = {given.request_id: given for given in known.instructions} | {event.request_id: event}
        return known.model_copy(update={"instructions": tuple(instructions.values())})
    ended = {
        "state": event.state,
        "reason": event.reason,
        "impossible": event.impossible,
        "ended_at": event.time,
    }
    return known.model_copy(update={**ended, **_held(known, event)})


def _held(known: TrialHistory, event: TrialProgressed | TrialEnded) -> dict[str, object]:
    """What the event adds to the time that slots were held. An event that is replayed adds nothing."""
    if event.time <= known.heard_at:
        return {}
    held, wasted = event.held, 0.0
    if isinstance(event, TrialProgressed):
        useful = event.progress.all_worker_seconds - (known.last.all_worker_seconds if known.last else 0.0)
        if known.started_again or event.restarts:
            wasted = max(0.0, held - max(0.0, useful))
    elif known.started_again:
        wasted = held
    return {
        "heard_at": event.time,
        "held": known.held + held,
        "held_in_restarts": known.held_in_restarts + wasted,
        "started_again": False,
    }


def num_clones(histories: Iterable[TrialHistory]) -> int:
    """Returns how many trials people have asked for, beside those that were drawn; some may not have started."""
    return sum(len(history.clones) for history in histories)


def replay(events: Iterable[TrialEvent]) -> dict[str, TrialHistory]:
    """Returns the present state of every trial, by trial id, in order of first start."""
    histories: dict[str, TrialHistory] = {}
    for event in events:
        histories[event.trial_id] = apply_event(histories.get(event.trial_id), event)
    return histories
