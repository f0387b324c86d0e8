"""Opens a search: finds all that can be known to be wrong before it starts, and prepares model, data and tracking."""

from __future__ import annotations

import json
import sys
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from components.cluster.ray_session import check_not_connected, workers_are_here
from components.cluster.scheduling.search_warnings import check_rungs
from components.cluster.slots.search_context import SearchContext
from components.conversations.chat_formats import load_chat_format
from components.conversations.format_facts import date_remarks, format_facts
from components.conversations.load_format import format_spec_in
from components.conversations.preview.mask_preview import Decode, verbatim
from components.conversations.tokenizers.load_tokenizer import load_tokenizer
from components.data.general_text import Passage, encode_passages, load_general_text, token_ids_of
from components.data.prepare import PreparedDataset, prepare_experiment
from components.errors import InputError
from components.experiment.base_precisions import dtype_warnings
from components.experiment.experiment_warnings import experiment_warnings
from components.experiment.learning_rate_prior import settle_learning_rates
from components.experiment.report_marks import rungs_of
from components.experiment.space import branches_of, corner_trials
from components.experiment.spec import STORAGE, ExperimentSpec, ModelSpec
from components.models import attention_backend, quantization_backend
from components.models.base.context import context_of
from components.models.base.load_base import check_base, config_of, resolve_model
from components.models.base.reference import BaseReference
from components.models.base.wheel_model import BUNDLED_MODELS
from components.models.digest import model_digest
from components.models.meta_tensors import count_parameters
from components.models.token_id_check import check_token_ids, rows_of_config
from components.models.trainable_summary import describe_branch_training
from components.planning.verification_memory import check_verifiable
from components.records.earlier_trials import EarlierTrial
from components.records.events import Progress
from components.records.manifest import LAYOUT, SearchManifest
from components.records.on_message import OnMessage, ignore_message
from components.registry.probes import Probe, load_probes
from components.registry.result import too_few_held_out
from components.scoring.score_model import GenerationPlan
from components.search.choose_search import ChosenSearch, choose_search, how_far
from components.search.plan_generation import plan_gate, plan_generation
from components.search.search_lock import SearchLock
from components.search.start_from import start_from
from components.storage.folder import Folder
from components.storage.open_folder import folder_at
from components.tracking.mlflow_access import check_model_name, check_tracking, tracking_uri
from components.training.model_abilities import Layout
from components.training.model_settings import abilities_for, settle
from components.training.vocabulary_check import check_vocabulary

GENERAL = "general_text.json"  # in the folder of a search
JOBS = "working_dir_files"  # Ray's name for what it makes of --working-dir


@dataclass(frozen=True, kw_only=True)
class PreparedSearch:
    """A search whose model, data and tracking are ready.

    `manifest` has the experiment as it was written; `experiment` has it with a model path that holds on every node, and
    without any `auto` that the model decides. `settings` says that decision, and `layout` is its part for the data.
    `budget` is that of every trial, in target tokens. `trained` says, by branch and for people, what its trials train or
    adapt. `generation` is what is asked of the models at evaluations, `gate_generation` at the gate. `format_facts` are tags
    about the chat format. `register`: the best trial will be sent to the registry, `replace`: for which reason it may replace
    an incumbent that cannot be compared. `opened` is when opening began, by time.monotonic(). `earlier` are trials of other
    searches, for the sampler. `general` is `general_texts` in tokens. `lock` must be closed in the end.
    """

    manifest: SearchManifest
    lock: SearchLock
    experiment: ExperimentSpec
    dataset: PreparedDataset
    budget: int
    base: BaseReference
    pad_token_id: int
    decode: Decode
    probes: tuple[Probe, ...]
    uri: str
    resumed: bool
    register: bool
    replace: str | None
    trained: Mapping[str, str]
    format_facts: Mapping[str, str]
    settings: str
    layout: Layout
    general_texts: tuple[str, ...]
    general: tuple[Passage, ...]
    opened: float
    generation: GenerationPlan | None = None
    gate_generation: GenerationPlan | None = None
    earlier: tuple[EarlierTrial, ...] = ()

    @property
    def search_id(self) -> str:
        return self.manifest.search_id

    @property
    def folder(self) -> Folder:
        return self.experiment.folder / self.search_id

    def begin(self) -> None:
        """Writes the manifest: from here on the search can be found, and the same command goes on with it."""
        if not self.folder.has_file(GENERAL):
            self.folder.write_text(GENERAL, json.dumps(self.general_texts, ensure_ascii=False))
        self.manifest.write(self.folder)
        self.lock.begun()

    def finish(self) -> None:
        """Marks the search as finished: it cannot be resumed any more."""
        self.manifest.model_copy(update={"finished": True}).write(self.folder)

    def context(
        self, finished_trials: Mapping[str, Progress | None], prices: Mapping[str, float] | None = None
    ) -> SearchContext:
        """What the processes of the cluster need. `finished_trials` need not run; each has its last report.

        `prices`: dollars of a worker-hour, by branch.
        """
        return SearchContext(
            experiment=self.experiment,
            search_id=self.search_id,
            folder=self.folder,
            prepared=self.dataset.directory,
            budget=self.budget,
            pad_token_id=self.pad_token_id,
            base=self.base,
            layout=self.layout,
            generation=self.generation,
            rungs=rungs_of(self.experiment, self.budget),
            dollars_per_worker_hour=dict(prices or {}),
            general=self.general,
            finished_trials=dict(finished_trials),
            earlier_trials=self.earlier,
        )


