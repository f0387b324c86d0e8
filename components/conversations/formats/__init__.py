"""Chat formats by name. A new one is a file here and a line in FORMATS."""

from __future__ import annotations

from collections.abc import Callable

from transformers import PreTrainedTokenizerBase

from components.conversations.chat_format import ChatFormat
from components.conversations.formats.chatml import chatml_of
from components.conversations.formats.template import TemplateFormat


def _template(tokenizer: PreTrainedTokenizerBase) -> ChatFormat:
    if not tokenizer.chat_template:
        raise ValueError("chat_format template: the tokenizer has no chat template; chat_format: chatml needs none")
    return TemplateFormat(tokenizer, name="template", template=tokenizer.get_chat_template())


def _chatml(tokenizer: PreTrainedTokenizerBase) -> ChatFormat:
    return TemplateFormat(tokenizer, name="chatml", template=chatml_of(tokenizer))


def _auto(tokenizer: PreTrainedTokenizerBase) -> ChatFormat:
    return _template(tokenizer) if tokenizer.chat_template else _chatml(tokenizer)


FORMATS: dict[str, Callable[[PreTrainedTokenizerBase], ChatFormat]] = {
    "auto": _auto,
    "template": _template,
    "chatml": _chatml,
}


def load_chat_format(tokenizer: PreTrainedTokenizerBase, name: str = "auto") -> ChatFormat:
    """Raises ValueError for an unknown name, or if the format is not proven fit to train on."""
    if name not in FORMATS:
        raise ValueError(f"chat_format={name}: unknown; valid are {', '.join(FORMATS)}")
    return FORMATS[name](tokenizer)
