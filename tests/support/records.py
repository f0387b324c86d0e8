"""Records of a journal, written by hand: a test names what it is about, and the rest has values of no importance."""

import math
from typing import Any

from components.experiment.spec import TrialSpec
from components.records.events import Progress, RungEvaluation, TrialHistory, TrialStarted


def started(trial_id: str, **fields: Any) -> TrialStarted:
    defaults = {"number": 1, "branch": "lora", "spec": TrialSpec(), "workers": 1, "varied": {}, "time": 1.0}
    return TrialStarted(trial_id=trial_id, **(defaults | fields))


def progress(step: int, eval_loss: float, **fields: Any) -> Progress:
    """A report after so many steps of ten targets each."""
    defaults = {"target_tokens": 10 * step, "epoch": 1.0, "seconds": 1.0, "tokens_per_second": 1.0}
    return Progress(step=step, eval_loss=eval_loss, **(defaults | {"train_loss": 1.0, "eval_num_targets": 5} | fields))


def sampled(step: int, eval_loss: float, **fields: Any) -> Progress:
    """Such a report that passes a rung only, so the loss is that of a sample."""
    rung = RungEvaluation(conversations=16, eval_loss=eval_loss)
    return progress(step, math.inf, **({"eval_num_targets": 0, "rung": rung} | fields))


def history(number: int, *losses: float) -> TrialHistory:
    """A completed trial with a report of each of these losses, each with a checkpoint."""
    reports = tuple(progress(step, loss, checkpoint="there") for step, loss in enumerate(losses, start=1))
    return TrialHistory(started=started(str(number), number=number), reports=reports, state="completed")
