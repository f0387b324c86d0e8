"""Scores a model on conversations, alone or against another one: nats per target token."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from components.conversations.chat_formats.rendered import RenderedConversation
from components.conversations.chat_formats.truncation import fit_length
from components.conversations.messages import Conversation
from components.data.token_store import Entry, TokenStore, write_store
from components.errors import InputError
from components.models.load_trained import LoadedModel
from components.records.loss_views import LossViews
from components.statistics.paired_bootstrap import Comparison, paired_bootstrap
from components.training.evaluate import ConversationLoss, score_with_views

ROWS_PER_BATCH = 4
MAX_TOKENS = 1024


@dataclass(frozen=True, kw_only=True)
class Score:
    """The losses of one model on conversations, in the order of the data.

    `sources` is where each conversation came from, `rendered` the tokens that the model's chat format made of it.
    `views` show the loss by turn, length, language, source and tag.
    """

    losses: tuple[ConversationLoss, ...]
    sources: tuple[str, ...]
    rendered: tuple[RenderedConversation, ...]
    views: LossViews

    @property
    def num_targets(self) -> int:
        return sum(loss.num_targets for loss in self.losses)

    @property
    def loss(self) -> float:
        """Nats per target token, over all conversations together."""
        return sum(loss.loss_sum for loss in self.losses) / self.num_targets

    def sentence(self) -> str:
        return (
            f"{self.loss:.4f} nats per target over {self.num_targets:,} targets of {len(self.losses):,} conversations"
        )

    def __repr__(self) -> str:
        return f"<Score: {self.sentence()}>"


def score(model: LoadedModel, conversations: Sequence[Conversation], *, max_tokens: int = MAX_TOKENS) -> Score:
    """Scores every conversation, at the precision that the model was trained in.

    Args:
        max_tokens: longer conversations lose their last turns.

    Raises:
        InputError: not even the first scored turn of a conversation fits, or there is no conversation.
        ValueError: the chat format refuses a conversation, or the model has no row for one of its tokens.
    """
    if not conversations:
        raise InputError("there is no conversation to score")
    rendered = [_fit(model, conversation, max_tokens) for conversation in conversations]
    sources = [conversation.source for conversation in conversations]
    entries = [
        Entry(source=conversation.source, rendered=each, conversation=conversation)
        for conversation, each in zip(conversations, rendered, strict=True)
    ]
    with tempfile.TemporaryDirectory(prefix="turnwise-evaluate-") as folder:
        write_store(Path(folder) / "data.arrow", entries)
        store = TokenStore(Path(folder) / "data.arrow")
        losses, views = score_with_views(model, store, max_tokens=max_tokens, rows_per_batch=ROWS_PER_BATCH)
    assert views is not None  # the store has just been written with all that they need
    return Score(losses=tuple(losses), sources=tuple(sources), rendered=tuple(rendered), views=views)


def compare_scores(score: Score, other: Score, *, name: str, other_name: str, confidence: float = 0.95) -> Comparison:
    """Compares two models on the same conversations by a paired bootstrap: is the first one truly better?

    Raises InputError if their chat formats turn a conversation into different tokens: then losses per target differ in kind.
    """
    pairs = zip(score.sources, score.rendered, other.rendered, strict=True)
    unlike = [source for source, one, another in pairs if one != another]
    if unlike:
        raise InputError(
            f"{name} and {other_name} turn {len(unlike)} of {len(score.sources)} conversations into different"
            f" tokens (the first: {unlike[0]}), so their losses per target cannot be compared"
        )
    return paired_bootstrap(
        f"model {other_name}",
        [loss.loss_sum for loss in score.losses],
        [loss.loss_sum for loss in other.losses],
        [loss.num_targets for loss in score.losses],
        confidence=confidence,
    )


def _fit(model: LoadedModel, conversation: Conversation, max_tokens: int) -> RenderedConversation:
    fitted = fit_length(model.chat_format.render(conversation), max_tokens, truncate=True)
    if fitted is None:
        raise InputError(
            f"{conversation.source}: not even its first scored turn fits into {max_tokens} tokens; give a larger max_tokens"
        )
    return fitted
