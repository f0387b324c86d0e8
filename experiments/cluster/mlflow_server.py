"""Starts MLflow on the head, behind two passwords that are made here, and waits until it answers.

    python mlflow_server.py --home ~/mlflow --host 0.0.0.0 --artifacts s3://BUCKET/mlflow

In --home it keeps the databases, the log, the server's process id, and in MLflow's own form the credentials of `admin`, who
may do everything, and of `reader`, who may read: what a worker needs to prove a winner. They are made once, are readable by
this user alone (0600), and are on no command line. A server that runs already is left alone.
"""

from __future__ import annotations

import argparse
import configparser
import contextlib
import os
import secrets
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from mlflow.exceptions import MlflowException
from mlflow.server.auth.client import AuthServiceClient

UP_SECONDS = 120
ADMIN, READER = "admin", "reader"
AUTH = """[mlflow]
default_permission = READ
database_uri = sqlite:///{home}/auth.db
admin_username = admin
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
"""


def main() -> None:
    parser = argparse.ArgumentParser(description="Start MLflow behind passwords that are made here.")
    parser.add_argument("--home", type=Path, required=True, help="a folder of this user")
    parser.add_argument("--host", default="127.0.0.1", help="the address it listens on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=5000)
    parser.add_argument("--artifacts", required=True, help="where artifacts lie: a folder, s3://BUCKET/PREFIX")
    arguments = parser.parse_args()
    home, port = arguments.home.absolute(), arguments.port
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    home.chmod(0o700)
    admin, reader = password_in(home / ADMIN, ADMIN), password_in(home / READER, READER)
    if not is_up(port):
        start(home, arguments.host, port, arguments.artifacts, admin)
    make_reader(port, admin, reader)


def password_in(file: Path, user: str) -> str:
    """Returns the password in a file in the form of ~/.mlflow/credentials, which is made if there is none."""
    if not file.exists():
        made = f"[mlflow]\nmlflow_tracking_username = {user}\nmlflow_tracking_password = {secrets.token_urlsafe(32)}\n"
        private(file, made)
    content = configparser.ConfigParser(interpolation=None)
    content.read_string(file.read_text(encoding="utf-8"))
    return content["mlflow"]["mlflow_tracking_password"]


def private(file: Path, content: str) -> None:
    """Writes a new file that nobody else can read at any moment, whatever the umask, and that is never seen half-written."""
    beside = file.with_name(f".{file.name}.{os.getpid()}")
    with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as stream:
        stream.write(content)
    beside.rename(file)


def start(home: Path, host: str, port: int, artifacts: str, admin: str) -> None:
    """Raises SystemExit with the end of the log if it does not come up."""
    (home / "auth.ini").write_text(AUTH.format(home=home), encoding="utf-8")
    server = f"-m mlflow server --app-name basic-auth --host {host} --port {port} --workers 2".split()
    stores = ["--backend-store-uri", f"sqlite:///{home}/mlflow.db", "--artifacts-destination", artifacts]
    environment = {
        **os.environ,
        "MLFLOW_AUTH_CONFIG_PATH": str(home / "auth.ini"),
        "MLFLOW_AUTH_ADMIN_PASSWORD": admin,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_urlsafe(32),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # features of MLflow that nobody here uses, in seven processes
    }
    with (home / "server.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, *server, *stores],
            cwd=home,
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    (home / "server.pid").write_text(str(process.pid), encoding="utf-8")
    deadline = time.monotonic() + UP_SECONDS
    while not is_up(port):
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"MLflow does not come up: {(home / 'server.log').read_text(errors='replace')[-2000:]}")
        time.sleep(0.2)


def is_up(port: int) -> bool:
    with contextlib.suppress(OSError):
        return urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=3).status == 200
    return False


def make_reader(port: int, admin: str, reader: str) -> None:
    """Makes the user who may read, unless there is one. What others make is open to it: auth.ini's default permission."""
    os.environ.update(MLFLOW_TRACKING_USERNAME=ADMIN, MLFLOW_TRACKING_PASSWORD=admin)
    client = AuthServiceClient(f"http://127.0.0.1:{port}")
    try:
        client.create_user(READER, reader)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


if __name__ == "__main__":
    main()
