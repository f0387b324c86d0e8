"""A conversation with a model, turn by turn, results of the tools that it calls included."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from components.conversations.messages import Message
from components.conversations.openai_messages import openai_call
from components.inference.generate import check_options, stream_reply
from components.models.load_trained import LoadedModel


class ChatSession:
    """`messages` is the conversation so far.

    Args:
        system: a system message before the conversation.
        tools: JSON Schemas of the functions that the model may call, as in training data.
        max_new_tokens: at most so many in each reply.
        temperature: 0 is greedy.

    Raises InputError for options that no reply can have.
    """

    def __init__(
        self,
        model: LoadedModel,
        *,
        system: str | None = None,
        tools: Sequence[dict[str, Any]] = (),
        max_new_tokens: int = 256,
        temperature: float = 0.0,
    ) -> None:
        self.model, self.system, self.tools = model, system, tools
        check_options(max_new_tokens=max_new_tokens, temperature=temperature)
        self.max_new_tokens, self.temperature = max_new_tokens, temperature
        self.reset()

    @property
    def pending_calls(self) -> list[str]:
        """Names of the functions that the model has called and that have no result yet."""
        results = 0
        while results < len(self.messages) and self.messages[-1 - results].role == "tool":
            results += 1
        calls = self.messages[-1 - results].tool_calls if results < len(self.messages) else ()
        return [openai_call(call)[0] for call in calls][results:]

    def reset(self) -> None:
        """Starts a new conversation."""
        self.messages = [Message(role="system", content=self.system)] if self.system else []

    def send(self, text: str) -> Iterator[str] | None:
        """Adds the result of the first pending call or, where there is none, a question.

        Returns the pieces of the model's reply, which joins the conversation once they are exhausted; None if the model
        waits for the results of further calls.
        """
        if pending := self.pending_calls:
            self.messages.append(Message(role="tool", content=text, name=pending[0]))
            if len(pending) > 1:
                return None
        else:
            self.messages.append(Message(role="user", content=text))
        return self._reply()

    def take_back(self) -> None:
        """Removes a question or result whose reply was not completed."""
        if self.messages and self.messages[-1].role in ("user", "tool"):
            self.messages.pop()

    def _reply(self) -> Iterator[str]:
        reply = yield from stream_reply(
            self.model,
            self.messages,
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            tools=self.tools,
        )
        self.messages.append(reply.message)
