"""What a search varies from trial to trial, for tables."""

from __future__ import annotations

from collections.abc import Mapping


def hyperparameters(varied: Mapping[str, object]) -> str:
    """Varied values, short: the last word of each dotted path and three digits of each number."""
    return "  ".join(f"{path.rpartition('.')[2]} {_short(value)}" for path, value in varied.items())


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
