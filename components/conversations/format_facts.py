"""What a search records about its chat format, and what it says of it."""

from __future__ import annotations

import json

from components.conversations.chat_formats.chat_format import ChatFormat
from components.experiment.spec import ChatFormatSpec


def format_facts(spec: ChatFormatSpec, chat_format: ChatFormat) -> dict[str, str]:
    """Returns tags: the format by name, and what else decides its text, where that applies."""
    arguments = json.dumps(spec.arguments, ensure_ascii=False, sort_keys=True) if spec.arguments else None
    facts = {
        "turnwise.chat_format": spec.name,
        "turnwise.chat_template": spec.template,
        "turnwise.chat_template_arguments": arguments,
        "turnwise.template_date": chat_format.written_date,
    }
    return {key: value for key, value in facts.items() if value is not None}


def date_remarks(chat_format: ChatFormat) -> list[str]:
    """Returns a sentence about the date in every conversation, if there is one."""
    date = chat_format.written_date
    return [f"The chat template writes today's date: in training and in use it is {date}"] if date else []
