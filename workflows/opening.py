"""Everything that can be known to be wrong before a search starts is found here, and what is left is an PreparedSearch."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from components.cluster.ray_session import workers_are_here
from components.cluster.scheduling.warnings import check_rungs
from components.cluster.slots.context import SearchContext
from components.conversations.chat_formats import load_chat_format
from components.conversations.preview.mask_preview import Decode, verbatim
from components.conversations.tokenizers.load import load_tokenizer
from components.data.prepare import PreparedDataset, prepare_experiment
from components.experiment.base_variants import dtype_warnings
from components.experiment.space import num_trials
from components.experiment.spec import STORAGE, ExperimentSpec, ModelSpec
from components.experiment.warnings import experiment_warnings
from components.models.attention_backend import missing_package
from components.models.base.bundled import FETCHED
from components.models.base.load import check_base, config_of, resolve_model
from components.models.base.reference import BaseReference
from components.models.digest import model_digest
from components.models.trained_by_branch import trained_by_branch
from components.records.events import Progress
from components.records.manifest import LAYOUT, SearchManifest, searches_in
from components.registry.probes import Probe, load_probes
from components.registry.result import too_few_held_out
from components.storage.base import Folder, Lock
from components.storage.open import folder_at
from components.tracking.mlflow_client import check_tracking, tracking_uri
from components.training.check_vocabulary import check_vocabulary
from workflows.cli import NEWEST

JOBS = "working_dir_files"  # Ray's name for what it makes of --working-dir


@dataclass(frozen=True, kw_only=True)
class PreparedSearch:
    """A search whose model, data and tracking are at hand. `resumed`: it had been started before.

    `manifest` has the experiment as it was written, `experiment` has it with a model path that holds on every node. `lock`
    is held as long as this lives. `trained`: by branch, what its trials train or adapt, for people.
    """

    manifest: SearchManifest
    lock: Lock
    experiment: ExperimentSpec
    dataset: PreparedDataset
    base: BaseReference
    pad_token_id: int
    decode: Decode
    probes: tuple[Probe, ...]
    uri: str
    resumed: bool
    trained: Mapping[str, str]

    @property
    def search_id(self) -> str:
        return self.manifest.search_id

    @property
    def folder(self) -> Folder:
        return self.experiment.folder / self.search_id

    @property
    def budget(self) -> int:
        """Of every trial, in target tokens."""
        return self.experiment.trial.budget.in_target_tokens(self.dataset.train.total_targets)

    def begin(self) -> None:
        """From here on there is something to resume."""
        self.manifest.write(self.folder)

    def context(self, ended: Mapping[str, Progress | None]) -> SearchContext:
        """What the cluster is told. `ended`: trials that need not run, with their last report."""
        return SearchContext(
            experiment=self.experiment,
            search_id=self.search_id,
            folder=self.folder,
            prepared=self.dataset.directory,
            pad_token_id=self.pad_token_id,
            base=self.base,
            ended=dict(ended),
        )


def open_search(written: ExperimentSpec, console: Console, resume: str | None = None) -> PreparedSearch:
    """A new search, or the interrupted one that `resume` (an id, or NEWEST) means. Raises ValueError if it cannot be."""
    _check_storage(written)
    manifest = None if resume is None else _interrupted(written, resume)
    uri = tracking_uri(written)
    check_tracking(uri)
    probes = load_probes(Path(written.registry.probes)) if written.registry.probes else ()
    _check_attention(written.model, console)
    for remark in (*experiment_warnings(written), *dtype_warnings(written)):
        console.print(remark, soft_wrap=True)
    console.print(f"base model {written.model.path}")
    directory = resolve_model(written.model)
    check_base(written.model)
    experiment = written.model_copy(update={"model": _on_every_node(written.model, directory)})
    config = config_of(directory)
    trained = trained_by_branch(experiment, config)
    for branch, sentence in trained.items():
        console.print(f"{branch}: {sentence}", soft_wrap=True)
    tokenizer = load_tokenizer(directory)
    chat_format = load_chat_format(tokenizer, experiment.chat_format)
    dataset = _prepared_for(manifest) if manifest is not None else prepare_experiment(experiment, directory)
    console.print(dataset.summary())
    if problem := too_few_held_out(dataset, experiment.data):
        console.print(problem)
    check_rungs(experiment, experiment.trial.budget.in_target_tokens(dataset.train.total_targets))
    unused = check_vocabulary(config, tokenizer, chat_format, dataset, name=written.model.path)
    if unused:
        console.print(f"Warning: {unused}", soft_wrap=True)
    if manifest is None:
        manifest = _new_manifest(written, dataset)
    return PreparedSearch(
        manifest=manifest,
        lock=lock_search(experiment.folder / manifest.search_id),
        experiment=experiment,
        dataset=dataset,
        base=BaseReference(model=experiment.model, digest=model_digest(directory), chat_format=experiment.chat_format),
        pad_token_id=chat_format.pad_token_id,
        decode=verbatim(tokenizer),
        probes=probes,
        uri=uri,
        resumed=resume is not None,
        trained=trained,
    )


def _check_attention(model: ModelSpec, console: Console) -> None:
    """Of the package only: a head without a GPU has it nevertheless, if it has the workers' environment."""
    missing = missing_package(model.attention)
    if missing and workers_are_here():
        raise ValueError(missing)
    if missing:
        console.print(
            f"Warning: {missing}. If the workers lack it too, the first trial ends the search", soft_wrap=True
        )


