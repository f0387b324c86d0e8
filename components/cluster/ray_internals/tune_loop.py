"""The end of Tune's loop on request, in any thread."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from importlib import import_module
from typing import Any


@contextlib.contextmanager
def interruptible(interrupted: threading.Event) -> Iterator[None]:
    """Inside, a `Tuner.fit` ends after its current step once the event is set: trials stop, and Tune saves its state.

    Public way: a signal to this process, SIGINT or SIGUSR1, which Tune installs handlers for. Tune's `_setup_signal_catching`
    returns the event that they set, and installs none outside the main thread, where a loop then cannot be ended. And a
    signal that comes before the handlers are installed is lost. Here that function returns our event.
    Issue: none known.
    Test: tests/ray/test_search_on_ray.py::test_a_search_in_another_thread_stops_on_request_and_is_resumed
    """
    tune: Any = import_module("ray.tune.tune")
    setup = tune._setup_signal_catching
    tune._setup_signal_catching = lambda: interrupted
    try:
        yield
    finally:
        tune._setup_signal_catching = setup
