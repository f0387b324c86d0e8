"""A loaded model as a notebook uses it: it replies, streams, is scored, and shows what it is."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Unpack

from rich.table import Table

from components.conversations.messages import Message
from components.conversations.openai_messages import messages_of
from components.conversations.readers.read import OnUnknownKeys, read_conversations
from components.inference.generate import ReplyOptions, reply_to, stream_reply
from components.inference.score import MAX_TOKENS, Score, compare_scores, score
from components.models.load_trained import LoadedModel
from components.notebook import html_of
from components.scoring.reply import Reply
from components.statistics.paired_bootstrap import Comparison

Question = str | Sequence[Message | Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True, repr=False)
class Model:
    """`name` is the one it was loaded by, `tracking` the URI of its registry if that is not the default one."""

    name: str
    loaded: LoadedModel
    tracking: str | None = None

    def reply(self, question: Question, *, system: str | None = None, **options: Unpack[ReplyOptions]) -> Reply:
        """The assistant's next message: `.text` is all of it, `.message` has tool calls apart.

        Args:
            question: what a user says, or the conversation so far, as messages or as OpenAI has them: {"role": ..., ...}.
            system: a system message before it.
            options: max_new_tokens (128), temperature (0: greedy), top_p and tools, as ReplyOptions says.

        Raises:
            ValueError: the chat format refuses the messages, or the model has no row for one of their tokens.
        """
        return reply_to(self.loaded, _messages(question, system), **options)

    def stream(
        self, question: Question, *, system: str | None = None, **options: Unpack[ReplyOptions]
    ) -> Generator[str, None, Reply]:
        """The text of `reply`, piece by piece while it is generated. Closing the generator stops the model."""
        return stream_reply(self.loaded, _messages(question, system), **options)

    def score(
        self,
        data: str | Sequence[str],
        *,
        format: str = "auto",
        unknown_keys: OnUnknownKeys = "fail",
        max_tokens: int = MAX_TOKENS,
    ) -> Score:
        """The loss on conversations, in nats per target token, at the precision that the model was trained in.

        Args:
            data: a file, files, a glob or hf:DATASET[:SPLIT][@REVISION].
            format: of the data, as data.format of an experiment.
            unknown_keys: as data.unknown_keys of an experiment.
            max_tokens: longer conversations lose their last turns.

        Raises:
            InputError: not even the first scored turn of a conversation fits.
            ValueError: data that cannot be read, or that the chat format refuses.
        """
        read = read_conversations(data, format=format, unknown_keys=unknown_keys)
        return score(self.loaded, read.conversations, max_tokens=max_tokens)

    def compare(
        self,
        other: Model,
        data: str | Sequence[str],
        *,
        confidence: float = 0.95,
        format: str = "auto",
        unknown_keys: OnUnknownKeys = "fail",
        max_tokens: int = MAX_TOKENS,
    ) -> Comparison:
        """Whether this model is better than another one on the same conversations, by a paired bootstrap.

        Arguments are those of `score`. Two models that turn conversations into different tokens are compared in bits per
        byte. Raises ValueError for data that cannot be read, and InputError if there is no conversation for both.
        """
        read = read_conversations(data, format=format, unknown_keys=unknown_keys)
        scores = [
            score(model.loaded, read.conversations, max_tokens=max_tokens, leave_out=True) for model in (self, other)
        ]
        return compare_scores(*scores, name=self.name, other_name=other.name, confidence=confidence)

    def __repr__(self) -> str:
        return f"<Model {self.name}, chat format {self.loaded.chat_format.name}, on {self.loaded.device}>"

    def _repr_html_(self) -> str:
        table = Table(box=None, show_header=False, pad_edge=False)
        for label, value in self._facts().items():
            table.add_row(label, value)
        return html_of(table)

    def _facts(self) -> dict[str, str]:
        loaded, reference = self.loaded, self.loaded.reference
        parameters = sum(parameter.numel() for parameter in loaded.model.parameters())
        return {
            "model": self.name,
            **({} if reference is None else {"trained on": reference.model.path}),
            "parameters": f"{parameters:,}",
            "chat format": loaded.chat_format.name,
            "precision": loaded.precision,
            "device": str(loaded.device),
        }


def _messages(question: Question, system: str | None) -> list[Message]:
    before = [Message(role="system", content=system)] if system else []
    if isinstance(question, str):
        return [*before, Message(role="user", content=question)]
    return [*before, *messages_of(question)]
