"""Finds the turns of a long conversation in one rendering, instead of two for each turn.

Rendering up to each turn takes time that grows with the square of their number. If a template only appends, each turn lies in
the whole text; where, is seen by rendering once more with a private character before and after what the assistant says.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from components.conversations.chat_formats.assistant_turns import AssistantTurn, TurnReader
from components.conversations.chat_formats.control_tokens import PRIVATE_USE
from components.conversations.chat_formats.template_dialect import Raw
from components.errors import InputError

MAX_TURNS_RENDERED = 32  # of a conversation; of a longer one this many are compared with the rendering up to them


def find_turns(
    reader: TurnReader, raw: Sequence[Raw], tools: list[Any], positions: Sequence[int], source: str
) -> list[AssistantTurn] | None:
    """Returns the turns at `positions`. None if they must be rendered one by one: the template does not only append.

    Raises InputError if one of the turns that are compared cannot be rendered.
    """
    if not _says_words_only(reader, raw):
        return None
    exact = {at: reader.turn(raw, tools, at, source) for at in (positions[number] for number in sample(len(positions)))}
    whole = reader.renderer.write(raw, tools, source)
    found = _turns_in(whole, reader, raw, tools, positions, exact[positions[0]], source)
    if found is None or any(exact.get(turn.position, turn) != turn for turn in found):
        return None
    return found


def sample(count: int) -> Sequence[int]:
    """Returns MAX_TURNS_RENDERED numbers below `count`, evenly, with the first and the last; all if there are no more."""
    if count <= MAX_TURNS_RENDERED:
        return range(count)
    return sorted({round(step * (count - 1) / (MAX_TURNS_RENDERED - 1)) for step in range(MAX_TURNS_RENDERED)})


def _says_words_only(reader: TurnReader, raw: Sequence[Raw]) -> bool:
    """Whether no turn has a thought, which a template may write in one place or another."""
    style, key = reader.thoughts, reader.reasoning_key
    if style is None:
        return True
    return not style.is_hidden and not any(message.get(str(key)) for message in raw)


def _turns_in(
    whole: str,
    reader: TurnReader,
    raw: Sequence[Raw],
    tools: list[Any],
    positions: Sequence[int],
    first: AssistantTurn,
    source: str,
) -> list[AssistantTurn] | None:
    before, after = _unused(whole)
    if not before:
        return None
    wrapped = [_wrap(message, before, after) if message["role"] == "assistant" else message for message in raw]
    try:
        marked = reader.renderer.write(wrapped, tools, source)
        asks = first.prompt[len(reader.renderer.write(raw[: first.position], tools, source)) :]
    except InputError:
        return None
    words = _spans(marked, before, after)
    if marked.replace(before, "").replace(after, "") != whole or len(words) != len(positions) or not asks:
        return None
    turns, ended = [], 0
    for position, (begin, end) in zip(positions, words, strict=True):
        turn = _turn(whole, reader, raw, position, whole.rfind(asks, ended, begin) + len(asks), end)
        if turn is None or not ended < turn.start <= begin:
            return None
        turns.append(turn)
        ended = len(turn.text) - 1
    return turns


def _turn(
    whole: str, reader: TurnReader, raw: Sequence[Raw], position: int, start: int, end: int
) -> AssistantTurn | None:
    behind = reader.stops.added_behind(raw, position)
    wanted = behind or reader.stops.written_behind(raw[position])
    stop = whole.find(wanted, end)
    if stop < 0 and behind and position == len(raw) - 1:
        whole, stop = whole + behind, len(whole)
    if stop < 0:
        return None
    text = whole[: stop + len(wanted)]
    last_token = text.rfind(reader.renderer.added.last_in(wanted), stop)
    return AssistantTurn(position=position, text=text, start=start, answer=start, end_of_words=stop, stop=last_token)


def _wrap(message: Raw, before: str, after: str) -> Raw:
    """Puts private characters around the words of a message; around the names of its calls if it has no words."""
    content = message["content"]
    if words := content.strip():
        return {**message, "content": content.replace(words, f"{before}{words}{after}", 1)}
    if not message.get("tool_calls"):
        return message
    names = [call["function"]["name"] for call in message["tool_calls"]]
    names[0] = before + names[0]
    names[-1] = names[-1] + after
    calls = [
        {**call, "function": {**call["function"], "name": name}}
        for call, name in zip(message["tool_calls"], names, strict=True)
    ]
    return {**message, "tool_calls": calls}


def _spans(marked: str, before: str, after: str) -> list[tuple[int, int]]:
    """Returns where the words between the private characters are once these are taken out."""
    spans, at = [], 0
    for number, begin in enumerate(position for position, letter in enumerate(marked) if letter == before):
        end = marked.find(after, begin)
        spans.append((begin - 2 * number, end - 2 * number - 1))
        at = end
    return spans if at >= 0 else []


def _unused(text: str) -> tuple[str, str]:
    """Returns two private characters that the text does not have."""
    letters = set(text)
    free = [chr(code) for code in PRIVATE_USE if chr(code) not in letters][-2:]
    return (free[0], free[1]) if len(free) == 2 else ("", "")
