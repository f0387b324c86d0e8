"""A search's part of MLflow beside the points of its trials: what it trains on, its reports, and how it has ended."""

from __future__ import annotations

from components.conversations.preview.mask_preview import preview_html
from components.data.prepare import PreparedDataset
from components.data.preview_records import stored_records, totals_of
from components.errors import InputError, TrackingError
from components.records.on_message import OnMessage
from components.records.tracked_search import MASK_PREVIEW, TrackedData, TrackedSearch
from components.search.prepare_search import PreparedSearch
from components.storage.folder import Folder
from components.storage.retry import StorageError
from components.storage.uri import without_secrets
from components.tracking.mlflow_access import MLFLOW_ERRORS, open_store, reason_of
from components.tracking.mlflow_runs import MAX_CHARACTERS, SETTINGS_TAG, TRAINED_TAG, SearchRuns

AWAY = "away"  # in place of a link
MLFLOW_SECONDS, SECONDS_IF_NOT_REQUIRED = 60.0, 10.0
PREVIEWED = 20  # conversations on the page that shows the mask


def keep_tracked(prepared: PreparedSearch, facts: dict[str, str]) -> TrackedSearch:
    """Writes what MLflow is to hold into the search's folder, with a page that shows the mask; returns it."""
    experiment, dataset, opened = prepared.experiment, prepared.dataset, prepared.opened
    tags = {f"{TRAINED_TAG}.{branch}": text[:MAX_CHARACTERS] for branch, text in opened.trained.items()}
    tags[SETTINGS_TAG] = opened.settings[:MAX_CHARACTERS]
    data = tuple(
        TrackedData(
            name=f"{experiment.name}-base-{number}" if number > 1 else experiment.name,
            source=str(experiment.data.train),
            digests=_digests(base.dataset),
            counts=dict(base.dataset.counts),
        )
        for number, base in enumerate(opened.bases, start=1)
    )
    tracked = TrackedSearch(
        experiment=experiment, metric=prepared.metric, facts={**facts, **tags, **prepared.format_facts}, data=data
    )
    records = stored_records(dataset.train, PREVIEWED)
    title = f"{experiment.name}: what is trained on"
    tracked.write(prepared.folder, preview_html(records, prepared.decode, title, totals_of(dataset)))
    return tracked


def open_runs(tracked: TrackedSearch, uri: str, search_id: str) -> SearchRuns:
    """The search's runs at `uri`, which are made if they are not there. Raises what MLflow raises."""
    return SearchRuns(open_store(uri), uri, tracked.experiment, search_id, tracked.facts, metric=tracked.metric)


class TrackedRuns:
    """The MLflow runs of a search that is being run. `parent_id` is its own run, "" while MLflow has never answered.

    `patience_seconds`: how long the end waits for MLflow to take something of what it has not taken yet.
    """

    def __init__(self, prepared: PreparedSearch, facts: dict[str, str], on_message: OnMessage) -> None:
        self._prepared, self._on_message = prepared, on_message
        self._kept = keep_tracked(prepared, facts)
        self._has_inputs, self.parent_id = False, ""
        self._required = prepared.experiment.tracking.required
        self.patience_seconds = MLFLOW_SECONDS if self._required else SECONDS_IF_NOT_REQUIRED

    def begin(self) -> str:
        """Returns where the search can be seen. Raises TrackingError if MLflow is away, unless it may be."""
        try:
            return self.open().link
        except StorageError:
            raise  # it is an OSError, as the errors of MLflow's network are
        except MLFLOW_ERRORS as error:
            if self._required:
                raise TrackingError(without_secrets(str(error))) from None
            self._on_message(f"The search begins without MLflow ({reason_of(error)}); its journal has everything")
            return AWAY
        except ImportError as error:  # MLflow imports what an artifact store needs, e.g. boto3 for S3, when it is used
            raise InputError(
                f"tracking.uri={without_secrets(self._prepared.uri)}: MLflow keeps its artifacts where a package is needed:"
                f" {error}; install it"
            ) from None

    def open(self) -> SearchRuns:
        """Opens the runs; after an error they have to be opened again. Raises what MLflow raises."""
        runs = open_runs(self._kept, self._prepared.uri, self._prepared.search_id)
        if not self._has_inputs:
            log_inputs(runs, self._kept, self._prepared.folder)
            self._has_inputs = True
        self.parent_id = runs.parent_id
        return runs


def log_inputs(runs: SearchRuns, tracked: TrackedSearch, folder: Folder) -> None:
    """Logs what the search trains on: the data sets, and the page that shows the mask."""
    for data in tracked.data:
        runs.log_data(data.name, data.source, data.digests, data.counts)
    runs.log_text(None, folder.read_text(MASK_PREVIEW), MASK_PREVIEW)


def _digests(dataset: PreparedDataset) -> dict[str, str]:
    digests = {"train": dataset.train_digest, "eval": dataset.eval_digest}
    return digests if dataset.verdict_digest is None else {**digests, "verdict": dataset.verdict_digest}
