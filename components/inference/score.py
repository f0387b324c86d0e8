"""Scores a model on conversations, alone or against another one: nats per target token."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from components.conversations.chat_formats.chat_format import ChatFormat
from components.conversations.chat_formats.rendered import RenderedConversation
from components.conversations.chat_formats.truncation import bytes_left, fit_length
from components.conversations.messages import Conversation
from components.conversations.target_bytes import bits_per_byte, to_bits
from components.data.token_store import Entry, TokenStore, write_store
from components.errors import InputError
from components.models.load_trained import LoadedModel
from components.records.loss_views import LossViews
from components.statistics.paired_bootstrap import BITS, NATS, Comparison, paired_bootstrap
from components.training.evaluate import ConversationLoss, score_with_views

ROWS_PER_BATCH = 4
MAX_TOKENS = 1024


@dataclass(frozen=True, kw_only=True)
class Score:
    """The losses of one model on conversations, in the order of the data.

    `sources` is where each conversation came from, `rendered` the tokens that the model's chat format made of it, and
    `target_bytes` the number of bytes of what is scored in it. `left_out` are those that cannot be scored, by their
    number in the data from 0 on, with reasons: only `score(..., leave_out=True)` has some.
    `views` show the loss by turn, length, language, source and tag.
    """

    losses: tuple[ConversationLoss, ...]
    sources: tuple[str, ...]
    rendered: tuple[RenderedConversation, ...]
    target_bytes: tuple[int, ...]
    views: LossViews
    left_out: dict[int, str] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """How many conversations there are, scored or not."""
        return len(self.losses) + len(self.left_out)

    @property
    def numbers(self) -> list[int]:
        """The numbers in the data of those that are scored."""
        return [number for number in range(self.count) if number not in self.left_out]

    @property
    def num_targets(self) -> int:
        return sum(loss.num_targets for loss in self.losses)

    @property
    def loss(self) -> float:
        """Nats per target token, over all conversations together."""
        return sum(loss.loss_sum for loss in self.losses) / self.num_targets

    @property
    def bits_per_byte(self) -> float | None:
        """Of what the assistant says, over all conversations together; None if it says nothing."""
        return bits_per_byte(sum(loss.loss_sum for loss in self.losses), sum(self.target_bytes))

    def sentence(self) -> str:
        bits = "" if self.bits_per_byte is None else f" ({self.bits_per_byte:.4f} bits per byte)"
        return (
            f"{self.loss:.4f} nats per target{bits} over {self.num_targets:,} targets of {len(self.losses):,}"
            " conversations"
        )

    def __repr__(self) -> str:
        return f"<Score: {self.sentence()}>"


def score(
    model: LoadedModel, conversations: Sequence[Conversation], *, max_tokens: int = MAX_TOKENS, leave_out: bool = False
) -> Score:
    """Scores every conversation, at the precision that the model was trained in.

    Args:
        max_tokens: longer conversations lose their last turns.
        leave_out: go on without a conversation that the chat format refuses, or of which not even a turn fits: another model
            is compared on the others.

    Raises:
        InputError: not even the first scored turn of a conversation fits, or there is no conversation.
        ValueError: the chat format refuses a conversation, or the model has no row for one of its tokens.
    """
    if not conversations:
        raise InputError("there is no conversation to score")
    entries: list[Entry] = []
    left_out: dict[int, str] = {}
    for number, conversation in enumerate(conversations):
        try:
            entries.append(_entry(model.chat_format, conversation, max_tokens))
        except ValueError as error:
            if not leave_out:
                raise
            left_out[number] = str(error)
    if not entries:
        raise InputError(f"no conversation can be scored; the first: {left_out[0]}")
    with tempfile.TemporaryDirectory(prefix="turnwise-evaluate-") as folder:
        write_store(Path(folder) / "data.arrow", entries)
        store = TokenStore(Path(folder) / "data.arrow")
        losses, views = score_with_views(model, store, max_tokens=max_tokens, rows_per_batch=ROWS_PER_BATCH)
    assert views is not None  # the store has just been written with all that they need
    return Score(
        losses=tuple(losses),
        sources=tuple(entry.source for entry in entries),
        rendered=tuple(entry.rendered for entry in entries),
        target_bytes=tuple(entry.target_bytes for entry in entries),
        left_out=left_out,
        views=views,
    )


def compare_scores(score: Score, other: Score, *, name: str, other_name: str, confidence: float = 0.95) -> Comparison:
    """Compares two models on the same conversations by a paired bootstrap: is the first one truly better?

    In nats per target if their chat formats turn all conversations into the same tokens, else in bits per byte. What is not
    the same words for both, because one of them cannot render it or has to truncate it, is left out.

    Raises InputError if nothing is left.
    """
    places = [{number: place for place, number in enumerate(each.numbers)} for each in (score, other)]
    pairs = [(place, places[1][number]) for number, place in places[0].items() if number in places[1]]
    by_bytes = any(score.rendered[one] != other.rendered[two] for one, two in pairs)
    if by_bytes:
        pairs = [(one, two) for one, two in pairs if score.target_bytes[one] == other.target_bytes[two] > 0]
    if not 0 < confidence < 1:
        raise InputError(f"confidence={confidence}: must be above 0 and below 1, e.g. 0.95")
    if not pairs:
        raise InputError(f"{name} and {other_name} have no conversation of which both can score the same words")
    weights = [score.target_bytes[one] if by_bytes else score.losses[one].num_targets for one, _ in pairs]
    ours, theirs = [score.losses[one].loss_sum for one, _ in pairs], [other.losses[two].loss_sum for _, two in pairs]
    missing = score.count - len(pairs)
    found = paired_bootstrap(
        f"model {other_name}",
        list(map(to_bits, ours)) if by_bytes else ours,
        list(map(to_bits, theirs)) if by_bytes else theirs,
        weights,
        confidence=confidence,
        note=f"{missing} of {score.count} conversations left out: not the same words for both" if missing else "",
    )
    return found.model_copy(update={"unit": BITS if by_bytes else NATS})


def _entry(chat_format: ChatFormat, conversation: Conversation, max_tokens: int) -> Entry:
    rendered = chat_format.render(conversation)
    fitted = fit_length(rendered, max_tokens, truncate=True)
    if fitted is None:
        raise InputError(
            f"{conversation.source}: not even its first scored turn fits into {max_tokens} tokens; give a larger max_tokens"
        )
    num_bytes = bytes_left(conversation, rendered, fitted, chat_format)
    return Entry(source=conversation.source, rendered=fitted, target_bytes=num_bytes, conversation=conversation)
