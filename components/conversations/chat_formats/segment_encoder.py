"""Tokens of a template's text, by segments: those before an answer are the same whether the answer follows or not."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import chain
from typing import NamedTuple

from components.conversations.chat_formats.assistant_turns import AssistantTurn
from components.conversations.chat_formats.control_tokens import ControlTokenEncoder
from components.conversations.chat_formats.shared_prefix import shared_prefix
from components.errors import InputError

MAX_REMEMBERED = 4096  # segments: the prompts of a conversation share most of theirs
SHORT = 64  # letters: segments between what is said, which all conversations share
MAX_TURNS_REMEMBERED = 64  # of a conversation: the tokens up to each


class TemplateText(NamedTuple):
    """A template's output. `mark` is inside every control text that messages contain; "" if there is none."""

    text: str
    mark: str


class TokenSpan(NamedTuple):
    """Numbers of tokens before a turn, before what follows its thought, before its stop, and before its end."""

    start: int
    answer: int
    stop: int
    end: int


class _Encoded(NamedTuple):
    """The tokens of a text up to the stop of the last of these turns, the span of each, and where that stop begins."""

    turns: tuple[AssistantTurn, ...]
    ids: tuple[int, ...]
    spans: tuple[TokenSpan, ...]
    begin: int


class SegmentEncoder:
    """`stops` are the texts with which the template ends turns; no token crosses one."""

    def __init__(
        self, control: ControlTokenEncoder, *, last_token_of: Callable[[str], str], stops: Sequence[str]
    ) -> None:
        remembered = lru_cache(maxsize=MAX_REMEMBERED)
        self._encode = remembered(lambda text, mark: tuple(control.encode(text, mark)))
        self._encode_short = remembered(lambda text, mark: tuple(control.encode(text, mark)))
        self._encoded: dict[tuple[str, AssistantTurn], _Encoded] = {}
        self._ahead: dict[tuple[str, str], tuple[int, ...]] = {}
        self.control = control
        ends = tuple(dict.fromkeys(last_token_of(stop) for stop in stops))
        self._leads = (*ends, "\n")
        apart = [re.escape(end) for end in ends if self._stands_apart(end)]
        self._cut = re.compile(f"(?={'|'.join(apart)})") if apart else None

    def encode(
        self, written: TemplateText, turns: Sequence[AssistantTurn], source: str
    ) -> tuple[list[int], list[TokenSpan]]:
        """Returns token ids, and the span of each turn. The text must begin with the text of every turn.

        At the start of a turn the text before it is tokenized without the text after it, as in a prompt, and these tokens
        do not change later. Therefore a prompt's tokens are a prefix of the whole conversation's, even if the tokenizer
        would merge across the start. All other text is tokenized as by the model's own tooling. It need not be tokenized
        from the beginning, because no token crosses a stop token.
        """
        known = self._longest_known(turns, written.mark)
        ids, spans = list(known.ids), list(known.spans)
        # The text from `begin` on is still to be tokenized; ids[:kept] are the tokens before it.
        begin, kept = known.begin, len(ids)
        for turn in turns[len(spans) :]:
            end = len(turn.text)
            prompt_ids = self._ids(written, begin, turn.start, source)
            turn_ids = self._ids(written, begin, end, source)
            if turn_ids[: len(prompt_ids)] != prompt_ids:
                turn_ids = prompt_ids + self._continuation(written, prompt_ids, turn_ids, turn, source)
            answer = (
                shared_prefix(turn_ids, self._ids(written, begin, turn.answer, source))
                if turn.answer > turn.start
                else 0
            )
            stop = len(turn_ids) - len(self._ids(written, turn.end_of_words, end, source))
            spans.append(
                TokenSpan(
                    *(kept + count for count in (len(prompt_ids), max(answer, len(prompt_ids)), stop, len(turn_ids)))
                )
            )
            ids[kept:] = turn_ids
            begin, kept = turn.stop, len(ids) - 1
            if len(self._encoded) == MAX_TURNS_REMEMBERED:
                self._encoded.clear()
            encoded = _Encoded(tuple(turns[: len(spans)]), tuple(ids[:kept]), tuple(spans), begin)
            self._encoded[written.mark, turn] = encoded
        return ids[:kept] + self._ids(written, begin, len(written.text), source), spans

    def encode_ahead(self, texts: Sequence[TemplateText]) -> None:
        """Encodes the segments of many texts at once, which is faster, until others are encoded ahead."""
        cut = self._cut
        pieces = [] if cut is None else [(piece, mark) for text, mark in texts for piece in cut.split(text)]
        long = list(dict.fromkeys(piece for piece in pieces if len(piece[0]) >= SHORT))
        self._ahead = dict(zip(long, self.control.encode_many(long), strict=False))

    def forget(self) -> None:
        """Forgets the segments and turns of a conversation."""
        self._encode.cache_clear()
        self._encoded.clear()

    def _longest_known(self, turns: Sequence[AssistantTurn], mark: str) -> _Encoded:
        """Returns what is remembered of the first turns: of all of them, as in the prompt after them, or of all but one."""
        for count in range(len(turns), max(0, len(turns) - 2), -1):
            found = self._encoded.get((mark, turns[count - 1]))
            if found is not None and found.turns == tuple(turns[:count]):
                return found
        return _Encoded((), (), (), 0)

    def _continuation(
        self, written: TemplateText, prompt_ids: list[int], turn_ids: list[int], turn: AssistantTurn, source: str
    ) -> list[int]:
        """Returns the tokens of a turn after those of its prompt.

        Many tokenizers add a blank before a text that is encoded alone, or that follows a special token. So the turn is
        encoded after each of some texts with which nothing merges; the tokens that decode to the same text are returned.
        """
        wanted = self.control.decode_all(turn_ids)
        said = written.text[turn.start : len(turn.text)]
        for before in self._leads:
            text = TemplateText(before + said, written.mark)
            lead_ids, ids = self.control.encode(before, ""), self._ids(text, 0, len(text.text), source)
            if (
                ids[: len(lead_ids)] == lead_ids
                and self.control.decode_all(prompt_ids + ids[len(lead_ids) :]) == wanted
            ):
                return ids[len(lead_ids) :]
        return self._ids(written, turn.start, len(turn.text), source)

    def _ids(self, written: TemplateText, start: int, end: int, source: str) -> list[int]:
        """Returns the tokens of a part of the text, piece by piece: prompts of a conversation share most of their pieces."""
        text = written.text[start:end]
        try:
            pieces = [text] if self._cut is None else filter(None, self._cut.split(text))
            return list(chain.from_iterable(self._piece(piece, written.mark) for piece in pieces))
        except ValueError as error:
            raise InputError(f"{source}: {error}") from None

    def _piece(self, text: str, mark: str) -> tuple[int, ...]:
        if len(text) < SHORT:
            return self._encode_short(text, mark)
        return self._ahead.get((text, mark)) or self._encode(text, mark)

    def _stands_apart(self, end: str) -> bool:
        """Whether a text before this token, and the text from it on, have the same tokens alone as together."""
        encode = self.control.encode
        return all(
            encode(before + end + after, "") == encode(before, "") + encode(end + after, "")
            for before in ("a", "a ", "a\n", end)
            for after in ("", "a", " a", "\na")
        )
