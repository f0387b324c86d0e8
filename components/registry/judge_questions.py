"""What a judge is shown answers to: the last questions of held-out conversations."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from components.conversations.messages import Conversation
from components.data.token_store import TokenStore
from components.registry.probes import Probe, ProbeMessage

SPOKEN = ("system", "user", "assistant")


def questions_of(store: TokenStore, count: int) -> tuple[Probe, ...]:
    """Returns the last question of each of the first `count` conversations that have one in words alone."""
    return tuple(islice(_questions(store), max(0, count)))


def _questions(store: TokenStore) -> Iterator[Probe]:
    for index in range(len(store)):
        conversation = store.conversation(index)
        messages = () if conversation is None else _before_last_answer(conversation)
        if messages and messages[-1]["role"] == "user":
            yield Probe(messages=messages)


def _before_last_answer(conversation: Conversation) -> tuple[ProbeMessage, ...]:
    """Returns nothing if tools are in play: a probe holds words only."""
    *before, _ = conversation.messages
    if conversation.tools or any(each.role not in SPOKEN or each.tool_calls for each in conversation.messages):
        return ()
    return tuple(ProbeMessage(role=each.role, content=each.content) for each in before)  # type: ignore[typeddict-item]
