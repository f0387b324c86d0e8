"""Handles of searches, for a notebook: one that runs in a thread of this process, and one that runs elsewhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from rich.console import Group
from rich.text import Text

from components.errors import InputError
from components.experiment.spec import ExperimentSpec
from components.notebook import html_of
from components.records.commands import CloneTrial, ExtendTrial, StopTrial, TrialCommand, command_of
from components.records.histories import Subscriber, TrialHistories
from components.records.manifest import SearchManifest
from components.records.on_message import OnMessage, ignore_message
from components.records.outcome import Outcome
from components.records.stop_flag import StopRequest
from components.reports.leaderboard import leaderboard, ranked
from components.reports.search_state import SearchState
from components.reports.search_summary import TrialSummary, trial_summaries
from components.search.decide_outcome import SearchResult
from components.search.follow import FollowedSearch
from components.search.prepare_search import PreparedSearch
from components.search.run import SearchRun, driver_session
from components.search.send_command import TIMEOUT_SECONDS, NoReplyError, ask
from components.storage.folder import Folder
from components.visible import visible

CANCELLED = "cancel()"  # the reason of a stop that this handle requests


class SearchHandle:
    """A search by its folder. Trials are named by their number on the leaderboard, or by their id.

    The commands wait for the reply of the search's driver, at most `timeout_seconds`, and return it as a sentence. They raise
    InputError if the driver refuses, and NoReplyError if there is no reply in time: the request then remains in the folder,
    unless the search had not connected to Ray in time.
    """

    def __init__(self, folder: Folder, *, search_id: str, budget: int, metrics: Sequence[str]) -> None:
        self.folder, self.search_id, self.budget, self.metrics = folder, search_id, budget, metrics

    @property
    def state(self) -> str:
        """running, or how the search has ended: the value of its outcome, e.g. champion or interrupted.

        Besides, silent: it runs elsewhere, or did, and its driver gives no sign of life.
        """
        raise NotImplementedError

    def trials(self) -> tuple[TrialSummary, ...]:
        """The trials that have started, the best first."""
        return trial_summaries(self._histories().values(), budget=self.budget, metrics=self.metrics)

    def stop(self, trial: int | str, *, timeout_seconds: float = TIMEOUT_SECONDS) -> str:
        """Stops a trial: it finishes its step, is evaluated, and its best checkpoint takes part in the verdict."""
        return self._command(command_of(StopTrial, trial=str(trial)), timeout_seconds)

    def extend(
        self,
        trial: int | str,
        *,
        by: float | None = None,
        to: int | None = None,
        timeout_seconds: float = TIMEOUT_SECONDS,
    ) -> str:
        """Gives a trial a larger budget, from its next report on.

        Args:
            by: a share of its present budget: 0.5 is half as much again.
            to: its whole new budget in target tokens. Give one of the two.
        """
        if (by is None) == (to is None):
            raise InputError("extend: give either by=, a share of the present budget, or to=, the whole new one")
        if not (by if to is None else to) > 0:  # type: ignore[operator]
            raise InputError(f"extend: by={by}, to={to}: a budget grows by more than 0")
        return self._command(command_of(ExtendTrial, trial=str(trial), share=by, target_tokens=to), timeout_seconds)

    def clone(
        self,
        trial: int | str,
        changes: Mapping[str, Any],
        *,
        warm: bool = False,
        timeout_seconds: float = TIMEOUT_SECONDS,
    ) -> str:
        """Starts a trial like another one, before those that wait.

        Args:
            changes: dotted path -> value, e.g. {"optimizer.learning_rate": 1e-4}.
            warm: begin with the weights of the other's best checkpoint.
        """
        return self._command(command_of(CloneTrial, trial=str(trial), changes=changes, warm=warm), timeout_seconds)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.search_id} in {self.folder}: {self._sentence()}>"

    def _repr_html_(self) -> str:
        head = Text(visible(f"search {self.search_id} in {self.folder}: {self._sentence()}"), style="bold")
        return html_of(
            Group(head, leaderboard(ranked(self._histories().values()), budget=self.budget, metrics=self.metrics))
        )

    def _sentence(self) -> str:
        """The state for people."""
        raise NotImplementedError

    def _histories(self) -> TrialHistories:
        raise NotImplementedError

    def _command(self, command: TrialCommand, timeout_seconds: float) -> str:
        reply = ask(self.folder, command, timeout_seconds=timeout_seconds)
        if not reply.accepted:
            raise InputError(f"refused: {reply.message}")
        return reply.message


class Search(SearchHandle):
    """A search that runs in a thread of this process, from its construction on.

    The end of the process ends the search as a kill would: it can be resumed.

    Args:
        prepared: the opened search.
        on_event: is called in the search's thread with every event of the trials, once the journal has it.
        on_message: is called in that thread with sentences for people.
    """

    def __init__(
        self,
        prepared: PreparedSearch,
        *,
        on_event: Subscriber | None = None,
        on_message: OnMessage = ignore_message,
    ) -> None:
        metrics = prepared.experiment.search.metrics
        super().__init__(prepared.folder, search_id=prepared.search_id, budget=prepared.budget, metrics=metrics)
        self._prepared, self._on_event, self._on_message = prepared, on_event, on_message
        self._stop = StopRequest()
        self._connected = threading.Event()
        self._run: SearchRun | None = None
        self._result: SearchResult | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name=f"search-{self.search_id}", daemon=True)
        self._thread.start()

    @property
    def state(self) -> str:
        """As of every handle. A search that ends with an error, which `result` raises, is interrupted."""
        if self._result is not None:
            return self._result.outcome.value
        return SearchState.RUNNING.value if self._error is None else Outcome.INTERRUPTED.value

    def cancel(self) -> None:
        """Ends the search early: its trials write a checkpoint, and it can be resumed. Does not wait; `result` does."""
        self._stop.request(CANCELLED)

    def result(self, timeout_seconds: float | None = None) -> SearchResult:
        """Waits for the end of the search.

        Raises TimeoutError if it has not ended in time; and what `run` raises.
        """
        self._thread.join(timeout_seconds)
        if self._error is not None:
            raise self._error
        if self._result is None:
            raise TimeoutError(f"search {self.search_id} has not ended within {timeout_seconds:g} seconds")
        return self._result

    def _sentence(self) -> str:
        return self.state if self._error is None else f"{self.state}: {self._error}"

    def _histories(self) -> TrialHistories:
        return TrialHistories() if self._run is None else self._run.histories

    def _command(self, command: TrialCommand, timeout_seconds: float) -> str:
        """The search takes commands once it is connected to Ray, which takes seconds."""
        deadline = time.monotonic() + timeout_seconds
        if not self._connected.wait(timeout_seconds):
            raise NoReplyError(
                f"no reply within {timeout_seconds:g} seconds: search {self.search_id} is not connected to Ray yet. The"
                " request was not sent; try again"
            )
        if self._run is None:
            self._raise_error()
        return super()._command(command, max(deadline - time.monotonic(), 0.0))

    def _raise_error(self) -> NoReturn:
        raise InputError(f"search {self.search_id} did not start: {self._error}") from self._error

    def _work(self) -> None:
        try:
            with driver_session(self._prepared, on_message=self._on_message, stop=self._stop) as run:
                self._run = run
                self._connected.set()
                self._result = run.conclude(run.run_trials(self._on_event))
        except BaseException as error:  # noqa: BLE001 - `result` raises it in the caller's thread
            self._error = error
        finally:
            self._connected.set()


class RemoteSearch(SearchHandle):
    """A search that runs in another process, or has ended, by what it writes to its storage."""

    def __init__(self, experiment: ExperimentSpec, manifest: SearchManifest) -> None:
        self._followed = FollowedSearch(experiment, manifest)
        budget, metrics = self._followed.budget, self._followed.metrics
        super().__init__(self._followed.folder, search_id=manifest.search_id, budget=budget, metrics=metrics)

    @property
    def state(self) -> str:
        status = self._followed.status()
        return status.outcome or status.state.value

    def _sentence(self) -> str:
        return self._followed.status().sentence

    def _histories(self) -> TrialHistories:
        self._followed.poll()
        return self._followed.histories
