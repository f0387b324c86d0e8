"""The interface of chat formats. Other rooms know no more of a format than this."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from components.conversations.chat_formats.rendered import RenderedConversation
from components.conversations.messages import Conversation, Message


class ChatFormat(Protocol):
    """Turns messages into tokens, in the same way for training and for generation."""

    name: str
    stop_token_ids: tuple[int, ...]
    pad_token_id: int
    template: str  # Jinja, saved with the tokenizer for programs without Turnwise

    @property
    def scores_thoughts(self) -> bool:
        """Returns whether reasoning is scored where a message has some. A format that knows none takes it for words."""
        ...

    @property
    def written_date(self) -> str | None:
        """Returns the date that is written as today's in every conversation; None if there is none."""
        ...

    def digest(self) -> str:
        """Changes whenever some conversation could be rendered differently: it covers tokenizer, template and version."""
        ...

    def ahead(self, conversations: Sequence[Conversation]) -> AbstractContextManager[None]:
        """Prepares many conversations together, which is faster: inside this context `render` is given the same objects."""
        ...

    def render(self, conversation: Conversation) -> RenderedConversation:
        """Renders a whole conversation, not truncated. Raises InputError naming conversation.source if it has no target."""
        ...

    def prompt(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] = ()) -> list[int]:
        """Returns the tokens before the assistant's answer: a prefix of `render` of the same messages with an answer."""
        ...

    def decode(self, token_ids: Sequence[int]) -> str:
        """Returns the text of an answer for users, without the stop token."""
        ...

    def words(self, token_ids: Sequence[int]) -> str:
        """Returns the text of an unfinished answer that can no longer become part of a tool call."""
        ...

    def message(self, token_ids: Sequence[int]) -> Message:
        """Returns the answer as a message, with tool calls parsed if the format has them."""
        ...
