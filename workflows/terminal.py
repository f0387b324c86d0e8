"""A search in the terminal: messages, the live view, the verdict, signals, and the exit status."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import TYPE_CHECKING

from rich.console import Console

from components.errors import TurnwiseError
from components.experiment.spec import ExperimentSpec
from components.lasting_output import lasting_output
from components.records.outcome import Outcome
from components.records.stop_flag import StopRequest
from components.reports.leaderboard import leaderboard, ranked
from components.reports.live_view import LiveView
from components.reports.search_state import SearchState
from components.reports.verdict import print_verdict
from components.search.decide_outcome import SearchResult, resume_command
from components.search.find import find_search
from components.search.follow import FollowedSearch, SearchStatus
from components.storage.retry import StorageError
from workflows.cli import (
    Exit,
    Terminated,
    exit_on_error,
    fail,
    make_console,
    program,
    python,
    raise_on_sigterm,
    show_json,
    status_of,
)

if TYPE_CHECKING:
    # It takes seconds of torch and Ray, which the view of a search does without.
    from components.search.prepare_search import PreparedSearch

POLL_SECONDS = 1.0
STATUS: Mapping[Outcome, Exit] = {
    Outcome.CHAMPION: Exit.DONE,
    Outcome.NOT_PROMOTED: Exit.DONE,
    Outcome.FINISHED: Exit.DONE,
    Outcome.NO_TRIAL_SUCCEEDED: Exit.NO_TRIAL_SUCCEEDED,
    Outcome.LOST: Exit.NO_TRIAL_SUCCEEDED,
    Outcome.NOT_PROVEN: Exit.NOT_PROVEN,
    Outcome.TRACKING_AWAY: Exit.TRACKING_AWAY,
    Outcome.INTERRUPTED: Exit.INTERRUPTED,
    Outcome.TERMINATED: Exit.TERMINATED,
}


@lasting_output()
def search_and_report(
    experiment: ExperimentSpec,
    *,
    command: str,
    resume: str | None = None,
    new: bool = False,
    register: bool = True,
    replace: str | None = None,
    as_json: bool = False,
) -> Exit:
    """Runs a search, or goes on with one, and shows what happens. Exits, with a message, on errors that are meant for users.

    Args:
        command: how this program was called, for the reports and for the advice how to go on.
        resume, new: which search is meant, as for choose_search.
        register: send the best trial through the registry's gate.
        replace: a reason to replace an incumbent that cannot be compared.
        as_json: the summary goes to stdout as one line of JSON, all else to stderr.
    """
    console = make_console(stderr=as_json)

    def opened(say: Callable[[str], None]) -> PreparedSearch:
        from components.search.prepare_search import prepare_search

        return prepare_search(experiment, resume=resume, new=new, register=register, replace=replace, on_message=say)

    # Ray prints, too; under --json stdout has nothing but the summary.
    try:
        with raise_on_sigterm(), contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
            result = _run(experiment, console, command, opened)
    except KeyboardInterrupt as end:
        status = Exit.TERMINATED if isinstance(end, Terminated) else Exit.INTERRUPTED
        fail(f"Interrupted. Go on with: {resume_command(command)}", status)
    if as_json:
        show_json(result.summary)
    return STATUS[result.outcome]


def watch(experiment: ExperimentSpec, search_id: str, *, as_json: bool) -> Exit:
    """Shows a search until it ends or its driver is gone; Ctrl-C ends the view only. `as_json`: its present state, once."""
    with exit_on_error():
        return _watch(FollowedSearch(experiment, find_search(experiment, search_id)), as_json=as_json)


def _watch(followed: FollowedSearch, *, as_json: bool) -> Exit:
    if as_json:
        show_json(followed.snapshot())
        return Exit.DONE
    console = make_console()
    console.print(followed.headline(), soft_wrap=True)
    live = LiveView(
        console,
        followed.histories,
        planned=followed.planned,
        budget=followed.budget,
        began=followed.manifest.created,
        metrics=followed.metrics,
        remark=followed.remark,
    )
    followed.histories.subscribe(live.show)
    try:
        with live:
            while (status := followed.status()).state is SearchState.RUNNING:
                time.sleep(POLL_SECONDS)
                followed.poll()
            followed.poll()  # what came before the status was read
    except KeyboardInterrupt:
        status = SearchStatus(state=SearchState.RUNNING, sentence="the search goes on")
    console.print(leaderboard(ranked(followed.histories.values()), budget=followed.budget, metrics=followed.metrics))
    console.print(status.sentence, soft_wrap=True)
    return Exit.DONE if status.state in (SearchState.RUNNING, SearchState.ENDED) else Exit.NO_REPLY


def _run(
    experiment: ExperimentSpec,
    console: Console,
    command: str,
    opened: Callable[[Callable[[str], None]], PreparedSearch],
) -> SearchResult:
    def say(message: str) -> None:
        console.print(message, soft_wrap=True)

    with exit_on_error():
        prepared = opened(say)
    try:
        result = _run_prepared(prepared, console, say, command)
    except StorageError as error:
        fail(f"{error}: {resume_command(command)}", status_of(error))
    except TurnwiseError as error:
        fail(str(error), status_of(error))
    console.print(leaderboard(ranked(result.histories.values()), budget=result.budget, metrics=result.summary.metrics))
    print_verdict(console, result.summary)
    _print_next_commands(console, experiment, result)
    return result


def _run_prepared(prepared: PreparedSearch, console: Console, say: Callable[[str], None], command: str) -> SearchResult:
    from components.search.run import driver_session

    stop = StopRequest()
    with driver_session(prepared, on_message=say, stop=stop, command=command) as search:

        def announce() -> None:
            say(f"{stop.reason}: trials write a checkpoint and end. Go on with: {search.resume_command}")

        live = LiveView(
            console,
            search.histories,
            planned=search.planned,
            budget=prepared.budget,
            metrics=prepared.experiment.search.metrics,
            remark=search.remark,
        )
        with live, request_on_signal(stop, announce):
            trials = search.run_trials(live.show)
        return search.conclude(trials)


@contextlib.contextmanager
def request_on_signal(stop: StopRequest, announce: Callable[[], None]) -> Iterator[None]:
    """Inside, the first SIGINT or SIGTERM requests the stop; a second one acts as it does outside."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    seen = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal seen
        if seen:
            restore()
            signal.raise_signal(number)
            return
        seen = True
        stop.request(signal.Signals(number).name)
        # The signal may have come while this thread was printing: another thread waits for its turn.
        threading.Thread(target=announce, name="announce-stop", daemon=True).start()

    for number in before:
        signal.signal(number, handle)
    try:
        yield
    finally:
        restore()


def _print_next_commands(console: Console, experiment: ExperimentSpec, result: SearchResult) -> None:
    uri, registry = result.summary.tracking_uri, result.registry
    lines = [f"report   {result.report}"]
    if registry is not None:
        where = f"MLFLOW_TRACKING_URI={uri} " if experiment.tracking.uri else ""
        name = f"@{registry.alias}" if registry.promoted else f"/{registry.version}"
        lines.append(f"chat     {where}{program('chat')} models:/{registry.name}{name}")
    served = uri.startswith(("http://", "https://"))
    lines.append(f"MLflow   {uri if served else f'{python()} -m mlflow ui --backend-store-uri {uri}'}")
    console.print("\n".join(lines), soft_wrap=True)
