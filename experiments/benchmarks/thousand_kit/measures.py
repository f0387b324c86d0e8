"""What a large search asks of the programs around its training; each is measured in a process of its own."""

from __future__ import annotations

import io
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import requests
from rich.console import Console

from components.cluster.scheduling.comparable import EndingRule
from components.cluster.scheduling.median_stopping import MedianRule
from components.cluster.scheduling.plateau import PlateauRule
from components.cluster.scheduling.successive_halving import HalvingRule
from components.cluster.slots.slot_result import SlotResult
from components.experiment.report_marks import evaluation_marks
from components.experiment.spec import ExperimentSpec
from components.records.events import TrialEvent, TrialProgressed, replay
from components.records.histories import TrialHistories
from components.records.journal import Journal
from components.records.outcome import Outcome
from components.records.search_cost import cost_of_search
from components.reports import live_view
from components.reports.html_page import search_page
from components.reports.live_view import LiveView
from components.reports.loss_curves import loss_curves_svg
from components.reports.search_summary import SearchSummary, trial_summaries
from components.storage.open_folder import folder_at
from components.tracking.journal_proof import compare_with_journal
from components.tracking.journal_sync import JournalSync
from components.tracking.mlflow_access import open_store
from components.tracking.mlflow_runs import SearchRuns
from experiments.benchmarks.thousand_kit.large_search import BUDGET, REPORTS, experiment
from tests.support.servers import MlflowServer

Numbers = dict[str, float]
MEGABYTE = 1e6
WIDTH, HEIGHT = 160, 50  # of a terminal
FRAMES, JUDGED = 5, 100  # how many are timed


def reading(folder: Path) -> Numbers:
    """Reads the journal and replays it, as each start of a driver and each report does; then asks for what is new."""
    before = _resident()
    began = time.process_time()
    journal = Journal(folder_at(folder))
    events = journal.read()
    read = time.process_time() - began
    histories = TrialHistories(events)
    replayed = time.process_time() - began - read
    began = time.process_time()
    assert journal.read(after=len(events)) == []
    return {
        "read, s": read,
        "replay, s": replayed,
        "kept, MB": (_resident() - before) / MEGABYTE,
        "peak, MB": _peak() - before / MEGABYTE,
        "look for new events, s": time.process_time() - began,
        "steps": sum(len(report.steps) for history in histories.values() for report in history.reports),
    }


def live_table(folder: Path) -> Numbers:
    """Frames that a terminal of usual size shows: of what has not changed, and after an event."""
    *events, last, _ = Journal(folder_at(folder)).read()
    histories = TrialHistories(events)
    screen = Console(file=io.StringIO(), force_terminal=True, width=WIDTH, height=HEIGHT)
    live_view.REFRESHES_PER_SECOND = 0.001  # only when asked for
    with LiveView(screen, histories, planned=len(histories), budget=BUDGET) as view:
        view._live.refresh()
        first = _seconds(view._live.refresh, FRAMES)
        histories.record(last)
        changed = _seconds(view._live.refresh, 1)
    return {"frame, s": first, "frame after an event, s": changed}


def report_page(folder: Path) -> Numbers:
    histories = replay(Journal(folder_at(folder)).read())
    began = time.process_time()
    curves = loss_curves_svg(histories.values())
    drawn = time.process_time() - began
    began = time.process_time()
    summary = SearchSummary(
        experiment="thousand",
        search_id="20270115-080000-abcdef",
        outcome=Outcome.FINISHED,
        message="Eval loss 1.0",
        seconds=3600.0,
        data_digest="0" * 64,
        data_reused=True,
        folder=str(folder),
        tracking_uri="sqlite:///mlflow.db",
        run_id="",
        trials=trial_summaries(histories.values(), budget=BUDGET),
        cost=cost_of_search(histories.values()),
        registry=None,
    )
    page = search_page(summary, curves=curves, command="")
    return {
        "curves, s": drawn,
        "curves, MB": len(curves.encode()) / MEGABYTE,
        "rest of the page, s": time.process_time() - began,
        "page, MB": len(page.encode()) / MEGABYTE,
    }


def mirroring(folder: Path) -> Numbers:
    """Fills a server from a journal that it has nothing of, as `--resume` and a search ahead of it do, and proves it."""
    events = Journal(folder_at(folder)).read()
    with tempfile.TemporaryDirectory() as place:
        server = MlflowServer(Path(place))
        server.start()
        try:
            return _mirrored(folder, events, server.uri)
        finally:
            server.kill()


def mirroring_into_a_file(folder: Path) -> Numbers:
    """The same without a server: what a search does by default."""
    events = Journal(folder_at(folder)).read()
    with tempfile.TemporaryDirectory() as place:
        return _mirrored(folder, events, f"sqlite:///{place}/mlflow.db")


