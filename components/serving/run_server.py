"""Runs the application until a signal, which ends what is being said, and then the server."""

from __future__ import annotations

import signal
import threading
from types import FrameType

import uvicorn

from components.serving.access import is_loopback
from components.serving.app import make_app
from components.serving.guard import LOOPBACK
from components.serving.served_models import ServedModels

FOLLOW_SECONDS = 2.0
GOODBYE_SECONDS = 10  # for clients to read that the server ends


def run_server(models: ServedModels, *, host: str, port: int, token: str | None) -> None:
    """Serves open models. Returns after SIGINT or SIGTERM."""
    hosts = (*LOOPBACK, host) if is_loopback(host) else None
    app = make_app(models, hosts=hosts, token=token, follow_seconds=FOLLOW_SECONDS)
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=GOODBYE_SECONDS,
    )
    _Server(config, models).run()


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, models: ServedModels) -> None:
        super().__init__(config)
        self.models = models

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Replies fail at once, and so their clients hear of it: uvicorn alone would wait for their ends."""
        super().handle_exit(signal.Signals(sig), frame)
        threading.Thread(target=self.models.close, name="goodbye").start()