def _check_storage(written: ExperimentSpec) -> None:
    if JOBS in Path(written.folder.uri).parts:
        raise ValueError(
            f"storage.path={written.storage.path}: {written.folder} is where this job was unpacked, and goes with it; name a"
            f" folder that all nodes see or a bucket, e.g. --set storage.path=s3://BUCKET/runs, or set {STORAGE} on the head"
        )
    try:
        written.folder.check_access()
    except OSError as error:
        raise ValueError(
            f"storage.path={written.storage.path}: {written.folder} cannot be written: {error.strerror or error};"
            f" {written.folder.access_advice}"
        ) from None


def lock_search(folder: Folder) -> Lock:
    """Two drivers of one search would undo each other. Raises ValueError if another one is at it."""
    try:
        return folder.lock("lock")
    except BlockingIOError:
        raise ValueError(
            f"--resume {folder.name}: that search is running; wait for it, or name another one by its id"
        ) from None


def _on_every_node(model: ModelSpec, directory: Path) -> ModelSpec:
    """Workers run in other folders: a local directory is named by its whole path, a hub id is a name everywhere."""
    is_local = model.path not in FETCHED and Path(model.path).expanduser().is_dir()
    return model.model_copy(update={"path": str(directory)}) if is_local else model


def _prepared_for(manifest: SearchManifest) -> PreparedDataset:
    """What the search began with, whatever has become of the files it was made of."""
    directory = folder_at(manifest.prepared)
    if not directory.is_complete():
        raise ValueError(
            f"--resume {manifest.search_id}: its prepared data {directory} is gone; start anew without --resume"
        )
    return PreparedDataset.open(directory).checked()


def _new_manifest(written: ExperimentSpec, dataset: PreparedDataset) -> SearchManifest:
    return SearchManifest(
        search_id=f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:4]}",
        experiment=written,
        created=time.time(),
        prepared=str(dataset.directory),
        budget=written.trial.budget.in_target_tokens(dataset.train.total_targets),
        layout=LAYOUT,
    )


def _interrupted(written: ExperimentSpec, resume: str) -> SearchManifest:
    """The search to go on with, which must be the same experiment; where MLflow stands may have changed."""
    unfinished = [manifest for manifest in searches_in(written.folder) if not manifest.finished]
    wanted = unfinished[-1:] if resume == NEWEST else [found for found in unfinished if found.search_id == resume]
    if not wanted:
        known = ", ".join(manifest.search_id for manifest in unfinished) or "none"
        raise ValueError(f"--resume: no such interrupted search in {written.folder} (interrupted: {known})")
    manifest = wanted[0]
    if manifest.layout != LAYOUT:
        raise ValueError(
            f"--resume {manifest.search_id}: it was begun by another version of Turnwise, which kept its state otherwise; go"
            " on with that version, or start anew without --resume (its trials and checkpoints stay)"
        )
    differences = _differences(manifest.experiment, written)
    if differences:
        raise ValueError(
            f"--resume {manifest.search_id}: it was started with another experiment; set these back, or start anew"
            " without --resume\n" + "\n".join(f"  {difference}" for difference in differences)
        )
    return manifest


def _differences(began: ExperimentSpec, now: ExperimentSpec) -> list[str]:
    """`path: was X, is Y` for each leaf in which they differ, tracking aside; defaults of `trials` count as written."""
    before, after = (
        {**_leaves(spec.model_dump(mode="json", exclude={"tracking"})), "search.trials": num_trials(spec)}
        for spec in (began, now)
    )
    paths = sorted(before.keys() | after.keys())
    return [
        f"{path}: was {before.get(path)!r}, is {after.get(path)!r}"
        for path in paths
        if before.get(path) != after.get(path)
    ]


def _leaves(tree: object, path: str = "") -> dict[str, object]:
    if not isinstance(tree, dict):
        return {path: tree}
    return {
        leaf: value
        for key, child in tree.items()
        for leaf, value in _leaves(child, f"{path}.{key}" if path else key).items()
    }
