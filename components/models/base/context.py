"""The longest sequence that a model is made for, by its configuration."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedConfig

from components.models.base.load_base import config_of


def context_of(directory: Path) -> int | None:
    """Returns max_position_embeddings; None if the model has no such bound, or the directory no configuration of a model."""
    if not (directory / "config.json").exists():
        return None
    try:
        return longest_of(config_of(directory))
    except ValueError:  # a family that transformers does not know: its tokenizer is enough for a preview
        return None


def longest_of(config: PreTrainedConfig) -> int | None:
    """Returns the most tokens that a model of this configuration is made for; None if it has no such bound."""
    length = getattr(config.get_text_config(), "max_position_embeddings", None)
    return length if isinstance(length, int) and length > 0 else None
