"""Opens a search: finds all that can be known to be wrong before it starts, and prepares model, data and tracking."""

from __future__ import annotations

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
from components.data.prepare import PreparedDataset
from components.errors import InputError
from components.experiment.base_precisions import dtype_warnings
from components.experiment.branch_models import models_of
from components.experiment.experiment_warnings import experiment_warnings
from components.experiment.space import branches_of, corner_trials
from components.experiment.spec import STORAGE, ExperimentSpec
from components.models import attention_backend, quantization_backend
from components.planning.verification_memory import check_verifiable
from components.records.events import Progress
from components.records.manifest import LAYOUT, SearchManifest
from components.records.on_message import OnMessage, ignore_message
from components.registry.probes import Probe, load_probes
from components.registry.result import too_few_held_out
from components.search.find import find_interrupted
from components.search.open_base import OpenedBases, open_bases
from components.storage.folder import Folder, Lock
from components.tracking.mlflow_access import check_model_name, check_tracking, tracking_uri

JOBS = "working_dir_files"  # Ray's name for what it makes of --working-dir


@dataclass(frozen=True, kw_only=True)
class PreparedSearch:
    """A search whose model, data and tracking are ready.

    `manifest` has the experiment as it was written; `experiment` has it with model paths that hold on every node, and
    without any `auto` that the models decide.
    `opened` has the base models, the data of each and the budget of every trial. `format_facts` are tags about the chat
    format. `register`: the best trial will be sent to the registry, `replace`: for which reason it may replace an incumbent
    that cannot be compared. `began` is when opening began, by time.monotonic(). `lock` must be closed in the end.
    """

    manifest: SearchManifest
    lock: Lock
    experiment: ExperimentSpec
    opened: OpenedBases
    decode: Decode
    probes: tuple[Probe, ...]
    uri: str
    resumed: bool
    register: bool
    replace: str | None
    format_facts: Mapping[str, str]
    began: float

    @property
    def dataset(self) -> PreparedDataset:
        """The data of the default base."""
        return self.opened.default.dataset

    @property
    def budget(self) -> int:
        return self.opened.budget

    @property
    def search_id(self) -> str:
        return self.manifest.search_id

    @property
    def folder(self) -> Folder:
        return self.experiment.folder / self.search_id

    def begin(self) -> None:
        """Writes the manifest: from here on the search can be found and resumed."""
        self.manifest.write(self.folder)

    def finish(self) -> None:
        """Marks the search as finished: it cannot be resumed any more."""
        self.manifest.model_copy(update={"finished": True}).write(self.folder)

    def context(self, finished_trials: Mapping[str, Progress | None]) -> SearchContext:
        """What the processes of the cluster need. `finished_trials` need not run; each has its last report."""
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
            finished_trials=dict(finished_trials),
        )


def prepare_search(
    written: ExperimentSpec,
    *,
    resume: str | None = None,
    register: bool = False,
    replace: str | None = None,
    on_message: OnMessage = ignore_message,
) -> PreparedSearch:
    """Opens a new search, or an interrupted one. Raises InputError, or another ValueError, if it cannot run.

    Args:
        resume: the id of an interrupted search of this experiment, or NEWEST.
        register: check that the registry can take the best trial, and that it can be verified on this machine.
        replace: a reason to replace an incumbent that cannot be compared, for its version's tags.
        on_message: takes what people should know: the model, the data, and warnings.
    """
    if replace is not None and not (register and replace.strip()):
        raise InputError('--replace: takes a reason, e.g. "it answers in another language", and needs a registration')
    check_not_connected()
    began = time.monotonic()
    _check_storage(written)
    manifest = None if resume is None else find_interrupted(written, resume)
    uri = tracking_uri(written)
    check_tracking(uri)
    probes = load_probes(Path(written.registry.probes)) if written.registry.probes else ()
    _check_packages(written, on_message)
    for remark in (*experiment_warnings(written), *dtype_warnings(written)):
        on_message(remark)
    opened = open_bases(written, manifest, on_message)
    experiment, default = opened.experiment, opened.default
    if problem := too_few_held_out(default.dataset, experiment.data):
        on_message(problem)
    check_rungs(experiment, opened.budget)
    if register:
        check_model_name(uri, experiment.registered_model)
        for base in opened.bases:
            check_verifiable(base.experiment)
    manifest = manifest or _new_manifest(written, opened)
    return PreparedSearch(
        manifest=manifest,
        lock=lock_search(experiment.folder / manifest.search_id),
        experiment=experiment,
        opened=opened,
        decode=verbatim(default.tokenizer),
        probes=probes,
        uri=uri,
        resumed=resume is not None,
        register=register,
        replace=replace,
        format_facts=format_facts(default.format_spec, default.chat_format),
        began=began,
    )


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


def lock_search(folder: Folder) -> Lock:
    """Keeps a second driver out, which would undo this one's work. Raises InputError if another driver has the search."""
    try:
        return folder.lock("lock")
    except BlockingIOError:
        raise InputError(
            f"--resume {folder.name}: that search is running; wait for it, or name another one by its id"
        ) from None


def _new_manifest(written: ExperimentSpec, opened: OpenedBases) -> SearchManifest:
    default = opened.default.in_manifest()
    return SearchManifest(
        search_id=f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:4]}",
        experiment=written,
        created=time.time(),
        prepared=default.prepared,
        budget=opened.budget,
        attention=default.attention,
        other_bases=opened.others_in_manifest(),
        layout=LAYOUT,
    )
