"""The metric points that a report of a trial has in MLflow: by these a run is written, and compared with the journal."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from mlflow.entities import Metric

from components.experiment.spec import EVAL_LOSS, MetricSpec
from components.records.events import Progress, TrialProgressed

BEST_LOSS = "eval/best_loss"  # the eval loss of the best checkpoint, by the metric of the search


def standing_after(progress: Progress, best: tuple[float, float]) -> tuple[float, float]:
    """Returns the standing of a trial's best checkpoint after a report. `best`: before it."""
    return progress.standing if progress.checkpoint is not None and progress.standing < best else best


def best_key(metric: MetricSpec) -> str:
    return BEST_LOSS if metric.name == EVAL_LOSS else f"eval/best_{_in_mlflow(metric.name)}"


def _in_mlflow(name: str) -> str:
    """Returns a metric's name as MLflow takes it everywhere: a function's colon is a point."""
    return name.replace(":", ".")


def points_of(record: TrialProgressed, best: tuple[float, float]) -> Iterator[Metric]:
    """Yields the points of every optimizer step and of the report, without what is not finite: MLflow would change it."""
    progress = record.progress
    for point in progress.steps:
        values = {
            "train/step_loss": point.loss,
            "train/learning_rate": point.learning_rate,
            "train/grad_norm": point.grad_norm,
            "train/target_tokens": point.target_tokens,
        }
        yield from finite(values, int(point.time * 1000), point.step)
    metric, (objective, loss) = progress.metric, best
    bests = {best_key(metric): metric.to_minimize(objective), BEST_LOSS: loss}  # turned twice, a sign is as it was
    yield from finite(_report(progress) | bests, int(record.time * 1000), progress.step)


def finite(values: Mapping[str, float], timestamp: int, step: int) -> Iterator[Metric]:
    return (Metric(key, value, timestamp, step) for key, value in values.items() if math.isfinite(value))


def _report(progress: Progress) -> dict[str, float]:
    """What a sample says has names of its own: every point of eval/loss is over the whole split."""
    whole = {"loss": progress.eval_loss, "num_targets": progress.eval_num_targets, **progress.scores}
    sampled = {} if progress.rung is None else {"loss": progress.rung.eval_loss, **progress.rung.scores}
    return {
        "train/loss": progress.train_loss,
        "train/tokens_per_second": progress.tokens_per_second,
        "train/seconds": progress.seconds,
        "eval/seconds": progress.evaluation_seconds,
        "train/epoch": progress.epoch,
        **{f"eval/{_in_mlflow(name)}": value for name, value in whole.items() if not progress.is_sampled},
        **{f"rung/{_in_mlflow(name)}": value for name, value in sampled.items()},
    }