def prepare_search(
    written: ExperimentSpec,
    *,
    resume: str | None = None,
    new: bool = False,
    register: bool = False,
    replace: str | None = None,
    on_message: OnMessage = ignore_message,
) -> PreparedSearch:
    """Opens a new search, or an unfinished one. Raises InputError, or another ValueError, if it cannot run.

    Args:
        resume, new: which search is meant, as for choose_search. Without them an unfinished one whose data files have changed
            since is left behind.
        register: check that the registry can take the best trial, and that it can be verified on this machine.
        replace: a reason to replace an incumbent that cannot be compared, for its version's tags.
        on_message: takes what people should know: the model, the data, and warnings.
    """
    if replace is not None and not (register and replace.strip()):
        raise InputError('--replace: takes a reason, e.g. "it answers in another language", and needs a registration')
    check_not_connected()
    _check_storage(written)
    choice = choose_search(written, resume=resume, new=new, on_message=on_message)
    try:
        return _open(written, choice, register, replace, on_message)
    except BaseException:
        choice.lock.close()
        raise


def _open(
    written: ExperimentSpec, choice: ChosenSearch, register: bool, replace: str | None, on_message: OnMessage
) -> PreparedSearch:
    opened = time.monotonic()
    uri = tracking_uri(written)
    check_tracking(uri)
    probes = load_probes(Path(written.registry.probes)) if written.registry.probes else ()
    _check_packages(written, on_message)
    for remark in (*experiment_warnings(written), *dtype_warnings(written)):
        on_message(remark)
    on_message(f"base model {written.model.path}")
    directory = resolve_model(written.model)
    check_base(written.model)
    experiment = written.model_copy(update={"model": _on_every_node(written.model, directory)})
    config = config_of(directory)
    experiment, rates = settle_learning_rates(experiment, count_parameters(config))
    for rate in rates:
        on_message(rate)
    trained = describe_branch_training(experiment, config)
    for branch, sentence in trained.items():
        on_message(f"{branch}: {sentence}")
    tokenizer = load_tokenizer(directory)
    format_spec = format_spec_in(directory, experiment.format_spec)
    chat_format = load_chat_format(tokenizer, format_spec)
    for remark in date_remarks(chat_format):
        on_message(remark)
    dataset, begun = _data_of(choice, experiment, directory, on_message)
    on_message(dataset.summary())
    if begun is not None and begun.attention is not None:  # what the search began with, whatever this machine has
        model = experiment.model.model_copy(update={"attention": begun.attention})
        experiment = experiment.model_copy(update={"model": model})
    abilities = abilities_for(experiment, config)
    generation = plan_generation(experiment, dataset, chat_format, config, probes, on_message)
    if dataset.verdict_note:
        on_message(dataset.verdict_note)
    settings = settle(experiment, config, abilities, has_trees=any(store.has_forks for store in dataset.stores))
    experiment = settings.experiment
    on_message(settings.sentence)
    if problem := too_few_held_out(dataset, experiment.data):
        on_message(problem)
    budget = experiment.trial.budget.in_target_tokens(dataset.train.total_targets)
    check_rungs(experiment, budget)
    start = start_from(experiment, begun, digest=dataset.digest, budget=budget)
    for sentence in start.sentences:
        on_message(sentence)
    unused = check_vocabulary(config, tokenizer, chat_format, dataset, name=written.model.path)
    if unused:
        on_message(f"Warning: {unused}")
    texts = _general_texts(written, begun)
    general = encode_passages(
        texts, tokenizer, max_tokens=min(experiment.data.max_tokens, dataset.context or sys.maxsize)
    )
    in_text = dict.fromkeys(token_ids_of(general), "is in the general text (evaluation.general)")
    check_token_ids(rows_of_config(config), in_text, tokenizer, name=written.model.path)
    if register:
        check_model_name(uri, experiment.registered_model)
        check_verifiable(experiment)
    base = BaseReference(model=experiment.model, digest=model_digest(directory), chat_format=format_spec)
    manifest = begun or _new_manifest(written, dataset, budget, experiment.model.attention, start.searches)
    if begun is None:
        choice.lock.take(written.folder / manifest.search_id, new=True)
    return PreparedSearch(
        manifest=manifest,
        lock=choice.lock,
        experiment=experiment,
        dataset=dataset,
        budget=budget,
        base=base,
        pad_token_id=chat_format.pad_token_id,
        decode=verbatim(tokenizer),
        probes=probes,
        uri=uri,
        resumed=begun is not None,
        register=register,
        replace=replace,
        trained=trained,
        format_facts=format_facts(format_spec, chat_format),
        settings=settings.sentence,
        layout=settings.layout,
        general_texts=texts,
        general=general,
        opened=opened,
        generation=generation,
        gate_generation=plan_gate(experiment, probes),
        earlier=start.trials,
    )


