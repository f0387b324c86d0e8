"""The copy of a journal to a real MLflow server that dies, comes late or loses answers: every point arrives once."""

import contextlib
import http.client
import logging
import re
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from components.records.journal import Journal
from components.storage.open_folder import folder_at
from components.tracking.journal_sync import JournalSync
from components.tracking.mlflow_access import (
    open_store,
)
from components.tracking.mlflow_runs import SearchRuns
from tests.support.one_trial import (
    ITS_POINTS,
    ONE_TRIAL,
    children_of,
    ended,
    experiment,
    points_of,
    started,
)
from tests.support.servers import MlflowServer, until


def connection(uri, name, search_id="search-1"):
    return lambda: SearchRuns(open_store(uri), uri, experiment(name), search_id)


def test_a_server_killed_midway_and_started_again_has_everything_once(mlflow_server, tmp_path, caplog):
    mirror = JournalSync(Journal(folder_at(tmp_path)), connection(mlflow_server.uri, "killed"), system_metrics=False)
    for record in ONE_TRIAL[:2]:
        mirror.append(record)
    until(lambda: mirror.num_handled == 2, 30)
    mlflow_server.kill()
    for record in ONE_TRIAL[2:]:
        mirror.append(record)  # returns though nobody answers
    until(lambda: caplog.records, 30)
    assert mirror.num_handled == 2
    mlflow_server.start()
    until(lambda: mirror.num_handled == 4, 30)
    assert mirror.close() == 0
    runs = connection(mlflow_server.uri, "killed")()
    (child,) = children_of(runs.client, runs.parent_id)
    assert points_of(runs.client, child.info.run_id) == ITS_POINTS
    assert child.info.status == "FINISHED"
    away, back = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert re.match(r"MLflow is away \(Connection (refused|reset by peer)\); the journal /", away.message)
    assert back.message.startswith("MLflow is back")


def test_what_a_driver_still_owed_is_delivered_by_the_next_one(mlflow_server, tmp_path):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        nobody = f"http://me:secret@127.0.0.1:{closed.getsockname()[1]}"
        mirror = JournalSync(Journal(folder_at(tmp_path)), connection(nobody, "owed"))
        for record in ONE_TRIAL[:3]:
            mirror.append(record)
        assert mirror.close(patience_seconds=0.5) == 3
    resumed = JournalSync(Journal(folder_at(tmp_path)), connection(mlflow_server.uri, "owed"), system_metrics=False)
    resumed.append(ONE_TRIAL[3])
    assert resumed.close() == 0
    again = JournalSync(Journal(folder_at(tmp_path)), connection(mlflow_server.uri, "owed"), system_metrics=False)
    assert again.close() == 0
    runs = connection(mlflow_server.uri, "owed")()
    assert len(runs.client.search_runs([runs.experiment_id])) == 2
    assert points_of(runs.client, runs.trial_run("t1")) == ITS_POINTS


@contextlib.contextmanager
def losing_answers(server, to):
    """A proxy before the mlflow_server that passes everything on, and loses the answer to the first request of this kind."""
    lost = []

    class Proxy(BaseHTTPRequestHandler):
        def forward(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            upstream = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
            headers = {key: value for key, value in self.headers.items() if key.lower() != "host"}
            upstream.request(self.command, self.path, body, headers)
            answer = upstream.getresponse()
            content = answer.read()
            if to in self.path and not lost:
                lost.append(self.path)
                self.connection.close()  # done, and nobody is told
                return
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.headers["Content-Type"])
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = do_PATCH = forward

        def log_message(self, *arguments):
            pass

    proxy = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    thread = threading.Thread(target=proxy.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{proxy.server_port}", lost
    proxy.shutdown()
    thread.join()
    proxy.server_close()


@pytest.mark.parametrize("request_kind", ["runs/create", "runs/log-batch", "runs/update"])
def test_a_request_whose_answer_was_lost_is_not_done_twice(mlflow_server, tmp_path, caplog, request_kind):
    name = request_kind.replace("/", "-")
    with losing_answers(mlflow_server, to=request_kind) as (uri, lost):
        mirror = JournalSync(Journal(folder_at(tmp_path)), connection(uri, name), system_metrics=False)
        for record in ONE_TRIAL:
            mirror.append(record)
        assert mirror.close() == 0
        assert len(lost) == 1
    assert "MLflow is away (Remote end closed connection without response)" in caplog.text
    runs = connection(mlflow_server.uri, name)()
    assert len(runs.client.search_runs([runs.experiment_id])) == 2
    assert points_of(runs.client, runs.trial_run("t1")) == ITS_POINTS


def test_a_mirror_goes_on_trying_when_mlflow_is_away_from_the_very_start(tmp_path, caplog):
    server = MlflowServer(tmp_path)
    uri = server.uri.replace("//", "//me:secret@")
    mirror = JournalSync(Journal(folder_at(tmp_path / "journal")), connection(uri, "late"), system_metrics=False)
    for record in ONE_TRIAL:
        mirror.append(record)
    try:
        server.start()
        assert mirror.close() == 0
        runs = connection(server.uri, "late")()
        assert points_of(runs.client, runs.trial_run("t1")) == ITS_POINTS
    finally:
        server.kill()
    assert "secret" not in caplog.text


def test_system_metrics_go_on_after_the_server_was_away(mlflow_server, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "1")
    runs = connection(mlflow_server.uri, "watched")()

    def samples():
        return runs.client.get_metric_history(runs.parent_id, "system/cpu_utilization_percentage")

    mirror = JournalSync(Journal(folder_at(tmp_path)), connection(mlflow_server.uri, "watched"))
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
