"""Which conversations are trained on and which are held out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from components.conversations.messages import Conversation
from components.conversations.problems import Problem
from components.conversations.readers import read_conversations
from components.experiment.spec import DataSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """`left_out` says of each unusable record where it stands and what is wrong; equal conversations are only counted.

    `leaked` counts conversations that are held out and stood among those to train on, too.
    """

    train: tuple[Conversation, ...]
    eval: tuple[Conversation, ...]
    left_out: tuple[str, ...]
    duplicates: int
    leaked: int


def read_and_split(data: DataSpec) -> Split:
    """Reads all of it. Equal conversations count once, and one that is held out is never trained on.

    Raises ValueError with all that is wrong with the conversations, or if there are too few to hold any out.
    """
    read = read_conversations(data.train, format=data.format, on_bad_row=data.on_bad_row)
    conversations, duplicates = _distinct(read.conversations)
    dropped = list(read.dropped)
    if data.eval is None:
        held_out, rest = _drawn(conversations, data)
    else:
        held = read_conversations(data.eval, format=data.format, on_bad_row=data.on_bad_row)
        held_out, twice = _distinct(held.conversations)
        rest, duplicates = conversations, duplicates + twice
        dropped += held.dropped
    words_held_out = {_words(conversation) for conversation in held_out}
    train = [conversation for conversation in rest if _words(conversation) not in words_held_out]
    if not train:
        raise ValueError("data.train: every conversation is held out as well, so there is none to train on")
    return Split(
        train=tuple(train),
        eval=tuple(held_out),
        left_out=_by_record(dropped),
        duplicates=duplicates,
        leaked=len(rest) - len(train),
    )


def _by_record(problems: Sequence[Problem]) -> tuple[str, ...]:
    """One line a record, however much is wrong with it."""
    texts: dict[str, list[str]] = {}
    for problem in problems:
        texts.setdefault(f"{problem.file}, {problem.place}", []).append(problem.text)
    return tuple(f"{place}: {'; '.join(found)}" for place, found in texts.items())


def _drawn(conversations: list[Conversation], data: DataSpec) -> tuple[list[Conversation], list[Conversation]]:
    """(held out, the rest), drawn by the seed; each in the order of the file, so that its content depends on no more."""
    if len(conversations) < 2:
        raise ValueError(
            f"data.train: {len(conversations)} distinct conversation cannot be split into train and eval;"
            " add conversations, or give data.eval"
        )
    order = np.random.default_rng(data.split_seed).permutation(len(conversations)).tolist()
    count = min(max(1, round(data.eval_fraction * len(conversations))), len(conversations) - 1)
    return (
        [conversations[index] for index in sorted(order[:count])],
        [conversations[index] for index in sorted(order[count:])],
    )


def _distinct(conversations: Sequence[Conversation]) -> tuple[list[Conversation], int]:
    """(the first of each, how many more there were)."""
    first: dict[str, Conversation] = {}
    for conversation in conversations:
        weights = [message.loss for message in conversation.messages]
        first.setdefault(f"{_words(conversation)} {weights}", conversation)
    return list(first.values()), len(conversations) - len(first)


def _words(conversation: Conversation) -> str:
    """What is said, whatever of it is scored: who trained on a held-out conversation's words knows it."""
    messages = [
        [message.role, message.content, message.tool_calls, message.tool_call_id, message.name]
        for message in conversation.messages
    ]
    return json.dumps([messages, conversation.tools], sort_keys=True, ensure_ascii=False)
