"""The functions of `import components as turnwise`. Each imports what it needs when it is called.

None of them prints, and none ends the process: errors are raised, and those for users are TurnwiseErrors or ValueErrors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from components.experiment.load_experiment import load_experiment as _load_experiment
from components.experiment.spec import ChatFormatSpec, ExperimentSpec
from components.records.histories import Subscriber
from components.records.on_message import OnMessage, ignore_message
from components.records.stop_flag import StopRequest
from components.search.find import NEWEST

if TYPE_CHECKING:
    import pandas as pd

    from components.inference.model import Model
    from components.inference.score import Score
    from components.planning.data_preview import MaskPreview
    from components.planning.experiment_plan import ExperimentPlan
    from components.registry.checked_export import Export
    from components.search.decide_outcome import SearchResult
    from components.search.handle import RemoteSearch, Search
    from components.statistics.paired_bootstrap import Comparison


def load_experiment(path: str | Path, overrides: Mapping[str, Any] | Sequence[str] = ()) -> ExperimentSpec:
    """Reads an experiment from a YAML file, and checks it with its whole search space.

    Args:
        path: the file.
        overrides: dotted path -> value, e.g. {"search.trials": 16}; or strings, e.g. ["search.trials=16"].

    Raises:
        ExperimentError: with every problem of the file and the overrides.
    """
    return _load_experiment(path, overrides)


def preview(experiment: ExperimentSpec, records: int | None = 3) -> MaskPreview:
    """What a search of the experiment will train on, token by token. Shows itself in a terminal and in a notebook.

    The data is prepared as the search prepares it, and kept for the search.

    Args:
        records: how many conversations; None for all.

    Raises:
        ValueError: the model or the data cannot be used.
    """
    from components.planning.data_preview import preview_experiment

    return preview_experiment(experiment, records)


def plan(
    experiment: ExperimentSpec,
    *,
    nodes: str | Path | None = None,
    calibrate: bool = False,
    on_message: OnMessage = ignore_message,
) -> ExperimentPlan:
    """What a search of the experiment will need: memory in bytes, GPU-hours and dollars. No weights are loaded.

    Args:
        nodes: a YAML file with machines, speeds and prices; by default a packaged table.
        calibrate: take a few real steps on this machine, and use their speed.
        on_message: what is being done.

    Raises:
        ValueError: the model, the data or the table cannot be used.
    """
    from components.planning.instance_types import load_node_table
    from components.planning.planner import plan

    table = load_node_table(None if nodes is None else Path(nodes))
    return plan(experiment, table, calibrate=calibrate, on_message=on_message)


def run(
    experiment: ExperimentSpec,
    *,
    register: bool = True,
    resume: str | None = None,
    replace: str | None = None,
    new: bool = False,
    on_event: Subscriber | None = None,
    on_message: OnMessage = ignore_message,
    stop: StopRequest | None = None,
) -> SearchResult:
    """Runs a search and returns its result. Blocks; `start` does not. May be called from any thread.

    An unfinished search of the same experiment over the same data goes on; `on_message` gets its id.

    Args:
        register: send the best trial through the registry's gate.
        replace: a reason to replace an incumbent that cannot be compared with; one that can must be beaten all the same.
        resume: the id of an unfinished search of this experiment, or NEWEST. It keeps the data that it began with.
        new: begin a new search, whatever is unfinished.
        on_event: is called with every event of the trials, once the journal has it. It must not block for long.
        on_message: what is being done, and warnings.
        stop: a request to it, from any thread, ends the search early; it can be resumed.

    Raises:
        InputError: or another ValueError, for what can be known before the search starts.
        InsufficientCapacityError: the cluster can never hold a trial.
        TrackingError: MLflow is away at the start.
        StorageError: the storage is away.
    """
    from components.search.prepare_search import prepare_search
    from components.search.run import driver_session

    prepared = prepare_search(
        experiment, resume=resume, new=new, register=register, replace=replace, on_message=on_message
    )
    with driver_session(prepared, on_message=on_message, stop=stop) as search:
        return search.conclude(search.run_trials(on_event))


def start(
    experiment: ExperimentSpec,
    *,
    register: bool = True,
    resume: str | None = None,
    replace: str | None = None,
    new: bool = False,
    on_event: Subscriber | None = None,
    on_message: OnMessage = ignore_message,
) -> Search:
    """Opens a search, then runs it in a thread and returns a handle: trials, stop, extend, clone, cancel, result.

    `Search.result` waits for the end. `results` finds no search before it has begun, and `load_model` no champion before the
    end: call `search.result()` first.

    Opening checks everything that can be known before, and prepares the data. Arguments and errors are those of `run`; errors
    of opening are raised here, the others by `Search.result`.
    """
    from components.search.handle import Search
    from components.search.prepare_search import prepare_search

    prepared = prepare_search(
        experiment, resume=resume, new=new, register=register, replace=replace, on_message=on_message
    )
    return Search(prepared, on_event=on_event, on_message=on_message)


def open_search(
    experiment: ExperimentSpec | str | Path,
    search_id: str = NEWEST,
    *,
    resume: bool = False,
    register: bool = True,
    on_event: Subscriber | None = None,
    on_message: OnMessage = ignore_message,
) -> Search | RemoteSearch:
    """A handle of a search that was started before.

    Args:
        experiment: the experiment, or its folder, e.g. runs/quickstart.
        search_id: by default the newest search; with `resume`, the newest that can go on.
        resume: go on with an interrupted search in a thread of this process, as `start` does. Otherwise the handle only
            looks at the search and sends it commands, wherever it runs.
        register, on_event, on_message: of a search that is resumed, as for `start`.

    Raises:
        InputError: there is no such search, or it cannot be resumed.
    """
    from components.search.find import find_in_folder, find_search
    from components.search.handle import RemoteSearch

    if not isinstance(experiment, ExperimentSpec):
        manifest = find_in_folder(experiment, search_id, unfinished=resume)
        experiment, search_id = manifest.experiment, manifest.search_id
    if resume:
        return start(experiment, register=register, resume=search_id, on_event=on_event, on_message=on_message)
    return RemoteSearch(experiment, find_search(experiment, search_id))


def results(searches: ExperimentSpec | str | Path | Sequence[ExperimentSpec | str | Path]) -> pd.DataFrame:
    """A row for each trial: experiment, search, trial, branch, the varied values, losses, budget spent, state, run id.

    Args:
        searches: an experiment, the folder of an experiment or of one search, or a list of these.

    Raises:
        InputError: there is no search in one of them.
    """
    from components.search.results import results

    return results(searches)


def load_model(name: str, *, chat_format: ChatFormatSpec | str = "auto", tracking: str | None = None) -> Model:
    """Loads a model that replies, streams and is scored.

    Args:
        name: models:/NAME@ALIAS or models:/NAME/VERSION; a checkpoint's or package's directory or URI; a base model's
            directory, hub id or bundled name.
        chat_format: of a base model; trained ones have their own.
        tracking: URI of the registry; by default MLFLOW_TRACKING_URI, else mlflow.db in the working directory.

    Raises:
        ValueError: there is no such model, or it cannot be loaded.
    """
    from components.inference.model import Model
    from components.registry.load_by_name import load_by_name

    return Model(name=name, loaded=load_by_name(name, chat_format=chat_format, tracking=tracking), tracking=tracking)


def score(model: Model, data: str | Sequence[str], *, max_tokens: int = 1024) -> Score:
    """The loss of a model on conversations, in nats per target token. `Model.score` has more arguments.

    Args:
        data: a file, files, a glob or hf:DATASET[:SPLIT][@REVISION].
        max_tokens: longer conversations lose their last turns.

    Raises:
        ValueError: data that cannot be read or scored.
    """
    return model.score(data, max_tokens=max_tokens)


def compare(
    model: Model, other: Model, data: str | Sequence[str], *, confidence: float = 0.95, max_tokens: int = 1024
) -> Comparison:
    """Whether a model is better than another one on the same conversations, by a paired bootstrap.

    In nats per target token, or in bits per byte where their tokens differ; the result's `unit` says which.

    Args:
        data, max_tokens: as for `score`.
        confidence: of the interval of the difference.

    Raises:
        ValueError: data that cannot be read, or of which no conversation can be scored by both.
    """
    return model.compare(other, data, confidence=confidence, max_tokens=max_tokens)


def export(
    model: Model | str,
    target: str | Path,
    *,
    layout: Literal["glm", "chatglm", "merged", "adapter"] | None = None,
    dtype: Literal["fp16", "bf16", "fp32"] | None = None,
    base: str | None = None,
    base_name: str | None = None,
    data: str | Sequence[str] | None = None,
) -> Export:
    """Writes a model as others load it. Merged files are checked against the adapter beside its base.

    Args:
        model: a loaded model or a name; loaded or not, its files are read again.
        target: a new or empty directory.
        layout: merged (glm is its name for ChatGLM3), chatglm (ChatGLM3's own) or adapter; by default glm or merged.
        dtype: of the weights; by default that of the base.
        base: the model that an adapter directory of peft's belongs to.
        base_name: of an adapter's base, for the machine that will load it; by default the hub's name, else a directory.
        data: conversations on which the loss before and after merging is measured.

    Raises:
        ValueError: the model cannot be exported so, or the merged files answer something else.
    """
    from components.registry.checked_export import ExportRequest, export_model

    name, tracking = (model, None) if isinstance(model, str) else (model.name, model.tracking)
    request = ExportRequest(
        source=name,
        target=Path(target),
        layout=layout,
        dtype=dtype,
        base=base,
        base_name=base_name,
        data=data,
        tracking=tracking,
    )
    return export_model(request)
