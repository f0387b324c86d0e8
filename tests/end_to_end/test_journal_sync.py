"""The copy of a journal to a real MLflow server that dies, comes late or loses answers: every point arrives once."""

import logging
import re
import socket
from functools import partial

import pytest

from components.records.journal import Journal
from components.storage.open_folder import folder_at
from components.tracking.journal_proof import compare_with_journal
from components.tracking.journal_sync import JournalSync
from tests.support.one_trial import (
    ITS_POINTS,
    ONE_TRIAL,
    children_of,
    ended,
    points_of,
    progressed,
    runs_at,
    started,
)
from tests.support.servers import MlflowServer, proxy_before, until


def test_a_server_killed_five_times_and_started_again_has_everything_once(mlflow_server, tmp_path, caplog):
    journal = Journal(folder_at(tmp_path))
    mirror = JournalSync(journal, partial(runs_at, mlflow_server.uri, "killed"), system_metrics=False)
    long = [progressed(first=step, last=step, eval_loss=1.0 / step, at=120.0 + step) for step in range(5, 9)]
    records = [*ONE_TRIAL[:3], *long, ONE_TRIAL[3]]
    for handled, record in enumerate(records[:5]):
        mirror.append(record)
        until(lambda handled=handled: mirror.num_handled == handled + 1, 30)
        mlflow_server.kill()
        mirror.append(records[5]) if handled == 4 else None  # returns though nobody answers
        until(lambda: caplog.records, 30) if handled == 4 else None
        mlflow_server.start()
    for record in records[6:]:
        mirror.append(record)
    assert mirror.close() == 0
    runs = runs_at(mlflow_server.uri, "killed")
    proof = compare_with_journal(runs, journal.read())
    assert proof.sentence == "MLflow equals the journal: 1 trial, 80 points"
    (child,) = children_of(runs.client, runs.parent_id)
    assert child.info.status == "FINISHED"
    away, back = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert re.match(r"MLflow is away \(Connection (refused|reset by peer)\); the journal /", away.message)
    assert back.message.startswith("MLflow is back")


def test_what_a_driver_still_owed_is_delivered_by_the_next_one(mlflow_server, tmp_path):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        nobody = f"http://me:secret@127.0.0.1:{closed.getsockname()[1]}"
        mirror = JournalSync(Journal(folder_at(tmp_path)), partial(runs_at, nobody, "owed"))
        for record in ONE_TRIAL[:3]:
            mirror.append(record)
        assert mirror.close(patience_seconds=0.5) == 3
    resumed = JournalSync(
        Journal(folder_at(tmp_path)), partial(runs_at, mlflow_server.uri, "owed"), system_metrics=False
    )
    resumed.append(ONE_TRIAL[3])
    assert resumed.close() == 0
    again = JournalSync(Journal(folder_at(tmp_path)), partial(runs_at, mlflow_server.uri, "owed"), system_metrics=False)
    assert again.close() == 0
    runs = runs_at(mlflow_server.uri, "owed")
    assert len(runs.client.search_runs([runs.experiment_id])) == 2
    assert points_of(runs.client, runs.trial_run("t1")) == ITS_POINTS


@pytest.mark.parametrize("request_kind", ["runs/create", "runs/log-batch", "runs/update"])
def test_a_request_whose_answer_was_lost_is_not_done_twice(mlflow_server, tmp_path, caplog, request_kind):
    name = request_kind.replace("/", "-")
    lost = []

    def lose_first(path):
        if request_kind not in path or lost:
            return None
        lost.append(path)
        return "answer"

    with proxy_before(mlflow_server, lose_first) as uri:
        mirror = JournalSync(Journal(folder_at(tmp_path)), partial(runs_at, uri, name), system_metrics=False)
        for record in ONE_TRIAL:
            mirror.append(record)
        assert mirror.close() == 0
        assert len(lost) == 1
    assert "MLflow is away (Remote end closed connection without response)" in caplog.text
    runs = runs_at(mlflow_server.uri, name)
    assert len(runs.client.search_runs([runs.experiment_id])) == 2
    assert points_of(runs.client, runs.trial_run("t1")) == ITS_POINTS


def test_a_mirror_goes_on_trying_when_mlflow_is_away_from_the_very_start(tmp_path, caplog):
    server = MlflowServer(tmp_path)
    uri = server.uri.replace("//", "//me:secret@")
    mirror = JournalSync(Journal(folder_at(tmp_path / "journal")), partial(runs_at, uri, "late"), system_metrics=False)
    for record in ONE_TRIAL:
        mirror.append(record)
    try:
        server.start()
        assert mirror.close() == 0
        runs = runs_at(server.uri, "late")
        assert points_of(runs.client, runs.trial_run("t1")) == ITS_POINTS
    finally:
        server.kill()
    assert "secret" not in caplog.text


def test_system_metrics_go_on_after_the_server_was_away(mlflow_server, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "1")
    runs = runs_at(mlflow_server.uri, "watched")

    def samples():
        return runs.client.get_metric_history(runs.parent_id, "system/cpu_utilization_percentage")

    mirror = JournalSync(Journal(folder_at(tmp_path)), partial(runs_at, mlflow_server.uri, "watched"))
    mirror.append(started())
    until(samples, 30)
    mlflow_server.kill()
    until(lambda: not mirror._monitor._process.is_alive(), 30)  # as MLflow's monitor does when it misses the server
    mlflow_server.start()
    before = len(samples())
    mirror.append(ended())
    until(lambda: len(samples()) > before, 30)
    assert mirror.close() == 0
    assert len({sample.step for sample in samples()}) == len(samples())
