"""Keys that no reader knows: in a message they are problems, in a whole record they are counted."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

IGNORE_ADVICE = "data.unknown_keys=ignore reads on without it"
_TWO_MEANINGS = "some tools mean scored by it, others not scored; say train: true or train: false"
_PARTS_OF_A_MESSAGE = "a message is scored as a whole here (loss, weight or train)"
_ONLY_TEXT = "only text can be trained on"
TEMPLATE_ARGUMENTS = ("chat_template_kwargs", "chat_template_arguments")
# Keys that have a meaning in other tools, and what to do instead.
HINTS = {
    "mask": _TWO_MEANINGS,
    "loss_mask": _TWO_MEANINGS,
    "masked": _TWO_MEANINGS,
    "loss_scale": 'the weight of a message is "loss"',
    "train_on_input": "only an assistant's words are scored",
    "train_on_inputs": "only an assistant's words are scored",
    "train_detail": _PARTS_OF_A_MESSAGE,
    "training_detail": _PARTS_OF_A_MESSAGE,
    **dict.fromkeys(
        ("reasoning_content", "reasoning", "thinking", "function_call"), "only an assistant's message has one"
    ),
    **dict.fromkeys(("tools", "functions"), "only the record, or its first system message, has them"),
    "tool_call_id": "only a tool's result has one",
    "metadata": "in ChatGLM3's records it is a text that names the tool an assistant calls, one of the record's tools",
    "image": _ONLY_TEXT,
    "images": _ONLY_TEXT,
    "video": _ONLY_TEXT,
    "videos": _ONLY_TEXT,
    "audio": _ONLY_TEXT,
    "audios": _ONLY_TEXT,
    **dict.fromkeys(TEMPLATE_ARGUMENTS, "the experiment gives them, for all conversations: chat_template_arguments"),
    "documents": "no chat format here shows documents; write them into a message",
}
# On a whole record these would change what is trained, so they are problems.
MEANT_FOR_MESSAGES = ("loss", "weight", "train", "training")
OF_A_RECORD = ("image", "images", "video", "videos", "audio", "audios", *TEMPLATE_ARGUMENTS, "documents", "mask")


@dataclass(frozen=True, slots=True, kw_only=True)
class UnknownKey:
    """`where` counts equal keys together (`message.timestamp`); `text` describes this occurrence."""

    where: str
    text: str


def is_absent(value: Any) -> bool:
    """Whether a value is null or empty, as for missing keys in tables and in replies of servers."""
    if isinstance(value, dict):
        return all(item is None for item in value.values())
    return value is None or (isinstance(value, str | list | tuple) and not value)


def unknown_keys(
    mapping: dict[str, Any], known: Collection[str], *, of: str, what: str = "has"
) -> Iterator[UnknownKey]:
    """Yields every unknown key with a value; `of` says what has the key, for counting."""
    for key, value in mapping.items():
        if key not in known and not is_absent(value):
            yield UnknownKey(
                where=f"{of}.{key}", text=f'{what} the unknown key "{key}"{_hint(key, known)} ({IGNORE_ADVICE})'
            )


def keys_of_record(record: dict[str, Any], known: Collection[str]) -> tuple[list[UnknownKey], list[str]]:
    """Returns (keys that would change what is trained, keys that change no token).

    The former are misspellings of known keys that are missing, and keys whose meaning would be lost. All others are notes
    about the record: its id, its source, tags.
    """
    meant, notes = [], []
    missing = tuple(key for key in known if is_absent(record.get(key)))
    for key, value in record.items():
        if key in known or is_absent(value):
            continue
        if key in MEANT_FOR_MESSAGES:
            text = f'has "{key}" for the whole record; say it on its messages ({IGNORE_ADVICE})'
        elif key in OF_A_RECORD or _is_nearly(key, missing):
            text = f'has the unknown key "{key}"{_hint(key, missing)} ({IGNORE_ADVICE})'
        else:
            notes.append(key)
            continue
        meant.append(UnknownKey(where=f"record.{key}", text=text))
    return meant, notes


def unused_keys_sentences(unused: dict[str, int], ignored: dict[str, int]) -> list[str]:
    """Describes keys of records that change no token, and keys ignored on request, with numbers of conversations."""
    counts = {"keys of records that change no token": unused, "unknown keys ignored": ignored}
    return [
        f"{what}: {', '.join(f'{key} ({count:,})' for key, count in keys.items())}"
        for what, keys in counts.items()
        if keys
    ]


@lru_cache(maxsize=1024)  # records of a file have the same keys
def _is_nearly(key: str, known: tuple[str, ...]) -> bool:
    """Whether a key is a misspelling. A key that is longer by a word (`history_id`) is another key."""
    near = difflib.get_close_matches(key.lower(), known, n=1, cutoff=0.85)
    return bool(near) and abs(len(near[0]) - len(key)) <= 2


def _hint(key: str, known: Collection[str]) -> str:
    if key in HINTS:
        return f"; {HINTS[key]}"
    nearest = difflib.get_close_matches(key.lower(), known, n=1, cutoff=0.6)
    return f'; did you mean "{nearest[0]}"?' if nearest else ""
