"""Loads a tokenizer from a local directory or the hub, without running its code."""

from __future__ import annotations

import json
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from components.conversations.tokenizers.chatglm3 import is_original, load_original_tokenizer
from components.errors import InputError


def load_tokenizer(path: str | Path, revision: str | None = None) -> PreTrainedTokenizerBase:
    """Loads a tokenizer; ChatGLM3's is converted from its tokenizer.model. Raises InputError if it cannot be loaded."""
    if is_original(path):
        return load_original_tokenizer(Path(path))
    try:
        return AutoTokenizer.from_pretrained(str(path), revision=revision, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"model.path={path}: no tokenizer can be loaded from there: {reason}") from None


def end_token_ids(directory: Path) -> tuple[int, ...]:
    """Returns the tokens that end a generation by generation_config.json; nothing if there is none, or it names none."""
    file = directory / "generation_config.json"
    ends = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id") if file.is_file() else None
    return tuple(ends) if isinstance(ends, list) else () if ends is None else (int(ends),)
