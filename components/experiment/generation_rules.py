"""What an experiment's evaluation by generated text needs of its other sections, checked before anything starts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from components.experiment.experiment_errors import Problem
from components.experiment.spec import (
    EVAL_LOSS,
    GENERAL_LOSS,
    SCORES_OF_REPLIES,
    ExperimentSpec,
    NoSchedulerSpec,
    TrialSpec,
)

WITHOUT = "leave evaluation.generate out and set search.metric: eval_loss"


def gate_problems(experiment: ExperimentSpec) -> Iterator[Problem]:
    """Yields the problems of registry.gate: what nobody measures guards nothing."""
    listed = {score.name for score in (experiment.generation.scores if experiment.generation else ())}
    for name in experiment.registry.gate.no_worse:
        location = f"registry.gate.no_worse.{name}"
        if name == GENERAL_LOSS and experiment.evaluation.general is False:
            text = "evaluation.general is false, so no general text is scored; set it to true, or leave this out"
            yield Problem(location=location, text=text)
        elif name == "json_schema" and name not in listed:
            text = "needs evaluation.generate.json_schema, and json_schema among evaluation.generate.scores"
            yield Problem(location=location, text=text)
        elif name not in (EVAL_LOSS, GENERAL_LOSS, *SCORES_OF_REPLIES, *listed):
            known = ", ".join((EVAL_LOSS, GENERAL_LOSS, *SCORES_OF_REPLIES))
            text = f"no score has this name; there are {known}, and functions of yours that evaluation.generate.scores names"
            yield Problem(location=location, text=text)


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
    if of_search and generate.source == "probes" and experiment.evaluation.conversations_at_rungs is not None:
        yield Problem(
            location="evaluation.conversations_at_rungs",
            text=f"search.metric {search.metric.name} is of the answers to registry.probes, and rungs are decided by held-out"
            " conversations; leave it out, or set evaluation.generate.from: eval",
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
