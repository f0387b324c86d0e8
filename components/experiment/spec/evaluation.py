"""The section `evaluation:`: what is asked of a trial's model beside the loss on held-out conversations."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, ConfigDict, Field, model_validator

from components.experiment.spec.metric import Metric, MetricSpec
from components.experiment.spec.section import Count, Spec

DEFAULT_SCORES = ("chrf", "rouge_l", "stop_rate", "length_ratio", "repetition", "language_kept")


def _check_of_reply(metric: MetricSpec) -> MetricSpec:
    if not metric.of_replies:
        raise ValueError(f"{metric.name} is measured at every evaluation, without generating; leave it out here")
    return metric


class GenerateSpec(Spec):
    """What a trial's model says to the last question of held-out conversations, and how that is scored."""

    model_config = ConfigDict(populate_by_name=True, serialize_by_alias=True)

    source: Literal["eval", "probes"] = Field(
        "eval",
        alias="from",
        description="`eval`: held-out conversations, whose last answer is the reference. `probes`: registry.probes.",
    )
    conversations: Count = Field(
        64, description="How many at most, chosen by a hash of their text: the same ones when data is added."
    )
    max_new_tokens: Count = Field(128, description="Longer answers are cut off.")
    when: Literal["every", "end"] = Field(
        "every", description="`every`: at every evaluation. `end`: at the end of a trial's budget only."
    )
    scores: tuple[Annotated[Metric, AfterValidator(_check_of_reply)], ...] = Field(
        DEFAULT_SCORES,
        min_length=1,
        validate_default=True,
        description="Names, or functions of yours as {name: module:function, direction: maximize}.",
    )
    json_schema: str | dict[str, Any] | None = Field(
        None, description="For the score json_schema: a JSON Schema, or a file that holds one."
    )

    @model_validator(mode="after")
    def _names_each_score_once(self) -> Self:
        names = [score.name for score in self.scores]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"scores has {', '.join(twice)} twice")
        return self


class EvaluationSpec(Spec):
    """What is measured at evaluations and at the gate."""

    conversations_at_rungs: Count | None = Field(
        None,
        description="A report that passes a rung only is evaluated on so many held-out conversations, the same for all trials"
        " (chosen by a hash of their text). It decides the rung, and nothing else. By default on all of them.",
    )
    generate: GenerateSpec | None = Field(
        None, description="Score what the model says; by default only where search.metric needs it."
    )
    general: bool | str = Field(
        True,
        description="Text whose loss shows what a model has forgotten: `true` is the set that comes with this project, else a"
        ' file with a passage on each line (.jsonl: {"text": ...}); `false` measures nothing.',
    )

    @model_validator(mode="after")
    def _names_a_file(self) -> Self:
        if isinstance(self.general, str) and not self.general.strip():
            raise ValueError("general: names no file; give one, or true, or false")
        return self
