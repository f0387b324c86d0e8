"""One reply on its way from the generation thread to the event loop that answers its client."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import cast

from components.inference.reply_text import ReplyText
from components.inference.token_choice import TokenChance, TokenChoice
from components.scoring.reply import Reply
from components.scoring.running_batch import Row
from components.serving.generation_thread import Waiting
from components.serving.served_models import ServedModel


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """How tokens are chosen. `alternatives` as TokenChoice has it; without a seed every reply is another one."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    alternatives: int | None = None


@dataclass(frozen=True, slots=True)
class ReplyPiece:
    """`chances` are of the tokens since the last piece."""

    text: str
    chances: Sequence[TokenChance] = ()


class PendingReply:
    """Made in the event loop. `request` is for GenerationThread.submit, which calls what it holds in its own thread."""

    def __init__(
        self,
        served: ServedModel,
        prompt: Sequence[int],
        drawing: Drawing,
        *,
        index: int = 0,
        reply_tokens: int,
        stops: Sequence[str] = (),
        only_words: bool = True,
        in_pieces: bool = True,
    ) -> None:
        self.index = index
        self.first_token_at: float | None = None
        self._prompt_tokens = len(prompt)
        self._text = ReplyText(served.loaded.chat_format, only_words=only_words, stops=stops, in_pieces=in_pieces)
        self._choice = _choice(served, drawing, index)
        self._loop, self._events = asyncio.get_running_loop(), asyncio.Queue[ReplyPiece | Reply | Exception]()
        self._told = 0  # of the chances
        row = Row(prompt=prompt, max_new_tokens=reply_tokens, take=self._take, choose=self._choice)
        self.request = Waiting(row, fail=self._tell)

    async def pieces(self) -> AsyncIterator[ReplyPiece | Reply]:
        """Yields pieces of text, and at the end the whole reply. Raises what ended it."""
        while True:
            event = await self._events.get()
            if isinstance(event, Exception):
                raise event
            yield event
            if isinstance(event, Reply):
                return

    async def whole(self) -> Reply:
        async for event in self.pieces():
            last = event
        return cast(Reply, last)

    @property
    def chances(self) -> Sequence[TokenChance]:
        """Of all tokens, the stop token left out; for a reply that is whole."""
        return [] if self._choice is None else self._choice.chances[: len(self._text.token_ids)]

    def cancel(self) -> None:
        self.request.cancelled = True

    def _take(self, token: int) -> bool:
        """Hears of a token in the generation thread. Returns whether the reply goes on."""
        if self.first_token_at is None:
            self.first_token_at = time.monotonic()
        if self.request.cancelled:
            return False
        piece = self._text.add(token)
        ended = self._text.ended or self.request.row.made >= self.request.row.max_new_tokens
        if piece:
            self._tell(ReplyPiece(piece, self._new_chances()))
        if ended:
            rest, chances = self._text.rest(), self._new_chances()
            if rest or chances:
                self._tell(ReplyPiece(rest, chances))
            self._tell(self._text.reply(self._prompt_tokens))
        return not ended

    def _new_chances(self) -> Sequence[TokenChance]:
        new = self.chances[self._told :]
        self._told += len(new)
        return new

    def _tell(self, event: ReplyPiece | Reply | Exception) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)


def _choice(served: ServedModel, drawing: Drawing, index: int) -> TokenChoice | None:
    """Returns None for the likeliest tokens, which a batch finds in one operation."""
    if not drawing.temperature and drawing.alternatives is None:
        return None
    seed = secrets.randbits(63) if drawing.seed is None else (drawing.seed + index) % 2**63
    return TokenChoice(
        served.loaded.device,
        temperature=drawing.temperature,
        top_p=drawing.top_p,
        seed=seed,
        alternatives=drawing.alternatives,
    )
