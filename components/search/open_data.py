"""Prepares the data of every base model, and decides by it whether an unfinished search goes on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from components.cluster.preparation.cluster_pool import on_cluster
from components.data.prepare import PreparedDataset, prepare_experiment
from components.data.same_words import shared_sources
from components.errors import InputError
from components.experiment.spec import ExperimentSpec
from components.models.base.context import context_of
from components.records.manifest import ManifestBase, SearchManifest
from components.records.on_message import OnMessage
from components.search.choose_search import ChosenSearch, how_far
from components.storage.open_folder import folder_at

View = tuple[ExperimentSpec, Path]  # of the branches of one base model, and where that is


def open_data(
    written: ExperimentSpec, choice: ChosenSearch, views: Sequence[View], on_message: OnMessage
) -> tuple[list[PreparedDataset], SearchManifest | None]:
    """Returns the data of each view, and the manifest of the search if it goes on: with other data a new search begins.

    Raises InputError if the data cannot be used, or if that of a search that goes on is gone.
    """
    manifest = choice.manifest
    kept = [] if manifest is None else [manifest.base_of(next(iter(view.search.space))) for view, _ in views]
    if manifest is not None and choice.keeps_data:
        datasets = [_prepared_for(manifest, base) for base in kept]
    else:
        datasets = _prepare(views, on_message)
    if manifest is None:
        return datasets, None
    search_id = manifest.search_id
    for dataset, base in zip(datasets, kept, strict=True):
        if str(dataset.directory) != base.prepared:
            on_message(
                f"search {search_id} is unfinished, but its data has changed since (from"
                f" {folder_at(base.prepared).name[:12]} to {dataset.digest[:12]}): a new search begins. --resume {search_id}"
                " goes on with the data of then"
            )
            choice.lock.leave()
            return datasets, None
    far = how_far(written.folder / search_id, manifest)
    on_message(f"search {search_id} goes on: {far}. --new begins another one")
    return datasets, manifest


def _prepare(views: Sequence[View], on_message: OnMessage) -> list[PreparedDataset]:
    """Where there are several base models, without the conversations that are not the same words for every one."""
    cluster = on_cluster(on_message)
    datasets = [
        prepare_experiment(view, directory, context=context_of(directory), cluster=cluster) for view, directory in views
    ]
    shared = shared_sources(datasets)
    if shared is None:
        return datasets
    if not shared:
        raise InputError("model: there is no conversation that every base model of the search can use whole")
    return [
        prepare_experiment(view, directory, context=context_of(directory), shared=shared, cluster=cluster)
        for view, directory in views
    ]


def _prepared_for(manifest: SearchManifest, base: ManifestBase) -> PreparedDataset:
    """The data that the search began with, even if the files it was made of have changed since."""
    directory = folder_at(base.prepared)
    if not directory.is_complete():
        raise InputError(
            f"--resume {manifest.search_id}: its prepared data {directory} is gone; begin another search with --new"
        )
    return PreparedDataset.open(directory).verify()
