"""The registered model as MLflow runs it: OpenAI chat messages in, a chat completion out.

MLflow runs this file from inside the version ("models from code"), wherever the version is loaded. Its imports are of the
package that the version brings, which has a name of its own there (own_code).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

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
    FunctionToolCallArguments,
    TokenUsageStats,
    ToolCall,
)

from components.conversations.messages import Message
from components.conversations.openai_messages import messages_of, openai_call
from components.errors import InputError
from components.inference.generate import MOST_NEW_TOKENS, reply_to, stream_reply
from components.models.base.context import longest_of
from components.models.load_trained import LoadedModel, load_trained
from components.registry.skip_load_on_save import is_being_saved
from components.scoring.reply import Reply

PACKAGE = "package"
MODEL = "turnwise"
REASONING = "reasoning_content"
MAX_TOKENS = 256  # if a request does not say
# What a request may hold, as people read it: the signature has the types only.
INPUTS = {
    "messages": "The conversation, as OpenAI's API has it; the last message is the user's, or a tool's.",
    "max_tokens": f"The most tokens of the answer, {MAX_TOKENS} if nothing is said; at most the model's context.",
    "temperature": "1 if nothing is said; 0 is greedy: the same question has the same answer.",
    "top_p": "The next token is one of the likeliest that together have this probability.",
    "tools": "What the model may call; its calls come as `tool_calls` of the answer.",
    "custom_inputs": "`tools` whose schemas MLflow's types do not hold, and `reasoning_content` of earlier answers.",
    "stream": "Changes nothing: `predict_stream` answers in pieces.",
    "n": "Only 1.",
    "stop": "Refused.",
    "top_k": "Refused.",
    "frequency_penalty": "Refused.",
    "presence_penalty": "Refused.",
}
NOT_HONORED = ("stop", "top_k", "frequency_penalty", "presence_penalty")


class PackagedChatModel(ChatModel):  # type: ignore[misc]
    """Answers with the assistant's next message. Raises InputError for a request that it cannot honor.

    INPUTS says what a request may hold. What MLflow's types do not hold goes into custom_inputs: {"tools": [...]}, whose
    schemas have $defs, default or objects in objects, and {"reasoning_content": [...]}, the reasoning of each assistant's
    message in order ("" or null if it has none). That of the reply is in custom_outputs: {"reasoning_content": ...}.
    """

    loaded: LoadedModel

    def load_context(self, context: Any) -> None:
        if is_being_saved():
            return
        self.loaded = load_trained(Path(context.artifacts[PACKAGE]))

    def predict(self, context: Any, messages: list[ChatMessage], params: ChatParams) -> ChatCompletionResponse:
        if is_being_saved():
            return ChatCompletionResponse(choices=[], model=MODEL)
        reply = reply_to(self.loaded, _messages(messages, params), **_settings(params, self.loaded))
        message = ChatMessage(role="assistant", content=reply.message.content, tool_calls=_tool_calls(reply.message))
        choice = ChatChoice(message=message, finish_reason=reply.finish_reason)
        return ChatCompletionResponse(
            choices=[choice], usage=_usage(reply), model=MODEL, custom_outputs=_custom_outputs(reply)
        )

    def predict_stream(
        self, context: Any, messages: list[ChatMessage], params: ChatParams
    ) -> Iterator[ChatCompletionChunk]:
        """Yields words of the answer as they are generated; the last chunk has the reasoning and tool calls, each whole."""
        pieces = stream_reply(
            self.loaded, _messages(messages, params), only_words=True, **_settings(params, self.loaded)
        )
        while True:
            try:
                piece = next(pieces)
            except StopIteration as end:
                reply: Reply = end.value
                break
            yield _chunk(ChatChoiceDelta(content=piece))
        delta = ChatChoiceDelta(content="", tool_calls=_tool_calls(reply.message))
        yield _chunk(
            delta, finish_reason=reply.finish_reason, usage=_usage(reply), custom_outputs=_custom_outputs(reply)
        )


def _chunk(delta: ChatChoiceDelta, *, finish_reason: str | None = None, **of_the_last: Any) -> ChatCompletionChunk:
    choice = ChatChunkChoice(delta=delta, finish_reason=finish_reason)
    return ChatCompletionChunk(choices=[choice], model=MODEL, **of_the_last)


def _custom_outputs(reply: Reply) -> dict[str, Any] | None:
    return {REASONING: reply.message.reasoning_content} if reply.message.reasoning_content else None


def _usage(reply: Reply) -> TokenUsageStats:
    return TokenUsageStats(
        prompt_tokens=reply.prompt_tokens,
        completion_tokens=reply.new_tokens,
        total_tokens=reply.prompt_tokens + reply.new_tokens,
    )


def _tool_calls(message: Message) -> list[ToolCall] | None:
    """Returns the calls, each with an id, which a tool message refers to."""
    calls = [openai_call(call) for call in message.tool_calls]
    return [FunctionToolCallArguments(name, arguments).to_tool_call() for name, arguments in calls] or None


def _settings(params: ChatParams, loaded: LoadedModel) -> dict[str, Any]:
    refused = [name for name in NOT_HONORED if getattr(params, name)] + (["n"] if params.n != 1 else [])
    if refused:
        raise InputError(f"{', '.join(refused)}: not supported; leave it out")
    return {
        "max_new_tokens": _max_tokens(params.max_tokens, loaded),
        "temperature": params.temperature,
        "top_p": 1.0 if params.top_p is None else params.top_p,
        "tools": _tools(params),
    }


def _max_tokens(asked: int | None, loaded: LoadedModel) -> int:
    """An answer that no context holds is not begun: its client would wait for what cannot come."""
    most = longest_of(loaded.model.config) or MOST_NEW_TOKENS
    if asked is not None and not 1 <= asked <= most:
        raise InputError(f"max_tokens: must be from 1 to {most:,}, the model's context, not {asked:,}; or leave it out")
    return min(MAX_TOKENS, most) if asked is None else asked


def _tools(params: ChatParams) -> list[dict[str, Any]]:
    custom = params.custom_inputs or {}
    if odd := sorted(custom.keys() - {"tools", REASONING}):
        raise InputError(f"custom_inputs: {', '.join(odd)}: not supported; it may hold tools and {REASONING}")
    if "tools" not in custom:
        return [tool.to_dict() for tool in params.tools or ()]
    tools = custom["tools"]
    if params.tools or not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        raise InputError("custom_inputs: tools must be a list of objects, and there can be no other tools beside them")
    return tools


def _messages(messages: Sequence[ChatMessage], params: ChatParams) -> list[Message]:
    if not messages:
        raise InputError("messages: empty; the last one should be the user's question")
    given = [message.to_dict() for message in messages]
    answers = [message for message in given if message["role"] == "assistant"]
    thoughts = (params.custom_inputs or {}).get(REASONING) or [None] * len(answers)
    if not isinstance(thoughts, list) or len(thoughts) != len(answers):
        raise InputError(
            f"custom_inputs: {REASONING} must be a list with one text or null for each of the {len(answers)} messages from"
            " the assistant"
        )
    for message, thought in zip(answers, thoughts, strict=True):
        message[REASONING] = thought
    return messages_of(given)


def set_mlflow_model() -> None:
    """Gives MLflow the model that it will load, which holds no weights yet."""
    with warnings.catch_warnings():
        # MLflow recommends a ResponsesAgent instead, which does not answer chat completions; a version pins its MLflow.
        warnings.simplefilter("ignore", FutureWarning)
        set_model(PackagedChatModel())


set_mlflow_model()
