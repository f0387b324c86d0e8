"""Real servers on loopback, in processes of their own, that a test can kill."""

import contextlib
import http.client
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

UP_SECONDS, POLL_SECONDS = 120, 0.1


def until(holds, seconds):
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"{holds} did not come true in {seconds} seconds"
        time.sleep(POLL_SECONDS)


def free_port() -> int:
    return free_ports(1)[0]


def free_ports(count: int) -> list[int]:
    """Below the range from which the system hands out ports, so that nobody takes one before a server binds it."""
    ports: list[int] = []
    for port in random.SystemRandom().sample(range(15_000, 32_000), 1000):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            ports.append(port)
        if len(ports) == count:
            return ports
    raise RuntimeError("no free ports")


class Server:
    """A program that serves on loopback; it can be killed and started again on the same port."""

    health = "/health"

    def __init__(self, folder):
        self.folder = folder
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process = None

    def command(self):
        raise NotImplementedError

    def environment(self):
        return dict(os.environ)

    def start(self):
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                self.command(),
                cwd=self.folder,
                env=self.environment(),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        until(self.is_up, UP_SECONDS)

    def is_up(self):
        assert self.process is not None
        assert self.process.poll() is None, (self.folder / "server.log").read_text()[-2000:]
        with contextlib.suppress(OSError):
            return urllib.request.urlopen(f"{self.uri}{self.health}", timeout=5).status == 200

    def kill(self):
        """At once and with all its workers, in the middle of whatever they do."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


class MlflowServer(Server):
    """`mlflow server` over a sqlite file, with its artifacts in a folder beside it or where they are told to go."""

    def __init__(self, folder, artifacts=None):
        super().__init__(folder)
        self.artifacts = artifacts or str(folder / "artifacts")

    def command(self):
        mlflow = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        store = ["--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db"]
        return [*mlflow, "--workers", "1", *store, "--artifacts-destination", self.artifacts]

    def environment(self):
        # Without it, seven more processes: they serve features of MLflow that nobody here uses.
        return os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}


class ModelServer(Server):
    """`mlflow models serve` of a registered model."""

    health = "/ping"

    def __init__(self, folder, model_uri, tracking_uri):
        super().__init__(folder)
        self.model_uri, self.tracking_uri = model_uri, tracking_uri

    def command(self):
        mlflow = [sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", self.model_uri]
        return [*mlflow, "--env-manager", "local", "--host", "127.0.0.1", "--port", str(self.port)]

    def environment(self):
        # It starts `uvicorn`, which stands beside this Python.
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        return os.environ | {"MLFLOW_TRACKING_URI": self.tracking_uri, "OMP_NUM_THREADS": "1", "PATH": path}


class ServeServer(Server):
    """`serve.py` of these models, in a folder."""

    def __init__(self, folder, *models, environment):
        super().__init__(folder)
        self.models, self._environment = models, environment
        self.api = f"{self.uri}/v1"

    def command(self):
        program = Path(__file__).parents[2] / "workflows" / "serve.py"
        return [sys.executable, str(program), *self.models, "--port", str(self.port)]

    def environment(self):
        return self._environment


class S3Server(Server):
    """An S3 server in memory, with one bucket, whose name is no other server's. Unless it is `strict`, all are welcome."""

    health = "/moto-api/data.json"

    def __init__(self, folder, *, strict=False):
        super().__init__(folder)
        self.strict = strict

    @property
    def bucket(self):
        return f"bucket-{self.port}"

    def command(self):
        return [sys.executable, "-m", "moto.server", "--host", "127.0.0.1", "--port", str(self.port)]

    def environment(self):
        return os.environ | ({"INITIAL_NO_AUTH_ACTION_COUNT": "1"} if self.strict else {})  # one: its bucket is made

    def start(self):
        super().start()
        urllib.request.urlopen(urllib.request.Request(f"{self.uri}/{self.bucket}", method="PUT"), timeout=5).close()

    def client_environment(self):
        """What a program needs to find it."""
        return {"AWS_ENDPOINT_URL": self.uri, "AWS_ACCESS_KEY_ID": "anybody", "AWS_SECRET_ACCESS_KEY": "anything"}


@contextlib.contextmanager
def proxy_before(server, loses):
    """A server that passes everything on to another one, and of some requests loses the request or the answer.

    Args:
        loses: path -> "request": nothing is passed on; "answer": it is done, and nobody learns of it; None: neither.
    """

    class Proxy(BaseHTTPRequestHandler):
        def forward(self):
            body = self.body()
            lost = loses(self.path)
            if lost == "request":
                self.connection.close()
                return
            upstream = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
            own = ("host", "transfer-encoding")
            headers = {key: value for key, value in self.headers.items() if key.lower() not in own}
            upstream.request(self.command, self.path, body, headers)
            answer = upstream.getresponse()
            content = answer.read()
            if lost == "answer":
                self.connection.close()
                return
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.headers["Content-Type"] or "text/plain")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def body(self):
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = forward

        def log_message(self, *arguments):
            pass

    proxy = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    thread = threading.Thread(target=proxy.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{proxy.server_port}"
    finally:
        proxy.shutdown()
        thread.join()
        proxy.server_close()
