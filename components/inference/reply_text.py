"""The text of a reply while it is made: from tokens, one by one, to pieces of text that can be shown."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from components.conversations.chat_formats.chat_format import ChatFormat
from components.conversations.messages import Message
from components.scoring.reply import Reply, answer_of, reply_of

UNFINISHED = "\ufffd"  # what half a character decodes to
# All tokens are read for every piece, so a long reply has larger ones, each 1/READS of it: reading must not take longer than
# the model does.
READS = 128


class ReplyText:
    """The pieces that `add` and `rest` return are the text; none of them ends within a character.

    Args:
        only_words: the text is the message's content; what may be a tool call is held back until it is none.
        stops: the text ends before the first of these; what may become one is held back.
        in_pieces: without it, and without stops, all of the text comes at the end.

    `ended`: by a stop token or one of `stops`. `token_ids` are those of the reply, without the stop token.
    """

    def __init__(
        self, chat_format: ChatFormat, *, only_words: bool = False, stops: Sequence[str] = (), in_pieces: bool = True
    ) -> None:
        self.chat_format, self.only_words, self.stops = chat_format, only_words, tuple(stops)
        self.token_ids: list[int] = []
        self.ended = False
        self._shown = self._text = ""
        self._cut = False  # at one of `stops`
        self._read_next = 1 if in_pieces or stops else math.inf  # how many tokens there are when they are read again

    def add(self, token: int) -> str:
        """Returns what can be shown since the last piece; often nothing."""
        if token in self.chat_format.stop_token_ids:
            self.ended = True
            return ""
        self.token_ids.append(token)
        if len(self.token_ids) < self._read_next:
            return ""
        self._read_next = len(self.token_ids) + 1 + len(self.token_ids) // READS
        read = self.chat_format.words if self.only_words else self.chat_format.decode
        self._text = _read_or(self._shown, read, self.token_ids)
        self._cut_at_stop()
        if self._text.endswith(UNFINISHED):
            return ""
        return self._show(self._text if self.ended else self._text[: len(self._text) - self._may_be_stop()])

    def rest(self) -> str:
        """Returns the last piece, once there are no more tokens."""
        if not self._cut:
            whole = self.chat_format.decode
            self._text = (
                answer_of(self.chat_format, self.token_ids).content if self.only_words else whole(self.token_ids)
            )
            self._cut_at_stop()
        piece, self._shown = self._text[len(self._shown) :], self._text
        return piece

    def reply(self, prompt_tokens: int) -> Reply:
        """Returns the whole reply."""
        reply = reply_of(self.chat_format, self.token_ids, prompt_tokens=prompt_tokens, stopped=self.ended)
        if not self._cut:
            return reply
        words = self._text if self.only_words else self._before_stop(reply.message.content)
        message = Message(role="assistant", content=words, reasoning_content=reply.message.reasoning_content)
        return Reply(
            text=self._text,
            message=message,
            prompt_tokens=prompt_tokens,
            new_tokens=len(self.token_ids),
            stopped=True,
        )

    def _show(self, text: str) -> str:
        if text == self._shown or not text.startswith(self._shown):
            return ""
        piece, self._shown = text[len(self._shown) :], text
        return piece

    def _cut_at_stop(self) -> None:
        before = self._before_stop(self._text)
        if before != self._text:
            self._text, self.ended, self._cut = before, True, True

    def _before_stop(self, text: str) -> str:
        return text[: min((at for stop in self.stops if (at := text.find(stop)) >= 0), default=len(text))]

    def _may_be_stop(self) -> int:
        """Returns the length of the longest end of the text that one of `stops` begins with."""
        lengths = (
            length for stop in self.stops for length in range(1, len(stop)) if self._text.endswith(stop[:length])
        )
        return max(lengths, default=0)


def _read_or(before: str, read: Callable[[Sequence[int]], str], token_ids: Sequence[int]) -> str:
    """Returns the text of tokens; `before` where an unfinished answer cannot be taken apart."""
    try:
        return read(token_ids)
    except Exception:  # noqa: BLE001 - a model may say anything; its whole answer is read at the end
        return before
