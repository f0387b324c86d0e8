"""The chat templates of a tokenizer, of which some have several: `default`, `tool_use`, `rag`."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from components.errors import InputError
from components.experiment.spec import ChatFormatSpec

DEFAULT = "default"


def template_of(tokenizer: PreTrainedTokenizerBase, name: str | None) -> str:
    """Returns the template of this name; without a name the default one. Raises InputError if there is none."""
    templates = templates_of(tokenizer)
    if not templates:
        raise InputError("chat_format template: the tokenizer has no chat template; chat_format: chatml needs none")
    wanted = name or DEFAULT
    if wanted not in templates:
        key = (
            f"chat_template={name}: the tokenizer has none of that name" if name else "the tokenizer has no default one"
        )
        raise InputError(f"{key}; choose one by chat_template: {', '.join(templates)}")
    return templates[wanted]


def templates_of(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """Returns the templates by name; a single one is the default."""
    given = tokenizer.chat_template
    return dict(given) if isinstance(given, dict) else {DEFAULT: given} if given else {}


def templates_in_use(template: str, spec: ChatFormatSpec) -> str | dict[str, str]:
    """Returns a template as a tokenizer has it so that it is used under each name: its own one, and none."""
    return template if spec.template in (None, DEFAULT) else {DEFAULT: template, spec.template: template}
