"""What may go wrong on the way to a version, in a file that imports neither MLflow nor torch."""

from __future__ import annotations

from components.errors import TurnwiseError


class VerificationError(TurnwiseError, RuntimeError):
    """A candidate that cannot be made a version, or does not load, answer, or score what it scored in training."""
