"""Saves a model without its weights in memory.

MLflow loads a model and asks it a question while it saves it. It does so in the driver's process, on a machine that may be
too small for the model. The verification does the same with the finished version, on a machine that is large enough.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

_being_saved: ContextVar[bool] = ContextVar("being_saved", default=False)


def is_being_saved() -> bool:
    return _being_saved.get()


@contextlib.contextmanager
def without_weights() -> Iterator[None]:
    """Inside, a packaged model loads nothing, and its answer is empty."""
    token = _being_saved.set(True)
    try:
        yield
    finally:
        _being_saved.reset(token)
