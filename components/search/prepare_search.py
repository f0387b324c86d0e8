"""Opens a search: finds all that can be known to be wrong before it starts, and prepares model, data and tracking."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from components.cluster.ray_session import check_not_connected, workers_are_here
from components.cluster.scheduling.search_warnings import check_rungs
from components.cluster.slots.search_context import SearchContext
from components.conversations.format_facts import format_facts
from components.conversations.preview.mask_preview import Decode, verbatim
from components.data.general_text import load_general_text
from components.data.prepare import PreparedDataset
from components.errors import InputError
from components.experiment.base_precisions import dtype_warnings
from components.experiment.branch_models import models_of
from components.experiment.experiment_warnings import experiment_warnings
from components.experiment.report_marks import rungs_of
from components.experiment.space import branches_of, corner_trials
from components.experiment.spec import STORAGE, ExperimentSpec, MetricSpec
from components.models import attention_backend, quantization_backend
from components.planning.disk_plan import DiskCase, disk_use
from components.planning.verification_memory import check_verifiable
from components.records.disk_use import DiskUse
from components.records.earlier_trials import EarlierTrial
from components.records.manifest import LAYOUT, SearchManifest
from components.records.on_message import OnMessage, ignore_message
from components.registry.probes import Probe, load_probes
from components.registry.result import too_few_held_out
from components.scoring.generation_plan import GenerationPlan
from components.search.choose_search import ChosenSearch, choose_search
from components.search.open_base import OpenedBase, OpenedBases, check_vocabularies, open_bases, with_general
from components.search.plan_generation import plan_gate
from components.search.search_lock import SearchLock
from components.search.start_from import Terms, start_from
from components.storage.folder import Folder
from components.tracking.mlflow_access import check_model_name, check_tracking, tracking_uri
from components.training.budget_units import ranked_by

GENERAL = "general_text.json"  # in the folder of a search
JOBS = "working_dir_files"  # Ray's name for what it makes of --working-dir


@dataclass(frozen=True, kw_only=True)
class PreparedSearch:
    """A search whose model, data and tracking are ready.

    `manifest` has the experiment as it was written; `experiment` has it with model paths that hold on every node, and
    without any `auto` that the models decide. `opened` has the base models, the data of each, the budget of every trial and
    what is asked of the models at evaluations; `gate_generation` is what is asked at the gate. `format_facts` are tags about
    the chat format. `register`: the best trial will be sent to the registry, `replace`: for which reason it may replace an
    incumbent that cannot be compared. `began` is when opening began, by time.monotonic(). `earlier` are trials of other
    searches, for the sampler. `disk` is what it keeps on the storage, on a cluster of any size. `lock` must be closed in the
    end.
    """

    manifest: SearchManifest
    lock: SearchLock
    experiment: ExperimentSpec
    opened: OpenedBases
    decode: Decode
    probes: tuple[Probe, ...]
    uri: str
    resumed: bool
    register: bool
    replace: str | None
    format_facts: Mapping[str, str]
    general_texts: tuple[str, ...]
    began: float
    disk: DiskUse
    gate_generation: GenerationPlan | None = None
    earlier: tuple[EarlierTrial, ...] = ()

    @property
    def dataset(self) -> PreparedDataset:
        """The data of the default base."""
        return self.opened.default.dataset

    @property
    def budget(self) -> int:
        return self.opened.budget

    @property
    def by_bytes(self) -> bool:
        """Whether there are several base models."""
        return self.opened.by_bytes

    @property
    def metric(self) -> MetricSpec:
        """What trials are ranked by."""
        return ranked_by(self.experiment.search.metric, by_bytes=self.by_bytes)

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

    def context(self, prices: Mapping[str, float] | None = None) -> SearchContext:
        """What the processes of the cluster need. `prices`: dollars of a worker-hour, by branch."""
        default = self.opened.default.for_trials()
        return SearchContext(
            experiment=self.experiment,
            search_id=self.search_id,
            folder=self.folder,
            prepared=default.prepared,
            budget=self.budget,
            pad_token_id=default.pad_token_id,
            base=default.reference,
            layout=default.layout,
            other_bases=self.opened.others_for_trials(),
            generation=self.opened.generation,
            rungs=rungs_of(self.experiment, self.budget),
            dollars_per_worker_hour=dict(prices or {}),
            general=default.general,
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
    began = time.monotonic()
    uri = tracking_uri(written)
    if _answers(written, uri, on_message) and register:
        check_model_name(uri, written.registered_model)
    probes = load_probes(Path(written.registry.probes)) if written.registry.probes else ()
    _check_packages(written, on_message)
    for remark in (*experiment_warnings(written), *dtype_warnings(written)):
        on_message(remark)
    opened = open_bases(written, choice, probes, on_message)
    experiment, begun, default = opened.experiment, opened.begun, opened.default
    if problem := too_few_held_out(default.dataset, experiment.data):
        on_message(problem)
    if all_taken := _all_decide_rungs(experiment, len(default.dataset.eval)):
        on_message(all_taken)
    check_rungs(experiment, opened.budget)
    terms = Terms(models=models_of(written), digests=opened.digests, budget=opened.budget, by_bytes=opened.by_bytes)
    start = start_from(experiment, begun, terms)
    for sentence in start.sentences:
        on_message(sentence)
    check_vocabularies(opened, on_message)
    texts = _general_texts(written, begun)
    opened = with_general(opened, texts, on_message)
    if register:
        for base in opened.bases:
            check_verifiable(base.experiment)
    manifest = begun or _new_manifest(written, opened, start.searches)
    if begun is None:
        choice.lock.take(written.folder / manifest.search_id, new=True)
    return PreparedSearch(
        manifest=manifest,
        lock=choice.lock,
        experiment=experiment,
        opened=opened,
        decode=verbatim(default.tokenizer),
        probes=probes,
        uri=uri,
        resumed=begun is not None,
        register=register,
        replace=replace,
        format_facts=format_facts(default.format_spec, default.chat_format),
        general_texts=texts,
        began=began,
        disk=disk_use(experiment, [_disk_case(base) for base in opened.bases], opened.budget),
        gate_generation=plan_gate(experiment, probes),
        earlier=start.trials,
    )


def _answers(written: ExperimentSpec, uri: str, on_message: OnMessage) -> bool:
    """Whether MLflow answers. Raises InputError if it does not, unless the search may begin without it."""
    try:
        check_tracking(uri)
    except InputError as error:
        if written.tracking.required:
            raise InputError(f"{error}; tracking.required: false begins without it") from None
        on_message(
            f"Warning: {error}. The search begins without it, as tracking.required: false says: the journal keeps all"
        )
        return False
    return True


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
        **dict.fromkeys(
            (attention_backend.missing_package(model.attention) for model in models_of(experiment).values()),
            "the first trial ends the search",
        ),
        quantization_backend.missing_package(trials): "each trial that needs it fails",
    }
    for problem, end in ends.items():
        if problem and workers_are_here():
            raise InputError(problem)
        if problem:
            on_message(f"Warning: {problem}. If the workers lack it too, {end}")


def _all_decide_rungs(experiment: ExperimentSpec, held_out: int) -> str | None:
    count = experiment.evaluation.conversations_at_rungs
    if count is None or count < held_out:
        return None
    return f"evaluation.conversations_at_rungs={count}: {held_out} conversations are held out, and all decide the rungs"


def _disk_case(base: OpenedBase) -> DiskCase:
    return DiskCase(experiment=base.experiment, config=base.config, dataset=base.dataset)


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


def _new_manifest(written: ExperimentSpec, opened: OpenedBases, started_from: tuple[str, ...]) -> SearchManifest:
    default = opened.default.in_manifest()
    return SearchManifest(
        search_id=f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:4]}",
        experiment=written,
        created=time.time(),
        prepared=default.prepared,
        budget=opened.budget,
        attention=default.attention,
        precisions=opened.precisions,
        other_bases=opened.others_in_manifest(),
        started_from=started_from,
        layout=LAYOUT,
    )
