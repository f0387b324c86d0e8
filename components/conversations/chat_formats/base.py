"""What the rest of the house may know about a chat format; the formats live in components/conversations/formats/."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from components.conversations.chat_formats.rendered import RenderedConversation
from components.conversations.messages import Conversation, Message


class ChatFormat(Protocol):
    """Turns messages into tokens, the same way for training and for talking."""

    name: str
    stop_token_ids: tuple[int, ...]
    pad_token_id: int
    template: str  # Jinja, for those who have the tokenizer without this house

    def digest(self) -> str:
        """Changes when any conversation could render otherwise: tokenizer, template and format version go in."""
        ...

    def render(self, conversation: Conversation) -> RenderedConversation:
        """Whole conversation, not truncated. Raises ValueError naming conversation.source if it has no target."""
        ...

    def prompt(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] = ()) -> list[int]:
        """Tokens up to where the assistant starts to speak: a prefix of `render` of the same messages and an answer."""
        ...

    def decode(self, token_ids: Sequence[int]) -> str:
        """What the assistant said, for people, without the stop token."""
        ...

    def words(self, token_ids: Sequence[int]) -> str:
        """The words of an answer that is still being made, as far as they can no longer become part of a tool call."""
        ...

    def message(self, token_ids: Sequence[int]) -> Message:
        """The same as a message of the conversation, tool calls apart where the format has them."""
        ...
