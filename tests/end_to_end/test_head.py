"""MLflow as the head of a cluster starts it: behind passwords that only this user can read, and a worker's only reads."""

import base64
import os
import stat
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from tests.support.servers import free_port

SCRIPT = Path(__file__).parents[2] / "experiments" / "cluster" / "mlflow_server.py"
SEARCH = "api/2.0/mlflow/experiments/search?max_results=1"


class Head:
    def __init__(self, home):
        self.home, self.port = home, free_port()
        self.uri = f"http://127.0.0.1:{self.port}"

    def start(self):
        command = [sys.executable, SCRIPT, "--home", self.home, "--port", str(self.port)]
        done = subprocess.run(
            [*command, "--artifacts", str(self.home / "artifacts")],
            env={**os.environ, "PYTHONWARNINGS": "ignore"},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
            umask=0o002,
        )
        assert done.returncode == 0, done.stderr
        assert not any(password in done.stdout + done.stderr for _, password in self.users())

    def users(self):
        """(name, password) of the administrator and of the reader."""
        for file in ("admin", "reader"):
            _, user, password = (self.home / file).read_text().split("\n")[:3]
            yield user.partition(" = ")[2], password.partition(" = ")[2]

    def status(self, user="", password=""):
        request = urllib.request.Request(f"{self.uri}/{SEARCH}")
        if user:
            request.add_header("Authorization", f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}")
        try:
            return urllib.request.urlopen(request, timeout=30).status
        except urllib.error.HTTPError as error:
            return error.code

    def processes(self):
        server = psutil.Process(int((self.home / "server.pid").read_text()))
        return [server, *server.children(recursive=True)]

    def stop(self):
        if (self.home / "server.pid").exists():
            for process in self.processes():
                process.kill()


@pytest.fixture
def head(tmp_path):
    head = Head(tmp_path / "mlflow")
    try:
        yield head
    finally:
        head.stop()


def test_mlflow_on_the_head_asks_for_a_password_that_only_this_user_can_read(head, monkeypatch):
    head.start()
    (admin, password), (reader, of_reader) = users = list(head.users())
    assert min(len(password), len(of_reader)) >= 40
    assert (head.status(), head.status(admin, "wrong"), head.status(admin, of_reader)) == (401, 401, 401)
    assert (head.status(admin, password), head.status(reader, of_reader)) == (200, 200)
    assert [stat.S_IMODE((head.home / name).stat().st_mode) for name in ("admin", "reader", ".")] == [
        0o600,
        0o600,
        0o700,
    ]
    commands = " ".join(" ".join(process.cmdline()) for process in head.processes())
    shown = commands + (head.home / "server.log").read_text() + (head.home / "auth.ini").read_text()
    assert not any(secret in shown for _, secret in users)
    client = MlflowClient(head.uri)
    as_user(monkeypatch, admin, password)
    experiment = client.create_experiment("searches")
    as_user(monkeypatch, reader, of_reader)
    assert client.get_experiment(experiment).name == "searches"
    with pytest.raises(MlflowException, match=r"[Pp]ermission"):
        client.create_run(experiment)
    before = head.processes()[0].pid
    head.start()  # as `ray up` does again: the same server and the same passwords
    assert (list(head.users()), head.processes()[0].pid) == (users, before)


def as_user(monkeypatch, user, password):
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", user)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)
