"""What a model is asked, so that its answers can be scored: the last question of conversations, with all before it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from components.conversations.chat_formats.chat_format import ChatFormat
from components.conversations.messages import Conversation, Message
from components.data.fixed_sample import fixed_sample
from components.data.token_store import TokenStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A conversation up to a question, and what was answered there.

    `index` is the conversation's number in its split or list. `prompt` are the tokens of `history`. `reference` is None
    where nobody answered, as for probes. `expect` is what the answer should hold, as the record has it.
    """

    index: int
    history: tuple[Message, ...]
    prompt: tuple[int, ...]
    reference: Message | None = None
    tools: tuple[dict[str, Any], ...] = ()
    expect: str | None = None
    source: str = ""


def questions_of(
    conversations: Iterable[tuple[int, Conversation]], chat_format: ChatFormat, *, longest_prompt: int | None = None
) -> list[Question]:
    """Returns the last question of each (index, conversation), with the true history before it.

    Of a conversation that ends with an answer it is the question of the last answer that is scored: its `loss` is above 0.
    Where the prompt would have more than `longest_prompt` tokens, the last answer that has less before it is taken. A
    conversation without one is left out.
    """
    found = (
        _question(index, conversation, chat_format, longest_prompt or 2**62) for index, conversation in conversations
    )
    return [question for question in found if question is not None]


def _question(index: int, conversation: Conversation, chat_format: ChatFormat, longest: int) -> Question | None:
    messages = conversation.messages
    asked = [len(messages)] if messages[-1].role != "assistant" else _answers(messages)
    for end in asked:
        prompt = chat_format.prompt(messages[:end], conversation.tools)
        if len(prompt) <= longest:
            return Question(
                index=index,
                history=messages[:end],
                prompt=tuple(prompt),
                reference=messages[end] if end < len(messages) else None,
                tools=conversation.tools,
                expect=conversation.expect,
                source=conversation.source,
            )
    return None


def _answers(messages: Sequence[Message]) -> list[int]:
    """Returns the positions of the scored answers, the last one first."""
    return [
        position
        for position in reversed(range(1, len(messages)))
        if messages[position].role == "assistant" and messages[position].loss_weight > 0
    ]


def generation_set(store: TokenStore, count: int) -> list[tuple[int, Conversation]]:
    """Returns (index, conversation) of at most `count` conversations, in order, as fixed_sample chooses them.

    The store must keep the text, as held-out ones do.
    """
    texts = ((index, store.conversation(index)) for index in fixed_sample(store, count))
    return [(index, conversation) for index, conversation in texts if conversation is not None]
