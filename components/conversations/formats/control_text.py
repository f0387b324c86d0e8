"""Keeps what people wrote from becoming control tokens.

A tokenizer turns the text "<|im_end|>" into the token that ends a turn, whoever wrote it. So every such text inside
content is broken up by a mark before the chat template sees it; afterwards the marks say where ordinary text must be cut
so that no control token can form, and they are gone from the tokens.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

PRIVATE_USE = range(0xE000, 0xF8FF)


class ControlText:
    """The texts that one tokenizer reads as single tokens of their own: special and added ones."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        # An added token of blanks (code models have them) controls nothing.
        added = {str(token) for token in tokenizer.get_added_vocab()} | set(tokenizer.all_special_tokens)
        texts = sorted((text for text in added if len(text) > 1 and text.strip()), key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, texts))) if texts else None

    def marked(self, messages: Any) -> tuple[Any, str]:
        """(messages with every control text inside them broken up by a mark, the mark); "" if there was none."""
        texts = list(_texts(messages))
        if self._pattern is None or not any(self._pattern.search(text) for text in texts):
            return messages, ""
        mark = next(chr(code) for code in PRIVATE_USE if not any(chr(code) in text for text in texts))
        return _mapped(messages, lambda text: self._break(text, mark)), mark

    def encode(self, text: str, mark: str) -> list[int]:
        """Token ids of a template's text: its own control texts are tokens, those that bear the mark are ordinary text."""
        ids: list[int] = []
        for ours, plain in self._pieces(text):
            if ours:
                ids.append(int(self.tokenizer.convert_tokens_to_ids(plain)))
                continue
            for part in plain.split(mark):
                ids.extend(self.tokenizer.encode(part, add_special_tokens=False) if part else [])
        return ids

    def _break(self, text: str, mark: str) -> str:
        """A mark after the first character of every control text, until none is left."""
        assert self._pattern is not None
        while self._pattern.search(text):
            text = self._pattern.sub(lambda match: match[0][0] + mark + match[0][1:], text)
        return text

    def _pieces(self, text: str) -> list[tuple[bool, str]]:
        """(is control text, piece), in order."""
        assert self._pattern is not None
        pieces, end = [], 0
        for match in self._pattern.finditer(text):
            if match.start() > end:
                pieces.append((False, text[end : match.start()]))
            pieces.append((True, match[0]))
            end = match.end()
        return [*pieces, (False, text[end:])] if end < len(text) else pieces


def _texts(value: Any) -> Sequence[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for item in value.values() for text in _texts(item)]
    if isinstance(value, list | tuple):
        return [text for item in value for text in _texts(item)]
    return []


def _mapped(value: Any, change: Any) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {key: _mapped(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_mapped(item, change) for item in value]
    return value
