"""Numbers of a report, beside the metric of the search, that trials may be compared by: `search.metrics`."""

from __future__ import annotations

from components.experiment.spec.metric import MetricSpec

OTHER_METRICS = {
    metric.name: metric
    for metric in (
        MetricSpec(name="worker_seconds"),
        MetricSpec(name="seconds"),
        MetricSpec(name="train_loss"),
        MetricSpec(name="tokens_per_second", direction="maximize"),
    )
}
GROW_WITH_THE_BUDGET = ("worker_seconds", "seconds")  # a stopped trial's are projected to the whole budget


def check_metrics(metrics: tuple[str, ...], first: MetricSpec) -> None:
    """Raises ValueError for metrics that trials cannot be compared by. `first` is what the search goes by."""
    if not metrics:
        return
    if metrics[0] != first.name:
        raise ValueError(
            f"metrics: the first one is what the search goes by, {first.name}, not {metrics[0]}; write [{first.name},"
            " worker_seconds]"
        )
    if len(metrics) == 1:
        raise ValueError(f"metrics: [{first.name}] compares by one number, as without it; leave it out, or add another")
    if unknown := [name for name in metrics[1:] if name not in OTHER_METRICS]:
        raise ValueError(f"metrics: {', '.join(unknown)} is none of {', '.join(OTHER_METRICS)}")
    if len(set(metrics)) < len(metrics):
        raise ValueError("metrics: each is named once")
