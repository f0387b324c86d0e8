"""Serves the guests of a shared Train run: other slots, whose trials its worker trains together with its own slot's."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ray

from components.cluster.slots.seats import Seat


@dataclass(slots=True, kw_only=True)
class _Served:
    seat: Seat
    gone: threading.Event = field(default_factory=threading.Event)
    thread: threading.Thread | None = None


class Guests:
    """Each guest has a thread of its own. A thread beside these looks who has come, and who has died.

    Args:
        serve: takes a guest's slot, and a function that says whether that slot has died; returns once the slot has ended.
    """

    def __init__(self, board: Any, host: str, serve: Callable[[str, Callable[[], bool]], None]) -> None:
        self._board, self._host, self._serve = board, host, serve
        self._served: dict[str, _Served] = {}
        self._error: BaseException | None = None
        threading.Thread(target=self._receive, name="guests", daemon=True).start()

    def failed(self) -> bool:
        return self._error is not None

    def check(self) -> None:
        """Raises the error of a thread: the worker ends with it, as it does with an error of its own."""
        if self._error is not None:
            raise self._error

    def _receive(self) -> None:
        try:
            while self._error is None:
                self._welcome(ray.get(self._board.guests.remote(self._host, frozenset(self._served))))
        except BaseException as error:  # noqa: BLE001 - `check` raises it
            self._error = error

    def _welcome(self, seats: list[Seat]) -> None:
        for seat in seats:
            if seat.has_died():
                ray.get(self._board.leave_seat.remote(seat.slot))
            elif seat.slot not in self._served:
                self._begin(seat)
        for served in self._served.values():  # also those of whom a new board has not heard
            if served.seat.has_died():
                served.gone.set()
        for slot in self._served.keys() - {seat.slot for seat in seats}:
            thread = self._served[slot].thread
            if thread is not None and not thread.is_alive():
                del self._served[slot]

    def _begin(self, seat: Seat) -> None:
        served = self._served[seat.slot] = _Served(seat=seat)
        served.thread = threading.Thread(target=self._run, args=(served,), name=f"guest-{seat.slot}", daemon=True)
        served.thread.start()

    def _run(self, served: _Served) -> None:
        try:
            self._serve(served.seat.slot, served.gone.is_set)
        except BaseException as error:  # noqa: BLE001 - `check` raises it
            self._error = error
