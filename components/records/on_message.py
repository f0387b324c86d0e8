"""Messages about the progress of a long call, as sentences for people. The caller decides what shows them."""

from __future__ import annotations

from collections.abc import Callable

OnMessage = Callable[[str], None]


def ignore_message(_: str) -> None:
    """Takes messages that the caller does not want."""
