"""Adds up what a pass over a split says of its targets, turn by turn, and shows it from several sides."""

from __future__ import annotations

import bisect
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Self

from components.conversations.chat_formats.rendered import lengths_up_to
from components.conversations.messages import Conversation
from components.conversations.scripts import dominant_script
from components.data.rows import RowStore
from components.data.token_store import TokenStore
from components.records.loss_views import EndCalibration, LossSlice, LossViews, add_up, largest_first

BINS = 10  # of equal width, of the probability that a turn ends
LONGEST_FIRST_BIN = 64  # tokens; each bin of lengths reaches twice as far as the one before
LAST_TURN = 10  # later ones are shown together


@dataclass(slots=True, kw_only=True)
class _Turn:
    """One scored turn, whose last token is before token `end` of its conversation. `number` counts the assistant's from 1."""

    number: int
    end: int
    length: int
    language: str
    loss_sum: float = 0.0
    num_targets: int = 0
    num_right: int = 0


@dataclass(slots=True)
class _Bin:
    num_targets: int = 0
    probability: float = 0.0
    num_ends: int = 0


@dataclass(kw_only=True)
class TurnTotals:
    """`turns` are the scored turns of each conversation, in order; `sources` and `tags` are the conversations'."""

    stop_token_ids: tuple[int, ...]
    turns: list[list[_Turn]]
    sources: list[str]
    tags: list[str | None]
    bins: list[_Bin] = field(default_factory=lambda: [_Bin() for _ in range(BINS)])
    at_ends: float = 0.0

    @classmethod
    def of(cls, store: TokenStore, stop_token_ids: Sequence[int]) -> Self | None:
        """Returns None if the store does not say where turns end, or what the conversations' text is."""
        turns, sources, tags = [], [], []
        for index in range(len(store)):
            ends, conversation = store.turn_ends(index), store.conversation(index)
            if ends is None or conversation is None:
                return None
            turns.append(_turns(store, index, ends, conversation))
            sources.append(conversation.source.rpartition(", ")[0] or conversation.source)
            tags.append(conversation.tag)
        return cls(stop_token_ids=tuple(stop_token_ids), turns=turns, sources=sources, tags=tags)

    def add(
        self,
        store: RowStore,
        places: Sequence[tuple[int, int]],
        losses: Sequence[float],
        right: Sequence[float],
        stops: Sequence[float],
    ) -> None:
        """Adds targets: their (row, position), weighted losses, whether they were the likeliest, and stop probabilities."""
        for (row, position), loss, is_right, stop in zip(places, losses, right, stops, strict=True):
            token = store.token_of(row, position)
            turns = self.turns[store.conversation_of(row)]
            turn = turns[bisect.bisect_right(turns, token, key=lambda each: each.end)]
            turn.loss_sum += loss
            turn.num_targets += 1
            turn.num_right += is_right > 0
            self._add_stop(stop, ends=token + 1 == turn.end)

    def views(self) -> LossViews:
        """Returns all sides. Those that say nothing (one file, no tag) are left out."""
        scored = [
            (turn, source, tag)
            for turns, source, tag in zip(self.turns, self.sources, self.tags, strict=True)
            for turn in turns
            if turn.num_targets
        ]
        whole = add_up("all", [_slice("all", turn) for turn, _, _ in scored])
        sides = {
            "turn": _grouped([(_turn_name(turn.number), turn) for turn, _, _ in scored], order=_by_number),
            "length": _grouped([(_length_name(turn.length), turn) for turn, _, _ in scored], order=_by_number),
            "language": _grouped([(turn.language, turn) for turn, _, _ in scored]),
        }
        if len(set(self.sources)) > 1:
            sides["source"] = _grouped([(source, turn) for turn, source, _ in scored])
        if any(tag is not None for tag in self.tags):
            sides["tag"] = _grouped([("(none)" if tag is None else tag, turn) for turn, _, tag in scored])
        return LossViews(whole=whole, sides=sides, ends=self._calibration())

    def _add_stop(self, probability: float, *, ends: bool) -> None:
        if not math.isfinite(probability):
            probability = 0.0  # of a model whose losses are not finite: it does not know
        found = self.bins[min(int(probability * BINS), BINS - 1)]
        found.num_targets += 1
        found.probability += probability
        found.num_ends += ends
        self.at_ends += probability if ends else 0.0

    def _calibration(self) -> EndCalibration:
        targets, ends = (sum(getattr(each, name) for each in self.bins) for name in ("num_targets", "num_ends"))
        probability = math.fsum(each.probability for each in self.bins)
        return EndCalibration(
            num_ends=ends,
            at_ends=self.at_ends / ends if ends else math.nan,
            elsewhere=(probability - self.at_ends) / (targets - ends) if targets > ends else None,
            error=math.fsum(abs(each.probability - each.num_ends) for each in self.bins) / targets,
        )


def _turns(store: TokenStore, index: int, ends: Sequence[int], conversation: Conversation) -> list[_Turn]:
    """The scored turns that a truncation has left. Their messages are the assistant's with a loss above 0, in order."""
    answers = [message for message in conversation.messages if message.role == "assistant"]
    scored = [(number, answer) for number, answer in enumerate(answers, start=1) if answer.loss_weight > 0]
    lengths = lengths_up_to(ends, int(store.lengths[index]), store.forks(index))
    return [
        _Turn(number=number, end=end, length=length, language=dominant_script(answer.content))
        for (number, answer), end, length in zip(scored, ends, lengths, strict=False)
    ]


def _grouped(
    named: Sequence[tuple[str, _Turn]], *, order: Callable[[LossSlice], float] | None = None
) -> tuple[LossSlice, ...]:
    """Adds up the turns of each name. By default the groups with most targets come first."""
    groups: dict[str, list[LossSlice]] = defaultdict(list)
    for name, turn in named:
        groups[name].append(_slice(name, turn))
    slices = [add_up(name, group) for name, group in groups.items()]
    return tuple(sorted(slices, key=order)) if order else largest_first(slices)


def _slice(name: str, turn: _Turn) -> LossSlice:
    return LossSlice(name=name, loss_sum=turn.loss_sum, num_targets=turn.num_targets, num_right=turn.num_right)


def _turn_name(number: int) -> str:
    return str(number) if number < LAST_TURN else f"{LAST_TURN} or later"


def _length_name(length: int) -> str:
    bound = LONGEST_FIRST_BIN
    while length > bound:
        bound *= 2
    return f"{bound} or less" if bound == LONGEST_FIRST_BIN else f"{bound // 2 + 1} to {bound}"


def _by_number(each: LossSlice) -> float:
    """Names of turns and of lengths begin with a number; the shortest lengths come first."""
    first = int(each.name.split(" ")[0])
    return 0 if each.name.endswith("or less") else first
