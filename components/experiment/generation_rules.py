"""What an experiment's evaluation by generated text needs of its other sections, checked before anything starts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from components.experiment.experiment_errors import Problem
from components.experiment.spec import ExperimentSpec, NoSchedulerSpec, TrialSpec

WITHOUT = "leave evaluation.generate out and set search.metric: eval_loss"


def generation_problems(experiment: ExperimentSpec, trials: Iterable[TrialSpec]) -> Iterator[Problem]:
    """Yields the problems of an experiment's generation. `trials` has one of each branch."""
    generate, search = experiment.generation, experiment.search
    if generate is None:
        return
    of_search = search.metric.of_replies
    if of_search and generate.when == "end" and not isinstance(search.scheduler, NoSchedulerSpec):
        yield Problem(
            location="evaluation.generate.when",
            text=f"end gives no {search.metric.name} before a trial's end, and search.scheduler {search.scheduler.name} stops"
            " trials by it; set when: every, or search.scheduler: {name: none}",
        )
    if generate.source == "probes" and experiment.registry.probes is None:
        yield Problem(
            location="evaluation.generate.from",
            text="probes are asked for, and registry.probes names no file; name one, or set from: eval",
        )
    if any(score.name == "json_schema" for score in generate.scores) and generate.json_schema is None:
        yield Problem(
            location="evaluation.generate.json_schema",
            text="the score json_schema needs a schema here; give one or its file, or leave the score out",
        )
    if any(experiment.resources.of(trial.method).parallel == "fsdp" for trial in trials):
        wanted = f"search.metric {search.metric.name} is" if of_search else "evaluation.generate is"
        yield Problem(
            location="resources.full.parallel",
            text=f"fsdp shards the weights, and {wanted} measured by generating: every token would gather all weights again;"
            f" set parallel: ddp, or {WITHOUT}",
        )
