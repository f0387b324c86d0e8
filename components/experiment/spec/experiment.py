"""A whole experiment file: one question, as one model, one data set and one space of trials."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field, JsonValue

from components.experiment.spec.chat_format import ChatFormatSpec
from components.experiment.spec.data import DataSpec
from components.experiment.spec.evaluation import EvaluationSpec, GenerateSpec
from components.experiment.spec.method import FullMethod, LoraMethod, why_alone
from components.experiment.spec.metric import SCORES_OF_REPLIES, MetricSpec
from components.experiment.spec.model import ModelSpec
from components.experiment.spec.registry import RegistrySpec, TrackingSpec
from components.experiment.spec.resources import ResourcesSpec, WorkersSpec
from components.experiment.spec.search import SearchSpec
from components.experiment.spec.section import Name, Spec
from components.experiment.spec.storage import PREPARED, StorageSpec
from components.experiment.spec.trial import TrialSpec
from components.storage.folder import Folder
from components.storage.open_folder import folder_at


def _check_folder_name(name: str) -> str:
    if name == PREPARED:
        raise ValueError("that folder of the storage is for prepared data; choose another name")
    return name


class ExperimentSpec(Spec):
    """A whole experiment file."""

    name: Annotated[Name, AfterValidator(_check_folder_name)]
    model: ModelSpec
    data: DataSpec
    chat_format: str = Field(
        "auto", description="`auto` is ChatGLM3's own for its tokenizer, else the chat template, else ChatML."
    )
    chat_template: str | None = Field(
        None, description="The template of that name, where the tokenizer has several: `default`, `tool_use`, `rag`."
    )
    chat_template_arguments: dict[str, JsonValue] = Field(
        default_factory=dict,
        description="Arguments of the chat template, in training and in use: `{enable_thinking: false}`.",
    )
    trial: TrialSpec = TrialSpec()
    search: SearchSpec
    evaluation: EvaluationSpec = EvaluationSpec()
    resources: ResourcesSpec = ResourcesSpec()
    storage: StorageSpec = Field(default_factory=StorageSpec)
    tracking: TrackingSpec = TrackingSpec()
    registry: RegistrySpec = RegistrySpec()

    @property
    def format_spec(self) -> ChatFormatSpec:
        return ChatFormatSpec(
            name=self.chat_format,
            template=self.chat_template,
            arguments=self.chat_template_arguments,
            system=self.data.system,
            train_on_reasoning=self.data.train_on_reasoning,
        )

    @property
    def generation(self) -> GenerateSpec | None:
        """What is generated at evaluations, search.metric included; None if nothing is."""
        metric, generate = self.search.metric, self.evaluation.generate
        if not metric.of_replies:
            return generate
        generate = generate or GenerateSpec()
        others = tuple(score for score in generate.scores if score.name != metric.name)
        return generate.model_copy(update={"scores": (metric, *others)})

    @property
    def gate_generation(self) -> GenerateSpec | None:
        """What is generated at the gate: what the gate judges or guards by; None if that needs no answers."""
        known = {score.name: score for score in (self.generation.scores if self.generation else ())}
        guarded = [
            known.get(name) or MetricSpec(name=name, direction=SCORES_OF_REPLIES[name][0])
            for name in self.registry.gate.no_worse
            if name in known or name in SCORES_OF_REPLIES
        ]
        metric = self.search.metric
        wanted = {score.name: score for score in ([metric] if metric.of_replies else []) + guarded}
        if not wanted:
            return None
        return (self.generation or GenerateSpec()).model_copy(update={"scores": tuple(wanted.values())})

    def workers_of(self, method: LoraMethod | FullMethod) -> WorkersSpec:
        """What the trials of a method occupy: workers of their own, or one that several share."""
        own = self.resources.of(method)
        return own if why_alone(method, own.max_workers) else own.shared_by(self.search.trials_per_slot)

    @property
    def registered_model(self) -> str:
        return self.registry.name or f"turnwise-{self.name}"

    @property
    def mlflow_experiment(self) -> str:
        return self.tracking.experiment or self.name

    @property
    def folder(self) -> Folder:
        """The experiment's folder on the storage. Its path is absolute, because Ray workers run in other directories."""
        return folder_at(self.storage.path) / self.name
