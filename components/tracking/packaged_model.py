"""The registered model as MLflow runs it: OpenAI chat messages in, a chat completion out.

MLflow reads this file from inside the version ("models from code"), with components/ beside it, wherever it is loaded.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

from mlflow.models import set_model
from mlflow.pyfunc import ChatModel
from mlflow.types.llm import (
    ChatChoice,
    ChatChoiceDelta,
    ChatChunkChoice,
    ChatCompletionChunk,
    ChatCompletionResponse,
    ChatMessage,
    ChatParams,
    TokenUsageStats,
)

from components.conversations.messages import Message, Role
from components.models.trained import LoadedModel, load_trained
from components.training.generate import reply_to, stream_reply

PACKAGE = "package"
MODEL = "turnwise"
MAX_TOKENS = 256  # where a request does not say
NOT_HONORED = ("stop", "top_k", "frequency_penalty", "presence_penalty")


class PackagedChatModel(ChatModel):  # type: ignore[misc]
    """Answers with the assistant's next message, and refuses what it cannot honor.

    temperature (0 is greedy; MLflow sends 1 where a request says nothing), top_p, max_tokens and tools are honored.
    """

    loaded: LoadedModel

    def load_context(self, context: Any) -> None:
        self.loaded = load_trained(Path(context.artifacts[PACKAGE]))

    def predict(self, context: Any, messages: list[ChatMessage], params: ChatParams) -> ChatCompletionResponse:
        reply = reply_to(self.loaded, _messages(messages), **_settings(params))
        choice = ChatChoice(
            message=ChatMessage(role="assistant", content=reply.text),
            finish_reason="stop" if reply.stopped else "length",
        )
        usage = TokenUsageStats(
            prompt_tokens=reply.prompt_tokens,
            completion_tokens=reply.new_tokens,
            total_tokens=reply.prompt_tokens + reply.new_tokens,
        )
        return ChatCompletionResponse(choices=[choice], usage=usage, model=MODEL)

    def predict_stream(
        self, context: Any, messages: list[ChatMessage], params: ChatParams
    ) -> Iterator[ChatCompletionChunk]:
        for piece in stream_reply(self.loaded, _messages(messages), **_settings(params)):
            choice = ChatChunkChoice(delta=ChatChoiceDelta(content=piece))
            yield ChatCompletionChunk(choices=[choice], model=MODEL)
        yield ChatCompletionChunk(
            choices=[ChatChunkChoice(delta=ChatChoiceDelta(content=""), finish_reason="stop")], model=MODEL
        )


def _settings(params: ChatParams) -> dict[str, Any]:
    refused = [name for name in NOT_HONORED if getattr(params, name)] + (["n"] if params.n != 1 else [])
    if refused:
        raise ValueError(f"{', '.join(refused)}: not supported; leave it out")
    return {
        "max_new_tokens": params.max_tokens or MAX_TOKENS,
        "temperature": params.temperature,
        "top_p": 1.0 if params.top_p is None else params.top_p,
        "tools": [tool.to_dict() for tool in params.tools or ()],
    }


def _messages(messages: Sequence[ChatMessage]) -> list[Message]:
    if not messages:
        raise ValueError("messages: empty; the last one should be the user's question")
    return [_message(number, message) for number, message in enumerate(messages, start=1)]


def _message(number: int, message: ChatMessage) -> Message:
    if message.role not in get_args(Role):
        raise ValueError(f"message {number} is from {message.role!r}; roles are {', '.join(get_args(Role))}")
    if not isinstance(message.content, str | None):
        raise ValueError(f"message {number}: content must be text")
    return Message(
        role=message.role,
        content=message.content or "",
        tool_calls=tuple(asdict(call) for call in message.tool_calls or ()),
        tool_call_id=message.tool_call_id,
        name=message.name,
    )


def offer() -> None:
    """Makes a model that holds no weights yet the one MLflow will load."""
    with warnings.catch_warnings():
        # MLflow would rather see a ResponsesAgent, which does not speak chat completions; a version pins its MLflow.
        warnings.simplefilter("ignore", FutureWarning)
        set_model(PackagedChatModel())


offer()
