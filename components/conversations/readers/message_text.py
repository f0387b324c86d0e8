"""The text of a message: its content, OpenAI's text parts joined, or the JSON text of a tool's result."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from components.conversations.readers.message_forms import THOUGHTS
from components.conversations.readers.raw_message import Raw
from components.conversations.readers.strict_json import faults_of
from components.conversations.readers.unknown_keys import UnknownKey, unknown_keys

PART_KEYS = ("type", "text")
MAY_BE_EMPTY = ("system", "tool")  # an empty system message replaces the template's default; a tool may have no result


def message_text(keys: Raw, role: Any, *, calls: bool) -> tuple[str, list[str], list[UnknownKey]]:
    """Returns (text, problems, unknown keys of parts). That a message says nothing is a problem, too."""
    content = keys.get("content")
    if calls and (content is None or content == []):
        return "", [], []
    text, problems, unknown = content_text(content, role)
    if not problems and not text.strip() and not calls and role not in MAY_BE_EMPTY:
        problems = [f'from "{role}" is empty']
    return text, problems, unknown


def content_text(content: Any, role: Any) -> tuple[str, list[str], list[UnknownKey]]:
    """Returns (text, problems, unknown keys of parts)."""
    if isinstance(content, list) and _is_parts(content, role):
        return _join_parts(content, role)
    if role == "tool" and content is not None and not isinstance(content, str):
        faults = [f"has a result that JSON cannot say: {fault}" for fault in faults_of(content)]
        return ("", faults, []) if faults else (json.dumps(content, ensure_ascii=False), [], [])
    if not isinstance(content, str):
        return "", [f"must have a text as content, not {type(content).__name__}"], []
    return content, [], []


def _is_parts(content: list[Any], role: Any) -> bool:
    """Whether content is a list of parts. A tool's result may be any list; it has parts if each has their keys."""
    if not (content and all(isinstance(part, dict) for part in content)):
        return False
    return role != "tool" or all(isinstance(part.get("type"), str) and part["type"] in part for part in content)


def _join_parts(parts: list[Raw], role: Any) -> tuple[str, list[str], list[UnknownKey]]:
    if problems := list(_part_problems(parts, role)):
        return "", problems, []
    unknown = [
        key
        for number, part in enumerate(parts, start=1)
        for key in unknown_keys(part, PART_KEYS, of="part", what=f"has, in part {number} of its content,")
    ]
    return "".join(part["text"] for part in parts), [], unknown


def _part_problems(parts: list[Raw], role: Any) -> Iterator[str]:
    for number, part in enumerate(parts, start=1):
        kind = _kind_of(part)
        if kind == "text" and isinstance(part.get("text"), str):
            continue
        rule = (
            "an assistant's thoughts are texts, come before what it says, and are given once"
            if role == "assistant" and kind in THOUGHTS
            else 'only text ("text") can be trained on'
        )
        yield f"has {kind!r} as part {number} of its content; {rule}"


def _kind_of(part: Raw) -> Any:
    """Returns the type of a part. One without a type is a text, or what its key says: {"image": ...}."""
    return part.get("type") or ("text" if "text" in part else next(iter(part), "text"))
