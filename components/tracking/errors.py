"""What MLflow does to its users' programs, in a file that does not import it."""

from __future__ import annotations

from components.errors import TurnwiseError


class TrackingError(TurnwiseError):
    """MLflow is away, or has refused what a search cannot do without."""