def driver(folder: Path) -> Numbers:
    """What the driver does for a report, without Ray: seconds for each part."""
    events = Journal(folder_at(folder)).read()
    reports = [number for number, event in enumerate(events) if isinstance(event, TrialProgressed)]
    sampled = set(reports[len(reports) // 2 :: max(1, len(reports) // 2 // JUDGED)])
    marks = evaluation_marks(BUDGET, REPORTS)
    rules: dict[str, EndingRule] = {
        "asha": HalvingRule(rungs=marks[1:-1:4], reduction_factor=3, per_branch=True),
        "median": MedianRule(marks=marks[:-1], min_trials=3, per_branch=True),
        "plateau": PlateauRule(evaluations=5, min_improvement=0.01, budget=BUDGET, planned=REPORTS),
    }
    spent = dict.fromkeys(["result", "journal", "journal with fsync", "history", *rules], 0.0)

    def timed(part: str, work: Callable[[], object], clock: Callable[[], float] = time.process_time) -> None:
        began = clock()
        work()
        spent[part] += clock() - began

    histories = TrialHistories()
    with _journal_at("/dev/shm") as memory, _journal_at(None) as disk:
        for number, event in enumerate(events):
            if number not in sampled or not isinstance(event, TrialProgressed):
                histories.record(event)
                continue
            result = SlotResult(slot=event.slot, progress=event.progress).to_tune()
            timed("result", lambda: SlotResult.of(result))  # noqa: B023
            timed("journal", lambda: memory.append(event))  # noqa: B023
            timed("journal with fsync", lambda: disk.append(event), time.perf_counter)  # noqa: B023
            for name, rule in rules.items():
                timed(name, lambda: _judge(rule, histories, event))  # noqa: B023
            timed("history", lambda: histories.record(event))  # noqa: B023
    return {f"{part}, ms": 1000 * seconds / len(sampled) for part, seconds in spent.items()}


MEASURES: dict[str, Callable[[Path], Numbers]] = {
    measure.__name__: measure
    for measure in (reading, live_table, report_page, driver, mirroring, mirroring_into_a_file)
}


def _judge(rule: EndingRule, histories: TrialHistories, event: TrialProgressed) -> bool:
    return rule.stops(histories, event.trial_id, event.progress)


def _mirrored(folder: Path, events: list[TrialEvent], uri: str) -> Numbers:
    spec = experiment(len(replay(events)))
    with _requests() as count, _journal_at(None) as empty:
        open_store(uri).search_experiments()  # makes the tables
        began, before, cpu = time.perf_counter(), count(), time.process_time()
        sync = JournalSync(Journal(folder_at(folder)), lambda: _runs(uri, spec), system_metrics=False)
        assert sync.close(patience_seconds=3600.0) == 0
        filled, asked, worked = time.perf_counter() - began, count() - before, time.process_time() - cpu
        began, before = time.perf_counter(), count()
        proof = compare_with_journal(_runs(uri, spec), events)
        assert proof.differences == (), proof.sentence
        assert empty.read() == []
    return {
        "points": proof.points,
        "seconds": filled,
        "of them this process, s": worked,
        "points a second": proof.points / filled,
        "requests": asked,
        "proof, s": time.perf_counter() - began,
        "proof, requests": count() - before,
    }


def _runs(uri: str, spec: ExperimentSpec) -> SearchRuns:
    return SearchRuns(open_store(uri), uri, spec, "20270115-080000-abcdef")


@contextmanager
def _requests() -> Iterator[Callable[[], int]]:
    """Counts the requests that this process sends."""
    sent, lock, send = 0, threading.Lock(), requests.Session.send

    def counted(session: requests.Session, request: requests.PreparedRequest, **options: object) -> requests.Response:
        nonlocal sent
        with lock:
            sent += 1
        return send(session, request, **options)  # type: ignore[arg-type]

    requests.Session.send = counted  # type: ignore[method-assign, assignment]
    try:
        yield lambda: sent
    finally:
        requests.Session.send = send  # type: ignore[method-assign]


@contextmanager
def _journal_at(place: str | None) -> Iterator[Journal]:
    with tempfile.TemporaryDirectory(dir=place) as name:
        journal = Journal(folder_at(name))
        try:
            yield journal
        finally:
            journal.close()


def _seconds(work: Callable[[], object], times: int) -> float:
    """Of this process's processor, each time."""
    began = time.process_time()
    for _ in range(times):
        work()
    return (time.process_time() - began) / times


def _resident() -> float:
    return float(psutil.Process(os.getpid()).memory_info().rss)


def _peak() -> float:
    """Megabytes, of this process so far."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MEGABYTE
