"""A whole search as a library: open, run, register, report."""

from __future__ import annotations

from collections.abc import Callable

from components.experiment.spec import ExperimentSpec
from components.records.histories import Subscriber
from components.records.stop_request import StopRequest
from components.search.outcome import SearchResult


def run(
    experiment: ExperimentSpec,
    *,
    register: bool = True,
    resume: str | None = None,
    on_event: Subscriber | None = None,
    on_message: Callable[[str], None] | None = None,
    stop: StopRequest | None = None,
    command: str = "",
) -> SearchResult:
    """Runs a search, or goes on with one, and returns its result. Blocks; may be called from any thread."""
    raise NotImplementedError
