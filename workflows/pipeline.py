"""A search from its experiment to its verdict: open, run, register, report. tune.py and train.py hand it theirs."""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial

from rich.console import Console

from components.cluster.capacity.autoscaler import capacity_of_cluster
from components.cluster.capacity.node_types import InsufficientCapacityError, check_capacity
from components.cluster.driver.remote_task import run_on_worker
from components.cluster.ray_session import connected, this_job
from components.cluster.run import can_resume, run_search
from components.cluster.scheduling.warnings import remarks
from components.conversations.preview.mask_preview import preview_html
from components.data.preview_records import stored_records, totals_of
from components.experiment.space import num_trials
from components.experiment.spec import ExperimentSpec
from components.planning.verification_memory import check_provable
from components.records.events import TrialEvent, TrialHistory, num_clones, replay
from components.records.heartbeat import DriverInbox
from components.records.journal import Journal
from components.records.outcome import Outcome
from components.registry.promotion import Place, VerificationError, here, register_best
from components.registry.result import RegistryResult
from components.reports.html_page import search_page
from components.reports.leaderboard import leaderboard, ranked
from components.reports.live_view import LiveView
from components.reports.loss_curves import loss_curves_svg
from components.reports.summary import SearchSummary, trial_summaries
from components.reports.verdict import print_verdict
from components.storage.open import folder_at
from components.storage.retry import StorageError
from components.tracking.journal_sync import JournalSync
from components.tracking.mlflow_client import MLFLOW_ERRORS, check_model_name, open_store, reason_of, without_secrets
from components.tracking.mlflow_runs import MAX_CHARACTERS, TRAINED_TAG, SearchRuns
from components.training.workers import UnfitWorkersError
from workflows.cli import Exit, Terminated, exit_on_error, fail, make_console, python, raise_on_sigterm
from workflows.opening import PreparedSearch, open_search

REPORT = "report.html"
PREVIEWED = 20  # conversations on the page that shows the mask
STATUS: Mapping[Outcome, Exit] = {
    Outcome.CHAMPION: Exit.DONE,
    Outcome.NOT_PROMOTED: Exit.DONE,
    Outcome.FINISHED: Exit.DONE,
    Outcome.NO_TRIAL_SUCCEEDED: Exit.NO_TRIAL_SUCCEEDED,
    Outcome.NOT_PROVEN: Exit.NOT_PROVEN,
    Outcome.TRACKING_AWAY: Exit.TRACKING_AWAY,
    Outcome.INTERRUPTED: Exit.INTERRUPTED,
    Outcome.TERMINATED: Exit.TERMINATED,
}

RESUMABLE = (Exit.NOT_PROVEN, Exit.TRACKING_AWAY, Exit.INTERRUPTED, Exit.TERMINATED)
MLFLOW_SECONDS, MLFLOW_SECONDS_OF_A_STOP = 60.0, 5.0  # how long the end waits for what MLflow has not taken yet


@dataclass(frozen=True, kw_only=True)
class Ending:
    """What a search came to, in a word and in a sentence."""

    outcome: Outcome
    message: str
    registry: RegistryResult | None = None


@dataclass(frozen=True, kw_only=True)
class Course:
    """How the trials went. `owed`: records that MLflow has not taken; `stopped`: the signal that ended them early.

    `hopeless`: why none of them could succeed on these machines.
    """

    histories: Mapping[str, TrialHistory]
    owed: int
    stopped: signal.Signals | None
    hopeless: str | None = None


def search_and_report(
    experiment: ExperimentSpec, *, command: str, resume: str | None = None, register: bool = True, as_json: bool = False
) -> Exit:
    """Runs or resumes a search and tells people what happens. Exits, with a message, on bad input.

    Args:
        command: how this was started, for the reports and for the advice how to go on.
        resume: a search id, or cli.NEWEST, of an interrupted search of this experiment.
        register: send the best trial through the registry's gate.
        as_json: the summary goes to stdout as one line of JSON, all else to stderr.
    """
    console = make_console(stderr=as_json)
    # Ray, too, prints; under --json stdout is the summary's alone.
    try:
        with raise_on_sigterm(), contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
            summary = _search(experiment, console, command, resume, register)
    except KeyboardInterrupt as end:
        status = Exit.TERMINATED if isinstance(end, Terminated) else Exit.INTERRUPTED
        fail(f"Interrupted. What has begun goes on with: {_again(command)}", status)
    except StorageError as error:
        fail(f"{error}: {_again(command)}", Exit.STORAGE_AWAY)
    if as_json:
        print(summary.model_dump_json())
    return STATUS[summary.outcome]


def _search(
    experiment: ExperimentSpec, console: Console, command: str, resume: str | None, register: bool
) -> SearchSummary:
    began = time.monotonic()
    with exit_on_error():
        search = open_search(experiment, console, resume)
        if register:
            check_model_name(search.uri, search.experiment.registered_model)
            check_provable(search.experiment)
    with connected() as dashboard:
        with exit_on_error(InsufficientCapacityError, status=Exit.NO_ROOM):
            check_capacity(search.experiment, room := capacity_of_cluster())
        for remark in remarks(search.experiment, search.budget, room):
            console.print(remark, soft_wrap=True)
        search.begin()
        with DriverInbox(search.folder) as desk:
            summary = _searched(search, desk, dashboard, console, command, register, began)
            desk.close(summary.outcome)
    return summary


