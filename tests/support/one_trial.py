"""One trial of a search as its journal records it, and the points that MLflow must have of it."""

from components.experiment.spec import (
    DataSpec,
    ExperimentSpec,
    LoraMethod,
    ModelSpec,
    SearchSpec,
    TrialSpec,
)
from components.records.events import (
    StepMetrics,
    TrialEnded,
    TrialProgressed,
)
from tests.support import records


def experiment(name="toy", **fields):
    return ExperimentSpec(
        name=name,
        model=ModelSpec(path="model"),
        data=DataSpec(train="conversations.jsonl"),
        search=SearchSpec(space={"lora": {"method": {"kind": "lora"}}}),
        **fields,
    )


def runs_at(uri, name="toy", search_id="search-1", **fields):
    """The runs of a search in the experiment of that name, which MLflow has or gets."""
    from components.tracking.mlflow_access import (
        open_store,  # not above: children without MLflow import this module, too
    )
    from components.tracking.mlflow_runs import SearchRuns

    return SearchRuns(open_store(uri), uri, experiment(name, **fields), search_id)


def started(trial_id="t1", *, number=1, at=100.0, spec=None, branch="lora"):
    spec = spec or TrialSpec(method=LoraMethod(rank=4))
    return records.started(trial_id, number=number, branch=branch, spec=spec, time=at)


def progressed(trial_id="t1", *, last, eval_loss, at, first=1, loss=2.0, checkpoint=None, slot="slot_a"):
    """A report after the steps first..last, each of ten targets and one second, the last of which ended at `at`."""
    steps = tuple(
        StepMetrics(
            step=step,
            target_tokens=10 * step,
            loss=loss / step,
            learning_rate=0.1,
            grad_norm=1.0,
            seconds=float(step),
            time=at - last + step,
        )
        for step in range(first, last + 1)
    )
    fields = {"epoch": last / 4, "train_loss": loss, "eval_num_targets": 7, "tokens_per_second": 20.0}
    progress = records.progress(last, eval_loss, seconds=float(last), steps=steps, checkpoint=checkpoint, **fields)
    return TrialProgressed(trial_id=trial_id, progress=progress, slot=slot, time=at)


def ended(trial_id="t1", *, state="completed", reason="", at=200.0):
    return TrialEnded(trial_id=trial_id, state=state, reason=reason, time=at)


ONE_TRIAL = [
    started(),
    progressed(first=1, last=2, eval_loss=1.5, at=110.0, checkpoint="/c/2"),
    progressed(first=3, last=4, eval_loss=1.25, at=120.0, checkpoint="/c/4"),
    ended(),
]
# (step, value, milliseconds) by metric, as ONE_TRIAL says it.
ITS_POINTS = {
    "train/step_loss": [(1, 2.0, 109_000), (2, 1.0, 110_000), (3, 2 / 3, 119_000), (4, 0.5, 120_000)],
    "train/learning_rate": [(1, 0.1, 109_000), (2, 0.1, 110_000), (3, 0.1, 119_000), (4, 0.1, 120_000)],
    "train/grad_norm": [(1, 1.0, 109_000), (2, 1.0, 110_000), (3, 1.0, 119_000), (4, 1.0, 120_000)],
    "train/target_tokens": [(1, 10.0, 109_000), (2, 20.0, 110_000), (3, 30.0, 119_000), (4, 40.0, 120_000)],
    "train/loss": [(2, 2.0, 110_000), (4, 2.0, 120_000)],
    "train/tokens_per_second": [(2, 20.0, 110_000), (4, 20.0, 120_000)],
    "train/seconds": [(2, 2.0, 110_000), (4, 4.0, 120_000)],
    "eval/seconds": [(2, 0.0, 110_000), (4, 0.0, 120_000)],
    "train/epoch": [(2, 0.5, 110_000), (4, 1.0, 120_000)],
    "eval/loss": [(2, 1.5, 110_000), (4, 1.25, 120_000)],
    "eval/best_loss": [(2, 1.5, 110_000), (4, 1.25, 120_000)],
    "eval/num_targets": [(2, 7.0, 110_000), (4, 7.0, 120_000)],
}


def points_of(client, run_id):
    """(step, value, milliseconds) by metric, twins included."""
    keys = client.get_run(run_id).data.metrics
    histories = {key: client.get_metric_history(run_id, key) for key in keys if not key.startswith("system/")}
    return {
        key: sorted((point.step, point.value, point.timestamp) for point in points) for key, points in histories.items()
    }


def children_of(client, parent_id):
    experiment_id = client.get_run(parent_id).info.experiment_id
    return client.search_runs([experiment_id], f"tags.`mlflow.parentRunId` = '{parent_id}'")
