"""The longest sequence that a model is made for, by its configuration."""

from __future__ import annotations

from pathlib import Path

from components.models.base.load_base import config_of


def context_of(directory: Path) -> int | None:
    """Returns max_position_embeddings; None if the model has no such bound, or the directory no configuration of a model."""
    if not (directory / "config.json").exists():
        return None
    try:
        length = getattr(config_of(directory).get_text_config(), "max_position_embeddings", None)
    except ValueError:  # a family that transformers does not know: its tokenizer is enough for a preview
        return None
    return length if isinstance(length, int) and length > 0 else None
