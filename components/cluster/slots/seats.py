"""Who has a seat in whose Train run, where several trials are trained together: a slot hosts, and others are its guests."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import ray


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """A slot's place in a shared Train run.

    The slot says it with every command, so that a board which replaces another one knows it, too.

    Args:
        host: the slot whose run it is: this one, or the one that it is a guest of. Empty: none is known yet.
        kind, node, count: what the run is of: the kind of its trials, its node's id, and how many seats it has.
        alive: in a list, a promise that nobody keeps. It breaks when the slot, its owner, has died.
    """

    slot: str
    kind: str
    node: str
    count: int
    alive: list[Any]
    host: str = ""

    def has_died(self) -> bool:
        """Whether the slot is dead: its promise is broken."""
        return bool(ray.wait(self.alive, timeout=0.0)[0])

    def suits(self, other: Seat) -> bool:
        return (self.kind, self.node, self.count) == (other.kind, other.node, other.count)


class Seats:
    """Those of a search."""

    def __init__(self) -> None:
        self._seats: dict[str, Seat] = {}  # by slot, in the order in which they came
        self._closed: set[str] = set()  # hosts whose runs end

    def take(self, wanted: Seat) -> tuple[Seat, Seat]:
        """Returns a guest's seat in a run of its kind on its node, or a host's if no such run has room; and its host's."""
        hosts = (seat for seat in self._seats.values() if seat.host == seat.slot and seat.suits(wanted))
        free = (seat.slot for seat in hosts if seat.slot not in self._closed and len(self._in(seat.slot)) < seat.count)
        seat = replace(wanted, host=next(free, wanted.slot))
        self.note(seat)
        return seat, self._seats[seat.host]

    def note(self, seat: Seat) -> None:
        """A slot says which seat it has."""
        self._seats[seat.slot] = seat

    def leave(self, slot: str) -> None:
        """The slot needs its seat no more, or has died. A host's run ends with it: its guests find out by themselves."""
        self._seats.pop(slot, None)
        self._closed.discard(slot)

    def guests(self, host: str) -> list[Seat]:
        return [seat for seat in self._in(host) if seat.slot != host]

    def close(self, host: str) -> bool:
        """Whether a host's run may end: it has no guests, and gets none from now on."""
        if not self.guests(host):
            self._closed.add(host)
        return host in self._closed

    def _in(self, host: str) -> list[Seat]:
        return [seat for seat in self._seats.values() if seat.host == host]
