"""Opens the base models of a search, one after another: all that depends on a model is checked, prepared and decided here.

A search over one base is the usual case of a list with one member. Over several ones each gets the view of the experiment
with its own branches (branch_models.py), and data with the same words as the others (same_words.py).
"""

from __future__ import annotations

import sys
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
from components.data.general_text import encode_passages, token_ids_of
from components.data.layout import Layout
from components.data.passage import Passage
from components.data.prepare import PreparedDataset
from components.experiment.branch_models import branches_by_model, joined, view_of
from components.experiment.learning_rate_prior import settle_learning_rates
from components.experiment.precisions import with_precisions
from components.experiment.spec import ChatFormatSpec, Dtype, ExperimentSpec, ModelSpec
from components.models.base.bundled_models import BUNDLED_MODELS
from components.models.base.load_base import check_base, config_of, resolve_model
from components.models.base.reference import BaseReference
from components.models.digest import model_digest
from components.models.meta_tensors import count_parameters
from components.models.token_id_check import check_token_ids, rows_of_config
from components.models.trainable_summary import describe_branch_training
from components.records.manifest import ManifestBase, SearchManifest
from components.records.on_message import OnMessage, ignore_message
from components.registry.probes import Probe
from components.scoring.generation_plan import GenerationPlan
from components.search.choose_search import ChosenSearch
from components.search.open_data import open_data
from components.search.plan_generation import plan_generation
from components.training.budget_units import BudgetUnits, rescaled
from components.training.model_settings import abilities_for, settle
from components.training.vocabulary_check import check_vocabulary


@dataclass(frozen=True, kw_only=True)
class BaseFiles:
    """One base model up to its chat format. `experiment` is its view; `name` the path as it was written.

    `trained` says, by branch and for people, what its trials train or adapt.
    """

    name: str
    experiment: ExperimentSpec
    directory: Path
    config: Any  # transformers' PreTrainedConfig
    tokenizer: Any
    format_spec: ChatFormatSpec
    chat_format: ChatFormat
    trained: Mapping[str, str]

    @property
    def branches(self) -> tuple[str, ...]:
        return tuple(self.experiment.search.space)


@dataclass(frozen=True, kw_only=True)
class OpenedBase(BaseFiles):
    """Ready for the trials of its branches: `experiment` has what was decided for them, which `settings` says.

    `precisions` is what `precision: auto` came to, by branch. `general` is the general text in its tokens.
    """

    dataset: PreparedDataset
    layout: Layout
    precisions: Mapping[str, Dtype]
    settings: str
    general: tuple[Passage, ...] = ()

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
            general=self.general,
        )

    def in_manifest(self) -> ManifestBase:
        return ManifestBase(prepared=str(self.dataset.directory), attention=self.experiment.model.attention)


@dataclass(frozen=True, kw_only=True)
class OpenedBases:
    """All bases of a search, the default one first. `experiment` has what was decided for each branch.

    `budget` is each trial's, in target tokens, or in bytes of targets if there are several bases. `generation` is what all
    are asked at evaluations. `begun` is the manifest of the search that goes on, None for a new one.
    """

    bases: tuple[OpenedBase, ...]
    experiment: ExperimentSpec
    budget: int
    generation: GenerationPlan | None
    begun: SearchManifest | None

    @property
    def default(self) -> OpenedBase:
        return self.bases[0]

    @property
    def by_bytes(self) -> bool:
        return len(self.bases) > 1

    @property
    def settings(self) -> str:
        """What was decided, for people."""
        if len(self.bases) == 1:
            return self.default.settings
        return "; ".join(f"{base.name}: {base.settings}" for base in self.bases)

    @property
    def trained(self) -> dict[str, str]:
        return {name: text for base in self.bases for name, text in base.trained.items()}

    @property
    def digests(self) -> dict[str, str]:
        """The digest of the prepared data, by branch."""
        return {name: base.dataset.digest for base in self.bases for name in base.branches}

    @property
    def precisions(self) -> dict[str, Dtype]:
        """What `precision: auto` came to, by branch."""
        return {name: precision for base in self.bases for name, precision in base.precisions.items()}

    def of_branch(self, branch: str) -> OpenedBase:
        return next(base for base in self.bases if branch in base.branches)

    def others_for_trials(self) -> dict[str, SearchBase]:
        return {name: base.for_trials() for base in self.bases[1:] for name in base.branches}

    def others_in_manifest(self) -> dict[str, ManifestBase]:
        return {name: base.in_manifest() for base in self.bases[1:] for name in base.branches}


