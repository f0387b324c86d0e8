"""Keeps what people wrote from becoming control tokens.

A tokenizer turns the text "<|im_end|>" into the token that ends a turn, whoever wrote it. So every such text inside
content is broken up by a mark before the chat template sees it; afterwards the marks say where ordinary text must be cut
so that no control token can form, and they are gone from the tokens.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

PRIVATE_USE = range(0xE000, 0xF8FF)


class ControlText:
    """The texts that one tokenizer reads as single tokens of their own: special ones, and added ones that are no words.

    `texts` has the longest first. One of a single character would be no text but a character, and is none of them.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        # Words and blanks that were added to a vocabulary (code models have such) control nothing.
        added = {str(token) for token in tokenizer.get_added_vocab() if re.search(r"[^\w\s]", str(token))}
        control = {text for text in added | set(tokenizer.all_special_tokens) if len(text.strip()) > 1}
        self.texts: list[str] = sorted(control, key=lambda text: (-len(text), text))
        self._id_of = {text: int(tokenizer.convert_tokens_to_ids(text)) for text in self.texts}
        self._pattern = re.compile("|".join(map(re.escape, self.texts)) or r"(?!)")

    def marked(self, value: Any) -> tuple[Any, str]:
        """(value with every control text in its strings and keys broken up by a mark, the mark); "" if there was none."""
        texts = list(_texts(value))
        if not any(self._pattern.search(text) for text in texts):
            return value, ""
        mark = next(chr(code) for code in PRIVATE_USE if not any(chr(code) in text for text in texts))
        return _mapped(value, lambda text: self._break(text, mark)), mark

    def encode(self, text: str, mark: str) -> list[int]:
        """Token ids of a template's text: its own control texts are tokens, those that bear the mark are ordinary text."""
        parts = text.split(mark) if mark else [text]
        return [int(id) for part in parts if part for id in self.tokenizer.encode(part, add_special_tokens=False)]

    def forged(self, token_ids: Sequence[int], text: str) -> list[str]:
        """Control tokens among the ids that stand nowhere in the template's (marked) text; there must be none."""
        ours = Counter(self._id_of[written] for written in self._pattern.findall(text))
        # What no word covers is the unknown token: that, people may write.
        names = {id: name for name, id in self._id_of.items() if id != self.tokenizer.unk_token_id}
        found = Counter(id for id in token_ids if id in names)
        return [names[id] for id in found - ours]

    def _break(self, text: str, mark: str) -> str:
        """A mark after the first character of every control text, until none is left."""
        while self._pattern.search(text):
            text = self._pattern.sub(lambda match: match[0][0] + mark + match[0][1:], text)
        return text


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _texts(key)
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {_mapped(key, change): _mapped(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_mapped(item, change) for item in value]
    return value
