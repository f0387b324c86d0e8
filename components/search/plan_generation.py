"""Plans what the models of a search are asked at evaluations, and tries the scores of it before anything is trained."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from components.conversations.chat_formats.chat_format import ChatFormat
from components.conversations.messages import Conversation
from components.data.prepare import PreparedDataset
from components.errors import InputError
from components.experiment.spec import ExperimentSpec, GenerateSpec
from components.records.on_message import OnMessage
from components.registry.probes import Probe
from components.scoring.generation_plan import GenerationPlan
from components.scoring.questions import Question
from components.scoring.score_model import askable, asked_of, check_plan
from components.training.rung_sample import RungSample


def plan_generation(
    experiment: ExperimentSpec,
    dataset: PreparedDataset,
    chat_format: ChatFormat,
    config: Any,
    probes: Sequence[Probe],
    on_message: OnMessage,
) -> GenerationPlan | None:
    """Returns the plan; None where nothing is generated. Says what is asked, and which scores will have nothing to say.

    Raises InputError if the metric of the search would have no value, if a JSON Schema cannot be read, or if a function of
    the user fails on the references themselves.

    Args:
        config: the model's, of transformers.
    """
    generate = experiment.generation
    if generate is None:
        return None
    plan = _plan(generate, probes)
    conversations, count = asked_of(plan, dataset.eval)
    questions = askable(
        conversations,
        chat_format,
        config,
        max_tokens=experiment.data.max_tokens,
        max_new_tokens=generate.max_new_tokens,
    )
    remarks = check_plan(plan, questions, experiment.search.metric)
    _check_at_rungs(experiment, dataset, plan, questions)
    on_message(_sentence(experiment, generate, len(questions), count))
    for remark in remarks:
        on_message(f"Warning: {remark}")
    return plan


def _check_at_rungs(
    experiment: ExperimentSpec, dataset: PreparedDataset, plan: GenerationPlan, questions: Sequence[Question]
) -> None:
    """Raises InputError if the metric of the search would have no value at rungs."""
    metric, count = experiment.search.metric, experiment.evaluation.conversations_at_rungs
    sample = RungSample.of(dataset.eval, count)
    if sample is None or not metric.of_replies:
        return
    try:
        check_plan(plan, [question for question in questions if question.index in sample.conversations], metric)
    except InputError as error:
        raise InputError(
            f"evaluation.conversations_at_rungs={count}: at rungs {error}; or ask for more there"
        ) from None


def plan_gate(experiment: ExperimentSpec, probes: Sequence[Probe]) -> GenerationPlan | None:
    """Returns what candidate, base and incumbent are asked at the gate; None where it needs no answers.

    Raises InputError if a JSON Schema cannot be read.
    """
    generate = experiment.gate_generation
    return None if generate is None else _plan(generate, probes)


def _plan(generate: GenerateSpec, probes: Sequence[Probe]) -> GenerationPlan:
    asked = tuple(
        Conversation(messages=tuple(probe.conversation()), expect=probe.expect, source=f"probe {number}")
        for number, probe in enumerate(probes, start=1)
    )
    return GenerationPlan(generate=_with_schema(generate), probes=asked, working_directory=str(Path.cwd()))


def _with_schema(generate: GenerateSpec) -> GenerateSpec:
    """Reads a schema's file, which workers may not see."""
    if not isinstance(generate.json_schema, str):
        return generate
    path = Path(generate.json_schema)
    try:
        schema = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"evaluation.generate.json_schema={path}: cannot be read: {error}") from None
    if not isinstance(schema, dict):
        raise InputError(f"evaluation.generate.json_schema={path}: holds no JSON object; a JSON Schema is one")
    return generate.model_copy(update={"json_schema": schema})


def _sentence(experiment: ExperimentSpec, generate: GenerateSpec, asked: int, count: int) -> str:
    metric = experiment.search.metric
    why = "" if experiment.evaluation.generate else f", because search.metric is {metric.name}"
    when = "each evaluation" if generate.when == "every" else "the end of a trial"
    names = ", ".join(score.name for score in generate.scores)
    ranked = f"; trials are ranked by {metric.name} ({metric.direction})" if metric.of_replies else ""
    return (
        f"evaluation.generate: at {when} up to {generate.max_new_tokens} tokens in answer to {asked} of {count} conversations"
        f" ({generate.source}){why}: {names}{ranked}"
    )
