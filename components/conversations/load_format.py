"""The chat format for the model in a directory: by its tokenizer, and by the tokens that end its generations."""

from __future__ import annotations

from pathlib import Path

from components.conversations.chat_formats import load_chat_format
from components.conversations.chat_formats.chat_format import ChatFormat
from components.conversations.tokenizers.load_tokenizer import end_token_ids, load_tokenizer
from components.experiment.spec import ChatFormatSpec


def format_spec_in(directory: Path, spec: ChatFormatSpec | str) -> ChatFormatSpec:
    """Returns the spec with the end tokens of the model in this directory, unless it has some."""
    spec = ChatFormatSpec.of(spec)
    if spec.end_token_ids is not None:
        return spec
    return spec.model_copy(update={"end_token_ids": end_token_ids(directory)})


def load_format_of(directory: Path, spec: ChatFormatSpec | str = "auto") -> ChatFormat:
    """Returns the format. Raises InputError as load_chat_format does."""
    return load_chat_format(load_tokenizer(directory), format_spec_in(directory, spec))
