"""Conversations on a disk while they are split: memory holds some hundred bytes of each, however many there are."""

from __future__ import annotations

import json
import pickle
import tempfile
import weakref
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from hashlib import blake2b
from operator import attrgetter
from typing import overload

import numpy as np

from components.conversations.messages import MESSAGE_FIELDS, Conversation, Message
from components.data.near_duplicates import words_in
from components.data.split_membership import keys_of

IN_MEMORY = 32_000_000  # bytes, of fewer of which no file is made
KEY_BYTES = 16
OTHER_FIELDS = tuple(field.name for field in fields(Conversation) if field.name != "messages")
_values_of_message, _other_values = attrgetter(*MESSAGE_FIELDS), attrgetter(*OTHER_FIELDS)


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedConversation:
    """A conversation as bytes, and what a split asks of it.

    `words` are those of near_duplicates.words_in, `keys` those of split_membership.keys_of. `equals` is a digest of all that
    may change a token: equal conversations have the same tokens in every format.
    """

    content: bytes
    words: bytes
    keys: tuple[str, ...]
    equals: bytes


def pack(conversation: Conversation) -> PackedConversation:
    messages = [_values_of_message(each) for each in conversation.messages]
    says = json.dumps([messages, conversation.tools, conversation.expect], sort_keys=True)
    return PackedConversation(
        content=pickle.dumps((messages, _other_values(conversation)), protocol=pickle.HIGHEST_PROTOCOL),
        words=words_in(conversation),
        keys=keys_of(conversation),
        equals=blake2b(says.encode(), digest_size=KEY_BYTES).digest(),
    )


def unpack(content: bytes) -> Conversation:
    """Returns the conversation of PackedConversation.content."""
    messages, others = pickle.loads(content)  # of this program's own file, that has no name
    return Conversation(
        messages=tuple(Message(**dict(zip(MESSAGE_FIELDS, values, strict=True))) for values in messages),
        **dict(zip(OTHER_FIELDS, others, strict=True)),
    )


class _Texts:
    """Bytes in a temporary file, by number."""

    def __init__(self) -> None:
        self._file = tempfile.SpooledTemporaryFile(max_size=IN_MEMORY)  # noqa: SIM115 - it ends with this object
        weakref.finalize(self, self._file.close)
        self._ends = array("q", [0])

    def append(self, text: bytes) -> None:
        self._file.seek(self._ends[-1])
        self._file.write(text)
        self._ends.append(self._ends[-1] + len(text))

    def __getitem__(self, number: int) -> bytes:
        self._file.seek(self._ends[number])
        return self._file.read(self._ends[number + 1] - self._ends[number])


class ConversationFile:
    """Packed conversations by number, in the order in which they are appended."""

    def __init__(self) -> None:
        self.contents, self.words = _Texts(), _Texts()
        self._equals, self._keys = bytearray(), bytearray()
        self._groups: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self._equals) // KEY_BYTES

    def extend(self, packed: Iterable[PackedConversation]) -> None:
        for each in packed:
            text_key, *group_key = each.keys
            if group_key:
                self._groups[len(self)] = group_key[0]
            self._keys += bytes.fromhex(text_key)
            self._equals += each.equals
            self.contents.append(each.content)
            self.words.append(each.words)

    def equals(self, number: int) -> bytes:
        return bytes(self._equals[number * KEY_BYTES : (number + 1) * KEY_BYTES])

    def keys(self, number: int) -> tuple[str, ...]:
        text_key = self._keys[number * KEY_BYTES : (number + 1) * KEY_BYTES].hex()
        return (text_key, self._groups[number]) if number in self._groups else (text_key,)


class Conversations(Sequence[Conversation]):
    """Some of the conversations of a file, in order. Each is made again when it is asked for."""

    def __init__(self, file: ConversationFile, numbers: Sequence[int] | np.ndarray) -> None:
        self.file, self.numbers = file, np.asarray(numbers, dtype=np.int64)

    @classmethod
    def of(cls, conversations: Iterable[Conversation]) -> Conversations:
        file = ConversationFile()
        file.extend(map(pack, conversations))
        return cls(file, range(len(file)))

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, index: int) -> Conversation: ...
    @overload
    def __getitem__(self, index: slice) -> Conversations: ...
    def __getitem__(self, index: int | slice) -> Conversation | Conversations:
        if isinstance(index, slice):
            return Conversations(self.file, self.numbers[index])
        return unpack(self.content(index))

    def only(self, indices: Iterable[int]) -> Conversations:
        return Conversations(self.file, self.numbers[np.fromiter(indices, dtype=np.int64)])

    def content(self, index: int) -> bytes:
        return self.file.contents[int(self.numbers[index])]

    def equals(self, index: int) -> bytes:
        return self.file.equals(int(self.numbers[index]))

    def keys(self, index: int) -> tuple[str, ...]:
        return self.file.keys(int(self.numbers[index]))

    @property
    def words(self) -> Sequence[bytes]:
        return _Words(self.file, self.numbers)


class _Words(Sequence[bytes]):
    def __init__(self, file: ConversationFile, numbers: np.ndarray) -> None:
        self.file, self.numbers = file, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, index: int) -> bytes: ...
    @overload
    def __getitem__(self, index: slice) -> _Words: ...
    def __getitem__(self, index: int | slice) -> bytes | _Words:
        if isinstance(index, slice):
            return _Words(self.file, self.numbers[index])
        return self.file.words[int(self.numbers[index])]
