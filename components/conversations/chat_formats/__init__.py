"""Chat formats by name. A new format is a file here and a line in FORMATS."""

from __future__ import annotations

import copy
from collections.abc import Callable

from transformers import PreTrainedTokenizerBase

from components.conversations.chat_formats.chat_format import ChatFormat
from components.conversations.chat_formats.chatglm3 import ChatGLM3Format, is_chatglm3
from components.conversations.chat_formats.chatml import chatml_of
from components.conversations.chat_formats.jinja_template import TemplateFormat
from components.conversations.chat_formats.named_templates import template_of
from components.errors import InputError
from components.experiment.spec import ChatFormatSpec

Tokenizer = PreTrainedTokenizerBase  # for rooms that hand one on


def _template(tokenizer: PreTrainedTokenizerBase, spec: ChatFormatSpec) -> ChatFormat:
    return TemplateFormat(tokenizer, spec, name="template", template=template_of(tokenizer, spec.template))


def _chatml(tokenizer: PreTrainedTokenizerBase, spec: ChatFormatSpec) -> ChatFormat:
    _check_no_template_keys(spec, "chatml")
    return TemplateFormat(tokenizer, spec, name="chatml", template=chatml_of(tokenizer))


def _chatglm3(tokenizer: PreTrainedTokenizerBase, spec: ChatFormatSpec) -> ChatFormat:
    _check_no_template_keys(spec, "chatglm3")
    return ChatGLM3Format(tokenizer, name="chatglm3", ends_turns=False)


def _chatglm3_base_tuning(tokenizer: PreTrainedTokenizerBase, spec: ChatFormatSpec) -> ChatFormat:
    _check_no_template_keys(spec, "chatglm3_base_tuning")
    return ChatGLM3Format(tokenizer, name="chatglm3_base_tuning", ends_turns=True)


def _auto(tokenizer: PreTrainedTokenizerBase, spec: ChatFormatSpec) -> ChatFormat:
    if is_chatglm3(tokenizer):
        return _chatglm3(tokenizer, spec)
    return _template(tokenizer, spec) if tokenizer.chat_template or spec.template else _chatml(tokenizer, spec)


FORMATS: dict[str, Callable[[PreTrainedTokenizerBase, ChatFormatSpec], ChatFormat]] = {
    "auto": _auto,
    "template": _template,
    "chatml": _chatml,
    "chatglm3": _chatglm3,
    "chatglm3_base_tuning": _chatglm3_base_tuning,
}


def load_chat_format(tokenizer: PreTrainedTokenizerBase, spec: ChatFormatSpec | str = "auto") -> ChatFormat:
    """Returns the format of a spec or name. Raises InputError if there is none, or it cannot be trained on correctly."""
    spec = ChatFormatSpec.of(spec)
    if spec.name not in FORMATS:
        raise InputError(f"chat_format={spec.name[:80]}: unknown; valid are {', '.join(FORMATS)}")
    return FORMATS[spec.name](tokenizer, spec)


def with_thoughts(chat_format: ChatFormat, scored: bool) -> ChatFormat:
    """Returns the format as it would be with another data.train_on_reasoning, if it knows thoughts."""
    if not isinstance(chat_format, TemplateFormat) or chat_format.spec.train_on_reasoning == scored:
        return chat_format
    other = copy.copy(chat_format)
    other.spec = chat_format.spec.model_copy(update={"train_on_reasoning": scored})
    return other


def _check_no_template_keys(spec: ChatFormatSpec, name: str) -> None:
    """Raises InputError for settings of a chat template: this format has none."""
    for key, given in {"chat_template": spec.template, "chat_template_arguments": spec.arguments}.items():
        if given:
            raise InputError(f"{key}={given}: chat_format {name} reads no chat template of the tokenizer; leave it out")