def _general_texts(written: ExperimentSpec, manifest: SearchManifest | None) -> tuple[str, ...]:
    """Returns the general text; that with which the search began, even if the file has changed since."""
    folder = None if manifest is None else written.folder / manifest.search_id
    if folder is not None and folder.has_file(GENERAL):
        return tuple(json.loads(folder.read_text(GENERAL)))
    return load_general_text(written.evaluation.general)


def _check_packages(experiment: ExperimentSpec, on_message: OnMessage) -> None:
    """Checks the packages only: a head without a GPU has them too, if it has the workers' environment."""
    trials = (trial for branch in branches_of(experiment).values() for trial in corner_trials(experiment, branch))
    ends = {
        attention_backend.missing_package(experiment.model.attention): "the first trial ends the search",
        quantization_backend.missing_package(trials): "each trial that needs it fails",
    }
    for problem, end in ends.items():
        if problem and workers_are_here():
            raise InputError(problem)
        if problem:
            on_message(f"Warning: {problem}. If the workers lack it too, {end}")


def _check_storage(written: ExperimentSpec) -> None:
    if JOBS in Path(written.folder.uri).parts:
        raise InputError(
            f"storage.path={written.storage.path}: {written.folder} is where this job was unpacked, and goes with it; name a"
            f" folder that all nodes see or a bucket, e.g. --set storage.path=s3://BUCKET/runs, or set {STORAGE} on the head"
        )
    try:
        written.folder.check_access()
    except OSError as error:
        raise InputError(
            f"storage.path={written.storage.path}: {written.folder} cannot be written: {error.strerror or error};"
            f" {written.folder.access_advice}"
        ) from None


def _on_every_node(model: ModelSpec, directory: Path) -> ModelSpec:
    """Workers run in other folders: a local directory is named by its whole path, a hub id is a name everywhere."""
    is_local = model.path not in BUNDLED_MODELS and Path(model.path).expanduser().is_dir()
    return model.model_copy(update={"path": str(directory)}) if is_local else model


def _data_of(
    choice: ChosenSearch, experiment: ExperimentSpec, model_path: Path, on_message: OnMessage
) -> tuple[PreparedDataset, SearchManifest | None]:
    """The data of the search, and its manifest if it goes on: with other data than it began with, a new search begins."""
    manifest = choice.manifest
    if manifest is not None and choice.keeps_data:
        dataset = _prepared_for(manifest)
    else:
        dataset = prepare_experiment(experiment, model_path, context=context_of(model_path))
    if manifest is None:
        return dataset, None
    search_id = manifest.search_id
    if str(dataset.directory) != manifest.prepared:
        on_message(
            f"search {search_id} is unfinished, but its data has changed since (from {folder_at(manifest.prepared).name[:12]}"
            f" to {dataset.digest[:12]}): a new search begins. --resume {search_id} goes on with the data of then"
        )
        choice.lock.leave()
        return dataset, None
    far = how_far(experiment.folder / search_id, manifest)
    on_message(f"search {search_id} goes on: {far}. --new begins another one")
    return dataset, manifest


def _prepared_for(manifest: SearchManifest) -> PreparedDataset:
    """The data that the search began with, even if the files it was made of have changed since."""
    directory = folder_at(manifest.prepared)
    if not directory.is_complete():
        raise InputError(
            f"--resume {manifest.search_id}: its prepared data {directory} is gone; begin another search with --new"
        )
    return PreparedDataset.open(directory).verify()


def _new_manifest(
    written: ExperimentSpec, dataset: PreparedDataset, budget: int, attention: str, started_from: tuple[str, ...]
) -> SearchManifest:
    return SearchManifest(
        search_id=f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:4]}",
        experiment=written,
        created=time.time(),
        prepared=str(dataset.directory),
        budget=budget,
        attention=attention,
        started_from=started_from,
        layout=LAYOUT,
    )
