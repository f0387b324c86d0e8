"""Prevents text in messages from becoming control tokens.

The rule: text of a user, a system message, a tool or an argument never becomes a special token, nor a token that the chat
template writes. Text of an assistant may contain every added token of its tokenizer, as in generation, except those that
end turns, begin roles or have a fixed purpose (bos, eos, pad, unk).

A tokenizer turns the text "<|im_end|>" into the token that ends a turn, regardless of its origin. Therefore a mark is
inserted into such texts before the chat template is rendered. Control texts without a mark were written by the template.
They are replaced by aliases, and a copy of the tokenizer knows these tokens only by their aliases: every other text that
looks like a control token is encoded as text, together with the text around it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from components.conversations.chat_formats.token_aliases import Aliases, alias_of, alias_tokens, contains_alias
from components.errors import InputError

PRIVATE_USE = range(0xE000, 0xF8FF)
PURPOSES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class AddedTokens:
    """The control texts of a tokenizer: its special tokens, and added tokens that are neither words nor blanks.

    Single characters do not count. Words and blanks that were added to a vocabulary (as in code models) control nothing.
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
        with_purpose = {getattr(tokenizer, purpose) for purpose in PURPOSES}
        self.with_purpose = {text for text in self.texts if text in with_purpose}

    def find(self, text: str) -> set[str]:
        return set(self.pattern.findall(text))

    def last_in(self, text: str) -> str:
        """Returns the last control text in a text that has one."""
        return str(self.pattern.findall(text)[-1])


class ControlTokenEncoder:
    """Encodes the output of one chat template.

    Args:
        from_all: control texts that messages must not contain as tokens; special tokens are always among them.
        from_assistant: those of them that an assistant's text must not contain either.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, added: AddedTokens, from_all: set[str], from_assistant: set[str]
    ) -> None:
        self.tokenizer, self.added = tokenizer, added
        self.from_all, self.from_assistant = from_all | added.special | from_assistant, from_assistant
        self.id_of = {text: int(tokenizer.convert_tokens_to_ids(text)) for text in sorted(self.from_all)}
        self._aliases: Aliases = {text: alias_of(number) for number, text in enumerate(self.id_of)}
        self._backend = self._copy()
        allowed = {self.id_of[text] for text in self.from_all - from_assistant}
        self._hidden_ids = added.special_ids - allowed

    def mark(self, assistant: Any, other: Any, source: str) -> tuple[Any, Any, str]:
        """Inserts a mark into every control text in strings and keys. Returns (texts of assistants, all others, the mark).

        The mark is "" if there is no control text. Raises InputError if a text contains an alias.
        """
        texts = _texts([assistant, other])
        if any(contains_alias(text) for text in texts):
            raise InputError(
                f"{source}: a text holds private characters that stand for control tokens here; leave them out"
            )
        if not any(self.added.pattern.search(text) for text in texts):
            return assistant, other, ""
        mark = next(chr(code) for code in PRIVATE_USE if not any(chr(code) in text for text in texts))
        return (
            _map_strings(assistant, lambda text: self._break(text, self.from_assistant, mark)),
            _map_strings(other, lambda text: self._break(text, self.from_all, mark)),
            mark,
        )

    def encode(self, text: str, mark: str) -> list[int]:
        """Returns the token ids of a template's output. Control texts without the mark become tokens, others text."""
        if self._backend is not None:
            return list(self._backend.encode(self._named(text, mark), add_special_tokens=False).ids)
        # A tokenizer written in Python: parts are encoded separately, so some tokenizers add a blank between them.
        parts = text.split(mark) if mark else [text]
        ids = [int(id) for part in parts if part for id in self.tokenizer.encode(part, add_special_tokens=False)]
        self._check(ids, text)
        return ids

    def encode_many(self, marked: Sequence[tuple[str, str]]) -> list[tuple[int, ...]]:
        """Returns `encode` of many (text, mark) at once; nothing if this tokenizer cannot, or one of them is refused."""
        if self._backend is None:
            return []
        try:
            encoded = self._backend.encode_batch_fast([self._named(*each) for each in marked], add_special_tokens=False)
        except Exception:  # noqa: BLE001 - encoded one by one, the one that it is about says so
            return []
        return [tuple(each.ids) for each in encoded]

    def encode_text(self, text: str, *, by_assistant: bool) -> list[int]:
        """Returns the token ids of a message's text, without a template."""
        own, other, mark = self.mark(text, "", "message") if by_assistant else self.mark("", text, "message")
        return self.encode(own or other, mark)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Decodes an assistant's text, without the special tokens that it must not contain."""
        return self.decode_all([id for id in token_ids if id not in self._hidden_ids])

    def without_hidden(self, text: str) -> str:
        """Returns a decoded text without the special tokens that an assistant's text must not contain."""
        hidden = {name for name, id in self.id_of.items() if id in self._hidden_ids}
        return self.added.pattern.sub(lambda match: "" if match[0] in hidden else match[0], text)

    def decode_all(self, token_ids: Sequence[int]) -> str:
        return str(
            self.tokenizer.decode(list(token_ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        )

    def _named(self, text: str, mark: str) -> str:
        named = self.added.pattern.sub(lambda match: self._aliases.get(match[0], match[0]), text)
        return named.replace(mark, "") if mark else named

    def _copy(self) -> Tokenizer | None:
        """Returns None if the tokenizer is written in Python, or the copy would not have the same ids."""
        original = getattr(self.tokenizer, "backend_tokenizer", None)
        if original is None:
            return None
        copy = alias_tokens(original, self._aliases)
        same = all(copy.token_to_id(alias) == self.id_of[text] for text, alias in self._aliases.items())
        return copy if same else None

    def _check(self, token_ids: Sequence[int], text: str) -> None:
        """Raises InputError if the ids contain a control token that the template's (marked) output does not."""
        allowed = Counter(self.id_of[written] for written in self.added.pattern.findall(text) if written in self.id_of)
        # Unknown characters become the unknown token in any text, so it is allowed.
        names = {id: name for name, id in self.id_of.items() if id != self.tokenizer.unk_token_id}
        forged = Counter(id for id in token_ids if id in names) - allowed
        if forged:
            raise InputError(f"a text would become the control token {names[next(iter(forged))]}; write it otherwise")

    def _break(self, text: str, control: set[str], mark: str) -> str:
        """Inserts a mark after the first character of every control text, until none is left."""
        broken = ""
        while broken != text:
            broken, text = (
                text,
                self.added.pattern.sub(
                    lambda match: match[0][0] + mark + match[0][1:] if match[0] in control else match[0], text
                ),
            )
        return text


def _texts(value: Any) -> list[str]:
    found: list[str] = []
    inside = [value]
    while inside:
        value = inside.pop()
        if isinstance(value, str):
            found.append(value)
        elif isinstance(value, dict):
            inside += value
            inside += value.values()
        elif isinstance(value, list | tuple):
            inside += value
    return found


def _map_strings(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {_map_strings(key, change): _map_strings(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_map_strings(item, change) for item in value]
    return value