def _searched(
    search: PreparedSearch,
    desk: DriverInbox,
    dashboard: str,
    console: Console,
    command: str,
    register: bool,
    began: float,
) -> SearchSummary:
    with exit_on_error(*MLFLOW_ERRORS, status=Exit.TRACKING_AWAY):
        facts = this_job(dashboard)
        runs = _runs(search, facts)
        _log_inputs(runs, search)
    links = {"Ray dashboard": facts.get("ray.dashboard", dashboard), "MLflow": runs.link}
    desk.show(links)
    named = ", ".join(f"{name} {link}" for name, link in links.items())
    console.print(f"search {search.search_id}, {named}", soft_wrap=True)
    course = _run_trials(search, console, command, desk, facts)
    ending = _ending(search, runs, course, console, command, register)
    summary = _summary(search, runs, course.histories, ending, seconds=time.monotonic() - began)
    _write_reports(search, runs, summary, course.histories, console, command)
    console.print(leaderboard(ranked(course.histories.values()), budget=search.budget))
    print_verdict(console, summary)
    _print_next_commands(console, search, summary)
    return summary


def _runs(search: PreparedSearch, facts: Mapping[str, str]) -> SearchRuns:
    tags = {f"{TRAINED_TAG}.{branch}": sentence[:MAX_CHARACTERS] for branch, sentence in search.trained.items()}
    return SearchRuns(open_store(search.uri), search.uri, search.experiment, search.search_id, {**facts, **tags})


def _log_inputs(runs: SearchRuns, search: PreparedSearch) -> None:
    dataset = search.dataset
    digests = {"train": dataset.train_digest, "eval": dataset.eval_digest}
    runs.log_data(search.experiment.name, str(search.experiment.data.train), digests, dataset.counts)
    records = stored_records(dataset.train, PREVIEWED)
    title = f"{search.experiment.name}: what is trained on"
    runs.log_text(None, preview_html(records, search.decode, title, totals_of(dataset)), "mask_preview.html")


def _run_trials(
    search: PreparedSearch, console: Console, command: str, desk: DriverInbox, facts: Mapping[str, str]
) -> Course:
    journal = Journal(search.folder)
    known = replay(journal.read())
    mirror = JournalSync(journal, lambda: _runs(search, facts))
    live = LiveView(console, planned=num_trials(search.experiment), budget=search.budget, known=known)

    def emit(record: TrialEvent) -> None:
        mirror.append(record)
        live.show(record)

    def told(stopped: signal.Signals) -> None:
        again = _again(command, search.search_id)
        console.print(f"{stopped.name}: trials write a checkpoint and end. Go on with: {again}", soft_wrap=True)

    ended = {trial_id: history.last for trial_id, history in known.items() if history.state != "running"}
    resume = search.resumed and can_resume(search.folder)
    stopped = hopeless = None
    try:
        with live:
            stopped = run_search(search.context(ended), emit, histories=known, resume=resume, told=told, desk=desk)
    except UnfitWorkersError as error:
        hopeless = str(error)
    finally:
        owed = mirror.close(MLFLOW_SECONDS if stopped is None else MLFLOW_SECONDS_OF_A_STOP)
    return Course(histories=live.histories, owed=owed, stopped=stopped, hopeless=hopeless)


def _ending(
    search: PreparedSearch, runs: SearchRuns, course: Course, console: Console, command: str, register: bool
) -> Ending:
    if course.hopeless is not None:
        return Ending(outcome=Outcome.NO_TRIAL_SUCCEEDED, message=f"No trial can succeed: {course.hopeless}")
    again = _again(command, search.search_id)
    states = [history.state for history in course.histories.values()]
    planned = num_trials(search.experiment) + num_clones(course.histories.values())
    unfinished = planned - sum(state != "running" for state in states)
    if course.stopped is not None or unfinished > 0:
        message = f"Interrupted with {unfinished} trials to go. Go on with: {again}"
        return Ending(
            outcome=Outcome.TERMINATED if course.stopped == signal.SIGTERM else Outcome.INTERRUPTED, message=message
        )
    best = ranked(_with_what_stands(course.histories.values(), console))[0]
    if best.best is None or best.state == "failed":
        reasons = "; ".join(dict.fromkeys(history.reason for history in course.histories.values()))
        return Ending(outcome=Outcome.NO_TRIAL_SUCCEEDED, message=f"No trial succeeded: {reasons}")
    if course.owed:
        return Ending(
            outcome=Outcome.TRACKING_AWAY,
            message=f"The search is done, but MLflow is away: {course.owed} records wait in {search.folder}."
            f" When it is back: {again}",
        )
    if not register:
        return Ending(outcome=Outcome.FINISHED, message=f"Eval loss {best.best.eval_loss:.4f}: {best.best.checkpoint}")
    return _registered(search, runs, best, console, again)


