"""Loads a tokenizer from a local directory or the hub, without running its code."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from components.conversations.tokenizers.chatglm3 import is_original, load_original_tokenizer
from components.errors import InputError
from components.storage.foreign_files import explain_foreign, read_object

MOST_TOKENS = 2**31  # tokenizers' ids are no larger


def load_tokenizer(path: str | Path, revision: str | None = None) -> PreTrainedTokenizerBase:
    """Loads a tokenizer; ChatGLM3's is converted from its tokenizer.model. Raises InputError if it cannot be loaded."""
    if is_original(path):
        return load_original_tokenizer(Path(path))
    with explain_foreign(f"model.path={path}", "no tokenizer can be loaded from there"):
        return AutoTokenizer.from_pretrained(str(path), revision=revision, trust_remote_code=False)


def end_token_ids(directory: Path) -> tuple[int, ...]:
    """Returns the tokens that end a generation by generation_config.json; nothing if there is none, or it names none."""
    file = directory / "generation_config.json"
    given = read_object(file).get("eos_token_id") if file.is_file() else None
    ends = given if isinstance(given, list) else [] if given is None else [given]
    if not all(isinstance(end, int) and not isinstance(end, bool) and 0 <= end < MOST_TOKENS for end in ends):
        raise InputError(
            f"{file}: eos_token_id must be the number of a token, or a list of them, not {str(given)[:80]}"
        )
    return tuple(ends)