def open_bases(
    written: ExperimentSpec, choice: ChosenSearch, probes: Sequence[Probe], on_message: OnMessage
) -> OpenedBases:
    """Decides, too, whether an unfinished search goes on (open_data.py).

    Raises InputError, or another ValueError, if a model or its data cannot be used.
    """
    files = [_read(view_of(written, model, names), on_message) for model, names in branches_by_model(written).items()]
    views = [(base.experiment, base.directory) for base in files]
    datasets, begun = open_data(written, choice, views, on_message)
    several = len(files) > 1
    for base, dataset in zip(files, datasets, strict=True):
        on_message(f"{base.name}: {dataset.summary()}" if several else dataset.summary())
    bases, plans = [], []
    for number, (base, dataset) in enumerate(zip(files, datasets, strict=True)):
        say = on_message if number == 0 else ignore_message  # all are asked the same
        plans.append(plan_generation(base.experiment, dataset, base.chat_format, base.config, probes, say))
        bases.append(_settled(base, _as_it_began(base, begun), dataset))
    if datasets[0].verdict_note:
        on_message(datasets[0].verdict_note)
    experiment = joined(written, [base.experiment for base in bases])
    if several:
        train = datasets[0].train
        experiment = rescaled(experiment, of=train.total_targets, to=int(train.target_bytes.sum()))
        on_message(
            f"{len(bases)} base models: budgets count bytes of the assistant's words, losses compare in bits per byte"
        )
    units = BudgetUnits.of(datasets[0], by_bytes=several)
    opened = OpenedBases(
        bases=tuple(bases),
        experiment=experiment,
        budget=units.planned(experiment.trial.budget),
        generation=plans[0],
        begun=begun,
    )
    on_message(opened.settings)
    return opened


def _read(view: ExperimentSpec, on_message: OnMessage) -> BaseFiles:
    name = view.model.path
    on_message(f"base model {name}")
    directory = resolve_model(view.model)
    check_base(view.model)
    view = view.model_copy(update={"model": _on_every_node(view.model, directory)})
    config = config_of(directory)
    view, rates = settle_learning_rates(view, count_parameters(config))
    for rate in rates:
        on_message(rate)
    trained = describe_branch_training(view, config)
    for branch, sentence in trained.items():
        on_message(f"{branch}: {sentence}")
    tokenizer = load_tokenizer(directory)
    format_spec = format_spec_in(directory, view.format_spec)
    chat_format = load_chat_format(tokenizer, format_spec)
    for remark in date_remarks(chat_format):
        on_message(remark)
    return BaseFiles(
        name=name,
        experiment=view,
        directory=directory,
        config=config,
        tokenizer=tokenizer,
        format_spec=format_spec,
        chat_format=chat_format,
        trained=trained,
    )


def _as_it_began(base: BaseFiles, begun: SearchManifest | None) -> ExperimentSpec:
    """Returns the view with the precisions and the attention that the search began with, whatever this machine has."""
    if begun is None:
        return base.experiment
    view = with_precisions(base.experiment, begun.precisions)
    kept = begun.base_of(base.branches[0]).attention
    if kept is None:
        return view
    return view.model_copy(update={"model": view.model.model_copy(update={"attention": kept})})


def _settled(base: BaseFiles, view: ExperimentSpec, dataset: PreparedDataset) -> OpenedBase:
    abilities = abilities_for(view, base.config)
    settings = settle(view, base.config, abilities, has_trees=any(store.has_forks for store in dataset.stores.values()))
    return OpenedBase(
        **{**vars(base), "experiment": settings.experiment},
        dataset=dataset,
        layout=settings.layout,
        precisions=settings.precisions,
        settings=settings.sentence,
    )


def check_vocabularies(opened: OpenedBases, on_message: OnMessage) -> None:
    """Raises InputError if a model has no row for a token; says what rows nothing trains."""
    for base in opened.bases:
        unused = check_vocabulary(base.config, base.tokenizer, base.chat_format, base.dataset, name=base.name)
        if unused:
            on_message(f"Warning: {unused}")


def with_general(opened: OpenedBases, texts: Sequence[str], on_message: OnMessage) -> OpenedBases:
    """Encodes the general text for each base. Of several bases all leave out a text that one has to cut.

    Raises InputError if a model has no row for one of the tokens.
    """
    limits = [min(base.experiment.data.max_tokens, base.dataset.context or sys.maxsize) for base in opened.bases]
    whole = texts if not opened.by_bytes else [text for text in texts if _fits_all(text, opened.bases, limits)]
    if len(whole) < len(texts):
        on_message(
            f"evaluation.general: trials leave out {len(texts) - len(whole)} of {len(texts)} texts, which not"
            " every base model takes whole"
        )
    bases = []
    for base, limit in zip(opened.bases, limits, strict=True):
        passages = encode_passages(whole, base.tokenizer, max_tokens=limit)
        used = dict.fromkeys(token_ids_of(passages), "is in the general text (evaluation.general)")
        check_token_ids(rows_of_config(base.config), used, base.tokenizer, name=base.name)
        bases.append(replace(base, general=passages))
    return replace(opened, bases=tuple(bases))


def _fits_all(text: str, bases: Sequence[OpenedBase], limits: Sequence[int]) -> bool:
    encoded = [
        encode_passages([text], base.tokenizer, max_tokens=most) for base, most in zip(bases, limits, strict=True)
    ]
    return all(passages and passages[0].num_bytes for passages in encoded)


def _on_every_node(model: ModelSpec, directory: Path) -> ModelSpec:
    """Workers run in other folders: a local directory is named by its whole path, a hub id is a name everywhere."""
    is_local = model.path not in BUNDLED_MODELS and Path(model.path).expanduser().is_dir()
    return model.model_copy(update={"path": str(directory)}) if is_local else model
