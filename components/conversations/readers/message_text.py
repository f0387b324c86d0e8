"""The text of a message: its content, OpenAI's text parts joined, or the JSON text of a tool's result."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from components.conversations.readers.raw_message import Raw
from components.conversations.readers.strict_json import faults_of
from components.conversations.readers.unknown_keys import UnknownKey, unknown_keys

PART_KEYS = ("type", "text")
MAY_BE_EMPTY = ("system", "tool")  # an empty system message replaces the template's default; a tool may have no result


def message_text(keys: Raw, role: Any, *, calls: bool) -> tuple[str, list[str], list[UnknownKey]]:
    """Returns (text, problems, unknown keys of parts)."""
    content = keys.get("content")
    if content is None and calls:
        return "", [], []
    if isinstance(content, list) and _is_parts(content, role):
        return _join_parts(content, role, calls=calls)
    if role == "tool" and content is not None and not isinstance(content, str):
        faults = [f"has a result that JSON cannot say: {fault}" for fault in faults_of(content)]
        return ("", faults, []) if faults else (json.dumps(content, ensure_ascii=False), [], [])
    if not isinstance(content, str):
        return "", [f"must have a text as content, not {type(content).__name__}"], []
    return content, list(_emptiness_problem(content, role, calls=calls)), []


def _is_parts(content: list[Any], role: Any) -> bool:
    """Whether content is a list of parts. A tool's result may be any list; it has parts if each has their keys."""
    if not (content and all(isinstance(part, dict) for part in content)):
        return False
    return role != "tool" or all(isinstance(part.get("type"), str) and part["type"] in part for part in content)


def _join_parts(parts: list[Raw], role: Any, *, calls: bool) -> tuple[str, list[str], list[UnknownKey]]:
    problems: list[str] = []
    unknown: list[UnknownKey] = []
    for number, part in enumerate(parts, start=1):
        kind = part.get("type", "text")
        if kind != "text" or not isinstance(part.get("text"), str):
            problems.append(f'has {kind!r} as part {number} of its content; only text ("text") can be trained on')
        unknown += unknown_keys(part, (*PART_KEYS, str(kind)), of="part", what=f"has, in part {number} of its content,")
    if problems:
        return "", problems, unknown
    text = "".join(part["text"] for part in parts)
    return text, list(_emptiness_problem(text, role, calls=calls)), unknown


def _emptiness_problem(content: str, role: Any, *, calls: bool) -> Iterator[str]:
    if not content.strip() and not calls and role not in MAY_BE_EMPTY:
        yield f'from "{role}" is empty'
