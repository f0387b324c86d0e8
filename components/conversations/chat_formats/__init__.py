"""Chat formats by name. A new format is a file here and a line in FORMATS."""

from __future__ import annotations

from collections.abc import Callable

from transformers import PreTrainedTokenizerBase

from components.conversations.chat_formats.chat_format import ChatFormat
from components.conversations.chat_formats.chatglm3 import ChatGLM3Format, is_chatglm3
from components.conversations.chat_formats.chatml import chatml_of
from components.conversations.chat_formats.jinja_template import TemplateFormat
from components.errors import InputError


def _template(tokenizer: PreTrainedTokenizerBase) -> ChatFormat:
    if not tokenizer.chat_template:
        raise InputError("chat_format template: the tokenizer has no chat template; chat_format: chatml needs none")
    return TemplateFormat(tokenizer, name="template", template=tokenizer.get_chat_template())


def _chatml(tokenizer: PreTrainedTokenizerBase) -> ChatFormat:
    return TemplateFormat(tokenizer, name="chatml", template=chatml_of(tokenizer))


def _chatglm3(tokenizer: PreTrainedTokenizerBase) -> ChatFormat:
    return ChatGLM3Format(tokenizer, name="chatglm3", ends_turns=False)


def _chatglm3_base_tuning(tokenizer: PreTrainedTokenizerBase) -> ChatFormat:
    return ChatGLM3Format(tokenizer, name="chatglm3_base_tuning", ends_turns=True)


def _auto(tokenizer: PreTrainedTokenizerBase) -> ChatFormat:
    if is_chatglm3(tokenizer):
        return _chatglm3(tokenizer)
    return _template(tokenizer) if tokenizer.chat_template else _chatml(tokenizer)


FORMATS: dict[str, Callable[[PreTrainedTokenizerBase], ChatFormat]] = {
    "auto": _auto,
    "template": _template,
    "chatml": _chatml,
    "chatglm3": _chatglm3,
    "chatglm3_base_tuning": _chatglm3_base_tuning,
}


def load_chat_format(tokenizer: PreTrainedTokenizerBase, name: str = "auto") -> ChatFormat:
    """Returns a format by name. Raises InputError for an unknown name, or if the format cannot be trained on correctly."""
    if name not in FORMATS:
        raise InputError(f"chat_format={name}: unknown; valid are {', '.join(FORMATS)}")
    return FORMATS[name](tokenizer)
