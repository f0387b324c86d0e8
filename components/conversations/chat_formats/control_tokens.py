"""Keeps what people wrote from becoming control tokens.

The rule: what a user, a system message, a tool or an argument says never becomes a special token, nor one that the chat
template writes; what an assistant says may hold every added token of its tokenizer, as it may in use, but for those that
end turns, begin roles or have a duty (bos, eos, pad, unk).

A tokenizer turns the text "<|im_end|>" into the token that ends a turn, whoever wrote it. So such texts inside content are
broken up by a mark before the chat template sees them. What stands unbroken in the template's text becomes its token
under another name, an alias, in a copy of the tokenizer that knows no other: whatever else looks like one is text there,
in one piece with the text around it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from components.conversations.chat_formats.token_aliases import Aliases, alias_of, aliased, holds_alias

PRIVATE_USE = range(0xE000, 0xF8FF)
DUTIES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class AddedTexts:
    """The texts that one tokenizer reads as single tokens: special ones, and added ones that are no words or blanks.

    One of a single character would be no text but a character, and is none of them. Words and blanks that were added to a
    vocabulary (code models have such) control nothing.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        flagged = {id: str(token) for id, token in tokenizer.added_tokens_decoder.items() if token.special}
        self.special_ids = {*flagged, *tokenizer.all_special_ids}
        named = {*flagged.values(), *tokenizer.all_special_tokens}
        self.special = {text for text in named if len(text.strip()) > 1}
        odd = {str(text) for text in tokenizer.get_added_vocab() if re.search(r"[^\w\s]", str(text))}
        texts = self.special | {text for text in odd if len(text.strip()) > 1}
        self.texts: list[str] = sorted(texts, key=lambda text: (-len(text), text))  # the longest first
        self.pattern = re.compile("|".join(map(re.escape, self.texts)) or r"(?!)")
        with_duty = {getattr(tokenizer, duty) for duty in DUTIES}
        self.with_duty = {text for text in self.texts if text in with_duty}

    def found(self, text: str) -> set[str]:
        return set(self.pattern.findall(text))


class ControlText:
    """Encodes the text of one chat template.

    Args:
        from_all: texts that nobody may write; special ones are among them.
        from_assistant: those of them that an assistant may not write either.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, added: AddedTexts, from_all: set[str], from_assistant: set[str]
    ) -> None:
        self.tokenizer, self.added = tokenizer, added
        self.from_all, self.from_assistant = from_all | added.special | from_assistant, from_assistant
        self.id_of = {text: int(tokenizer.convert_tokens_to_ids(text)) for text in sorted(self.from_all)}
        self._aliases: Aliases = {text: alias_of(number) for number, text in enumerate(self.id_of)}
        self._backend = self._copy()
        may_be_said = {self.id_of[text] for text in self.from_all - from_assistant}
        self._unsaid = added.special_ids - may_be_said

    def marked(self, said: Any, other: Any, source: str) -> tuple[Any, Any, str]:
        """(what assistants said, all else, the mark by which every control text in their strings and keys is broken up).

        The mark is "" if there was nothing to break up. Raises ValueError if a text holds an alias.
        """
        texts = [*_texts(said), *_texts(other)]
        if any(holds_alias(text) for text in texts):
            raise ValueError(
                f"{source}: a text holds private characters that stand for control tokens here; leave them out"
            )
        if not any(self.added.pattern.search(text) for text in texts):
            return said, other, ""
        mark = next(chr(code) for code in PRIVATE_USE if not any(chr(code) in text for text in texts))
        return (
            _mapped(said, lambda text: self._break(text, self.from_assistant, mark)),
            _mapped(other, lambda text: self._break(text, self.from_all, mark)),
            mark,
        )

    def encode(self, text: str, mark: str) -> list[int]:
        """Token ids of a template's text: its own control texts are tokens, those that bear the mark are ordinary text."""
        if self._backend is not None:
            named = self.added.pattern.sub(lambda match: self._aliases.get(match[0], match[0]), text)
            return list(self._backend.encode(named.replace(mark, ""), add_special_tokens=False).ids)
        # A tokenizer written in Python: parts are encoded alone, so some set a blank where they are joined.
        parts = text.split(mark) if mark else [text]
        ids = [int(id) for part in parts if part for id in self.tokenizer.encode(part, add_special_tokens=False)]
        self._check(ids, text)
        return ids

    def encode_said(self, text: str, *, by_assistant: bool) -> list[int]:
        """Token ids of what somebody said, without a template."""
        said, other, mark = self.marked(text, "", "message") if by_assistant else self.marked("", text, "message")
        return self.encode(said or other, mark)

    def decode(self, token_ids: Sequence[int]) -> str:
        """What an assistant said, without the special tokens that it cannot say."""
        return self.decode_all([id for id in token_ids if id not in self._unsaid])

    def decode_all(self, token_ids: Sequence[int]) -> str:
        return str(
            self.tokenizer.decode(list(token_ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        )

    def _copy(self) -> Tokenizer | None:
        """None if the tokenizer is written in Python, or the copy would be another one."""
        original = getattr(self.tokenizer, "backend_tokenizer", None)
        if original is None:
            return None
        copy = aliased(original, self._aliases)
        same = all(copy.token_to_id(alias) == self.id_of[text] for text, alias in self._aliases.items())
        return copy if same else None

    def _check(self, token_ids: Sequence[int], text: str) -> None:
        """No control token may be among the ids that stands nowhere in the template's (marked) text."""
        ours = Counter(self.id_of[written] for written in self.added.pattern.findall(text) if written in self.id_of)
        # What no word covers is the unknown token: that, people may write.
        names = {id: name for name, id in self.id_of.items() if id != self.tokenizer.unk_token_id}
        forged = Counter(id for id in token_ids if id in names) - ours
        if forged:
            raise ValueError(f"a text would become the control token {names[next(iter(forged))]}; write it otherwise")

    def _break(self, text: str, control: set[str], mark: str) -> str:
        """A mark after the first character of every control text, until none is left."""
        broken = ""
        while broken != text:
            broken, text = (
                text,
                self.added.pattern.sub(
                    lambda match: match[0][0] + mark + match[0][1:] if match[0] in control else match[0], text
                ),
            )
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
