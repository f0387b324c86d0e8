"""Opens the base models of a search, one after another: all that depends on a model is checked, prepared and decided here.

A search over one base is the usual case of a list with one member. Over several ones each gets the view of the experiment
with its own branches (branch_models.py), and data with the same words as the others (same_words.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from components.cluster.slots.search_context import SearchBase
from components.conversations.chat_formats import load_chat_format
from components.conversations.chat_formats.chat_format import ChatFormat
from components.conversations.format_facts import date_remarks
from components.conversations.load_format import format_spec_in
from components.conversations.tokenizers.load_tokenizer import load_tokenizer
from components.data.prepare import PreparedDataset, prepare_experiment
from components.data.same_words import shared_sources
from components.errors import InputError
from components.experiment.branch_models import branches_by_model, joined, view_of
from components.experiment.spec import AshaSpec, ChatFormatSpec, ExperimentSpec, ModelSpec
from components.models.base.context import context_of
from components.models.base.load_base import check_base, config_of, resolve_model
from components.models.base.reference import BaseReference
from components.models.base.wheel_model import BUNDLED_MODELS
from components.models.digest import model_digest
from components.models.trainable_summary import describe_branch_training
from components.records.manifest import ManifestBase, SearchManifest
from components.records.on_message import OnMessage
from components.storage.open_folder import folder_at
from components.training.budget_units import BudgetUnits, in_epochs
from components.training.model_abilities import Layout, ModelAbilities
from components.training.model_settings import abilities_for, settle
from components.training.vocabulary_check import check_vocabulary


@dataclass(frozen=True, kw_only=True)
class OpenedBase:
    """One base model, ready for the trials of its branches. `experiment` is its view; `name` the path as it was written."""

    name: str
    experiment: ExperimentSpec
    directory: Path
    config: Any  # transformers' PreTrainedConfig
    abilities: ModelAbilities
    tokenizer: Any
    format_spec: ChatFormatSpec
    chat_format: ChatFormat
    dataset: PreparedDataset
    trained: Mapping[str, str]
    layout: Layout = "trees"
    settings: str = ""

    @property
    def branches(self) -> tuple[str, ...]:
        return tuple(self.experiment.search.space)

    @property
    def reference(self) -> BaseReference:
        return BaseReference(
            model=self.experiment.model, digest=model_digest(self.directory), chat_format=self.format_spec
        )

    def for_trials(self) -> SearchBase:
        return SearchBase(
            model=self.experiment.model,
            reference=self.reference,
            prepared=self.dataset.directory,
            pad_token_id=self.chat_format.pad_token_id,
            layout=self.layout,
        )

    def in_manifest(self) -> ManifestBase:
        return ManifestBase(prepared=str(self.dataset.directory), attention=self.experiment.model.attention)


@dataclass(frozen=True, kw_only=True)
class OpenedBases:
    """All bases of a search, the default one first. `experiment` has what was decided for each branch.

    `budget` is each trial's, in target tokens, or in bytes of targets if there are several bases.
    """

    bases: tuple[OpenedBase, ...]
    experiment: ExperimentSpec
    budget: int

    @property
    def default(self) -> OpenedBase:
        return self.bases[0]

    @property
    def settings(self) -> str:
        """What was decided, for people."""
        if len(self.bases) == 1:
            return self.default.settings
        return "; ".join(f"{base.name}: {base.settings}" for base in self.bases)

    @property
    def trained(self) -> dict[str, str]:
        return {name: text for base in self.bases for name, text in base.trained.items()}

    def of_branch(self, branch: str) -> OpenedBase:
        return next(base for base in self.bases if branch in base.branches)

    def others_for_trials(self) -> dict[str, SearchBase]:
        return {name: base.for_trials() for base in self.bases[1:] for name in base.branches}

    def others_in_manifest(self) -> dict[str, ManifestBase]:
        return {name: base.in_manifest() for base in self.bases[1:] for name in base.branches}


def open_bases(written: ExperimentSpec, manifest: SearchManifest | None, on_message: OnMessage) -> OpenedBases:
    """Raises InputError, or another ValueError, if a model or its data cannot be used.

    Args:
        manifest: of a search that goes on: its data, and the attention of its models, stay what they were.
    """
    opened = [
        _open(view_of(written, model, names), manifest, on_message)
        for model, names in branches_by_model(written).items()
    ]
    if manifest is None and len(opened) > 1:
        opened = _with_same_words(opened)
    for base in opened:
        on_message(base.dataset.summary() if len(opened) == 1 else f"{base.name}: {base.dataset.summary()}")
    bases = tuple(map(_settled, opened))
    for base in bases:
        unused = check_vocabulary(base.config, base.tokenizer, base.chat_format, base.dataset, name=base.name)
        if unused:
            on_message(f"Warning: {unused}")
    experiment = joined(written, [base.experiment for base in bases])
    if len(bases) > 1:
        experiment = _in_bytes(experiment, bases[0].dataset)
        on_message(
            f"{len(bases)} base models: budgets count bytes of the assistant's words, trials are compared in bits per byte"
        )
    units = BudgetUnits.of(bases[0].dataset, by_bytes=len(bases) > 1)
    opened_bases = OpenedBases(bases=bases, experiment=experiment, budget=units.planned(experiment.trial.budget))
    on_message(opened_bases.settings)
    return opened_bases


def _open(view: ExperimentSpec, manifest: SearchManifest | None, on_message: OnMessage) -> OpenedBase:
    name = view.model.path
    on_message(f"base model {name}")
    directory = resolve_model(view.model)
    check_base(view.model)
    model, kept = _on_every_node(view.model, directory), None
    if manifest is not None:
        kept = manifest.base_of(next(iter(view.search.space)))
        if kept.attention is not None:  # what the search began with, whatever this machine has
            model = model.model_copy(update={"attention": kept.attention})
    view = view.model_copy(update={"model": model})
    config = config_of(directory)
    trained = describe_branch_training(view, config)
    for branch, sentence in trained.items():
        on_message(f"{branch}: {sentence}")
    abilities = abilities_for(view, config)
    tokenizer = load_tokenizer(directory)
    format_spec = format_spec_in(directory, view.format_spec)
    chat_format = load_chat_format(tokenizer, format_spec)
    for remark in date_remarks(chat_format):
        on_message(remark)
    dataset = (
        prepare_experiment(view, directory, context=context_of(directory))
        if manifest is None or kept is None
        else _prepared_for(manifest, kept)
    )
    return OpenedBase(
        name=name,
        experiment=view,
        directory=directory,
        config=config,
        abilities=abilities,
        tokenizer=tokenizer,
        format_spec=format_spec,
        chat_format=chat_format,
        dataset=dataset,
        trained=trained,
    )


def _with_same_words(opened: Sequence[OpenedBase]) -> list[OpenedBase]:
    """Prepares the data again, where needed, without the conversations that are not the same words for every base."""
    shared = shared_sources([base.dataset for base in opened])
    if shared is None:
        return list(opened)
    if not shared:
        raise InputError("model: there is no conversation that every base model of the search can use whole")
    return [
        replace(
            base,
            dataset=prepare_experiment(
                base.experiment, base.directory, context=context_of(base.directory), shared=shared
            ),
        )
        for base in opened
    ]


def _settled(base: OpenedBase) -> OpenedBase:
    stores = base.dataset.train, base.dataset.eval
    settings = settle(base.experiment, base.config, base.abilities, has_trees=any(store.has_forks for store in stores))
    return replace(base, experiment=settings.experiment, layout=settings.layout, settings=settings.sentence)


def _in_bytes(experiment: ExperimentSpec, dataset: PreparedDataset) -> ExperimentSpec:
    """Returns the experiment with what it counts in target tokens, those of this data, in epochs or in bytes."""
    budget = in_epochs(experiment.trial.budget, dataset.train.total_targets)
    settled = experiment.model_copy(update={"trial": experiment.trial.model_copy(update={"budget": budget})})
    scheduler = experiment.search.scheduler
    if not isinstance(scheduler, AshaSpec) or scheduler.first_rung_target_tokens is None:
        return settled
    first = BudgetUnits.of(dataset, by_bytes=True).spent(scheduler.first_rung_target_tokens)
    rung = scheduler.model_copy(update={"first_rung_target_tokens": max(1, first)})
    return settled.model_copy(update={"search": settled.search.model_copy(update={"scheduler": rung})})


def _on_every_node(model: ModelSpec, directory: Path) -> ModelSpec:
    """Workers run in other folders: a local directory is named by its whole path, a hub id is a name everywhere."""
    is_local = model.path not in BUNDLED_MODELS and Path(model.path).expanduser().is_dir()
    return model.model_copy(update={"path": str(directory)}) if is_local else model


def _prepared_for(manifest: SearchManifest, kept: ManifestBase) -> PreparedDataset:
    """The data that the search began with, even if the files it was made of have changed since."""
    directory = folder_at(kept.prepared)
    if not directory.is_complete():
        raise InputError(
            f"--resume {manifest.search_id}: its prepared data {directory} is gone; start again without --resume"
        )
    return PreparedDataset.open(directory).verify()
