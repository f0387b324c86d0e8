"""Whether a model is only being saved.

MLflow loads a model and asks it something while it saves it, in the process that saves. That is the driver's, on a machine
that need not hold the model; the proof does the same where the model fits, in the version that was made.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

_is_saved: ContextVar[bool] = ContextVar("is_saved", default=False)


def is_being_saved() -> bool:
    return _is_saved.get()


@contextlib.contextmanager
def without_weights() -> Iterator[None]:
    """Inside, a packaged model loads nothing, and its answer is empty."""
    token = _is_saved.set(True)
    try:
        yield
    finally:
        _is_saved.reset(token)
