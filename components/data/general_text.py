"""Text that no search trains on: what a model's loss on it has risen by is what it has forgotten.

general_text.jsonl was written for this project and is part of it, nobody else's text: 24 English and 16 Chinese passages.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from components.conversations.chat_formats.rendered import Fork
from components.data.passage import Passage
from components.errors import InputError

SHIPPED = Path(__file__).with_name("general_text.jsonl")
FORM = 'each line is a text, or in a .jsonl file {"text": "..."}'
MAX_PROBLEMS = 20


class PassageRows:
    """Passages as rows of a store (RowStore): each is a conversation of its own."""

    def __init__(self, passages: Sequence[Passage]) -> None:
        self.passages = passages

    def __len__(self) -> int:
        return len(self.passages)

    @cached_property
    def lengths(self) -> np.ndarray:
        return np.array([len(passage.token_ids) for passage in self.passages], dtype=np.int64)

    @cached_property
    def num_targets(self) -> np.ndarray:
        return np.array([passage.num_targets for passage in self.passages], dtype=np.int32)

    @property
    def total_targets(self) -> int:
        return int(self.num_targets.sum())

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        passage = self.passages[index]
        weights = np.zeros(len(passage.token_ids), dtype=np.float32)
        weights[passage.first_target :] = 1.0
        return np.asarray(passage.token_ids, dtype=np.int32), weights

    def forks(self, index: int) -> tuple[Fork, ...]:
        return ()

    def conversation_of(self, row: int) -> int:
        return row

    def token_of(self, row: int, position: int) -> int:
        return position


def load_general_text(general: bool | str) -> tuple[str, ...]:
    """Returns the passages that `evaluation.general` names: the shipped ones, those of a file, or none.

    Raises InputError with all that is wrong with the file.
    """
    if general is False:
        return ()
    path = SHIPPED if general is True else Path(general)
    where = f"evaluation.general={path}"
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{where}: cannot be read: {error}; {FORM}") from None
    numbered = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    if path.suffix.lower() != ".jsonl":
        texts: list[str] = [line.strip() for _, line in numbered]
    else:
        read = [(number, _text_in(line)) for number, line in numbered]
        if bad := [number for number, text in read if text is None]:
            listed = ", ".join(map(str, bad[:MAX_PROBLEMS])) + (" ..." if len(bad) > MAX_PROBLEMS else "")
            raise InputError(f'{where}: no {{"text": "..."}} with words in line {listed}; {FORM}')
        texts = [text for _, text in read if text is not None]
    if not texts:
        raise InputError(f"{where}: holds no text; {FORM}")
    return tuple(texts)


def encode_passages(texts: Sequence[str], tokenizer: Any, *, max_tokens: int) -> tuple[Passage, ...]:
    """Encodes texts without a chat template; before each comes what the tokenizer adds to every text, e.g. a bos token.

    What it adds is never scored, nor is the first token of a text that nothing comes before. A longer text is cut.
    """
    found = []
    for text in texts:
        own = tokenizer.encode(text, add_special_tokens=False)
        before = _added_before(tokenizer.encode(text), own)
        token_ids = [*before, *own][:max_tokens]
        found.append(
            Passage(
                token_ids=tuple(token_ids),
                first_target=max(1, len(before)),
                num_bytes=len(text.encode()) if len(token_ids) == len(before) + len(own) else 0,
            )
        )
    return tuple(passage for passage in found if passage.num_targets > 0)


def token_ids_of(passages: Sequence[Passage]) -> Collection[int]:
    return {token for passage in passages for token in passage.token_ids}


def _added_before(whole: Sequence[int], own: Sequence[int]) -> Sequence[int]:
    """Returns the tokens of `whole` before those of the text itself; none if they are not in it as they are."""
    for start in range(len(whole) - len(own) + 1):
        if list(whole[start : start + len(own)]) == list(own):
            return whole[:start]
    return ()


def _text_in(line: str) -> str | None:
    try:
        record = json.loads(line)
    except json.JSONDecodeError:
        return None
    text = record.get("text") if isinstance(record, dict) else None
    return text if isinstance(text, str) and text.strip() else None
