"""The registered model as MLflow runs it: OpenAI chat messages in, a chat completion out.

MLflow reads this file from inside the version ("models from code"), with components/ beside it, wherever it is loaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mlflow.models import set_model
from mlflow.pyfunc import ChatModel
from mlflow.types.llm import ChatChoice, ChatCompletionResponse, ChatMessage, ChatParams

from components.conversations.messages import Message
from components.models.trained import LoadedModel, load_trained
from components.training.generate import generate_reply

PACKAGE = "package"


class PackagedChatModel(ChatModel):  # type: ignore[misc]
    """Answers with the assistant's next message. temperature and max_tokens are honored; 0 is greedy."""

    loaded: LoadedModel

    def load_context(self, context: Any) -> None:
        self.loaded = load_trained(Path(context.artifacts[PACKAGE]))

    def predict(self, context: Any, messages: list[ChatMessage], params: ChatParams) -> ChatCompletionResponse:
        reply = generate_reply(
            self.loaded,
            [Message(role=message.role, content=message.content or "") for message in messages],
            max_new_tokens=params.max_tokens or 128,
            temperature=params.temperature or 0.0,
        )
        choice = ChatChoice(index=0, message=ChatMessage(role="assistant", content=reply), finish_reason="stop")
        return ChatCompletionResponse(choices=[choice], model="turnwise")


set_model(PackagedChatModel())