def _with_what_stands(histories: Iterable[TrialHistory], console: Console) -> list[TrialHistory]:
    """A kill may have come before a trial's last checkpoint had arrived on a remote storage: its report has none then."""
    standing = []
    for history in histories:
        while history.best is not None and not folder_at(str(history.best.checkpoint)).is_complete():
            console.print(
                f"trial {history.started.number}: {history.best.checkpoint} is not there; its next best one counts"
            )
            reports = (
                report.model_copy(update={"checkpoint": None}) if report is history.best else report
                for report in history.reports
            )
            history = history.model_copy(update={"reports": tuple(reports)})
        standing.append(history)
    return standing


def _registered(search: PreparedSearch, runs: SearchRuns, best: TrialHistory, console: Console, again: str) -> Ending:
    name = search.experiment.registered_model
    console.print(f"trial {best.started.number} is the best: packaging it, and proving it in a fresh process ...")
    try:
        registry = register_best(
            runs, search.uri, search.experiment, best, search.dataset, search.probes, _place_of_proof(search, best)
        )
    except VerificationError as error:
        return Ending(
            outcome=Outcome.NOT_PROVEN,
            message=f"The best trial was not registered: {error}. Once that is mended, try again: {again}",
        )
    except StorageError as error:
        return Ending(
            outcome=Outcome.NOT_PROVEN, message=f"The best trial was not registered: {error}. Then try again: {again}"
        )
    except MLFLOW_ERRORS as error:
        return Ending(
            outcome=Outcome.TRACKING_AWAY, message=f"MLflow took no version ({reason_of(error)}). Try again: {again}"
        )
    if not registry.promoted:
        return Ending(
            outcome=Outcome.NOT_PROMOTED,
            message=f"{name} version {registry.version} is a challenger only: {registry.reason}",
            registry=registry,
        )
    message = (
        f"Champion: models:/{name}@{registry.alias} is version {registry.version}, eval loss"
        f" {registry.candidate_loss:.4f} against the base model's {registry.base_loss:.4f}"
    )
    return Ending(outcome=Outcome.CHAMPION, message=message, registry=registry)


def _place_of_proof(search: PreparedSearch, best: TrialHistory) -> Place:
    """A driver may run on a small machine without a GPU: what was trained on one is proven on one."""
    workers = search.experiment.resources.of(best.started.spec.method)
    return partial(run_on_worker, workers) if workers.gpus_per_worker else here


def _summary(
    search: PreparedSearch, runs: SearchRuns, histories: Mapping[str, TrialHistory], ending: Ending, *, seconds: float
) -> SearchSummary:
    return SearchSummary(
        experiment=search.experiment.name,
        search_id=search.search_id,
        outcome=ending.outcome,
        message=ending.message,
        seconds=seconds,
        data_digest=search.dataset.digest,
        data_reused=search.dataset.reused,
        folder=str(search.folder),
        tracking_uri=without_secrets(search.uri),
        run_id=runs.parent_id,
        trials=trial_summaries(histories.values()),
        registry=ending.registry,
    )


def _again(command: str, search_id: str = "") -> str:
    return command if "--resume" in command else f"{command} --resume {search_id}".rstrip()


def _write_reports(
    search: PreparedSearch,
    runs: SearchRuns,
    summary: SearchSummary,
    histories: Mapping[str, TrialHistory],
    console: Console,
    command: str,
) -> None:
    """The page and the numbers, on disk and in the search's run. What can go on is not marked as finished."""
    base_loss = summary.registry.base_loss if summary.registry else None
    curves = loss_curves_svg(histories.values(), base_loss=base_loss)
    page = search_page(summary, curves=curves, command=command)
    search.folder.write_text(REPORT, page)
    if STATUS[summary.outcome] not in RESUMABLE:
        search.manifest.model_copy(update={"finished": True}).write(search.folder)
    losses = [trial.eval_loss for trial in summary.trials if trial.eval_loss is not None]
    try:
        runs.log_text(None, page, REPORT)
        runs.log_text(None, curves, "eval_loss.svg")
        runs.log_text(None, summary.model_dump_json(indent=1), "summary.json")
        runs.log_search_metrics({"eval/loss": min(losses)} if losses else {})
        runs.end_search(summary.outcome)
    except MLFLOW_ERRORS as error:
        console.print(f"MLflow did not take the reports ({reason_of(error)}); they are in {search.folder}")


def _print_next_commands(console: Console, search: PreparedSearch, summary: SearchSummary) -> None:
    served = search.uri.startswith(("http://", "https://"))
    where = f"MLFLOW_TRACKING_URI={without_secrets(search.uri)} " if search.experiment.tracking.uri else ""
    lines = [f"report   {search.folder / REPORT}"]
    if summary.registry is not None:
        named = f"@{summary.registry.alias}" if summary.registry.promoted else f"/{summary.registry.version}"
        lines.append(f"chat     {where}{python()} workflows/chat.py models:/{summary.registry.name}{named}")
    ui = without_secrets(search.uri) if served else f"{python()} -m mlflow ui --backend-store-uri {search.uri}"
    lines.append(f"MLflow   {ui}")
    for line in lines:
        console.print(line, soft_wrap=True)
