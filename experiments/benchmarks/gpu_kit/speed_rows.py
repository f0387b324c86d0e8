"""What the steps of a measurement are made of, for the product's Trainer and for transformers' alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from components.conversations.chat_formats.rendered import IGNORE_INDEX
from components.data.collate import MULTIPLE, collate
from components.data.prepare import PreparedDataset
from components.data.sampler import PackedRow, StepSampler
from components.data.token_store import TokenStore
from components.experiment.spec import BatchSpec
from experiments.benchmarks.gpu_kit.rows import random_dataset

PACKED, WHOLE, CHATS, PADDED = "packed rows", "whole rows", "short chats, packed", "short chats, padded"
MICRO_BATCHES = 2  # of a step, so that accumulation is a part of what is measured


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Conversations of `shortest` to `longest` tokens in rows of at most `max_tokens`; `per_pass` rows in a forward pass."""

    name: str
    shortest: int
    longest: int
    max_tokens: int
    packing: bool
    per_pass: int

    @property
    def batch(self) -> BatchSpec:
        return BatchSpec(
            rows_per_step=MICRO_BATCHES * self.per_pass, rows_per_micro_batch=self.per_pass, packing=self.packing
        )

    @property
    def tokens_per_pass(self) -> int:
        """At most, padding counted."""
        return self.per_pass * (self.max_tokens if self.packing else self.longest)

    def dataset(self, folder: Path, vocabulary: int, steps: int) -> PreparedDataset:
        """Enough conversations for so many whole steps of one epoch."""
        generator = np.random.default_rng(0)
        wanted = (steps + 1) * self.batch.rows_per_step * (self.max_tokens if self.packing else 1)
        lengths: list[int] = []
        while (sum(lengths) if self.packing else len(lengths)) < wanted:
            lengths.append(int(generator.integers(self.shortest, self.longest + 1)))
        return random_dataset(folder, vocabulary, train=lengths, evaluate=[self.shortest])

    def steps(self, store: TokenStore, seed: int, count: int) -> list[list[PackedRow]]:
        """The rows of the first steps of a trial, as its own sampler has them."""
        return StepSampler(store.lengths, self.batch, max_tokens=self.max_tokens, seed=seed).plan(0)[:count]


def row_kinds(*, tiny: bool, per_pass: int) -> dict[str, Rows]:
    """By name. Chats of one row each are as many a pass as there are, on average, in as many packed rows."""
    most = 128 if tiny else 4096
    longest_chat, shortest_chat = most // 10, most // 64
    chats_per_row = max(1, 2 * most // (longest_chat + shortest_chat))
    kinds = (
        Rows(name=PACKED, shortest=most // 40, longest=3 * most // 8, max_tokens=most, packing=True,
             per_pass=per_pass),
        Rows(name=WHOLE, shortest=most, longest=most, max_tokens=most, packing=True, per_pass=per_pass),
        Rows(name=CHATS, shortest=shortest_chat, longest=longest_chat, max_tokens=most, packing=True,
             per_pass=per_pass),
        Rows(name=PADDED, shortest=shortest_chat, longest=longest_chat, max_tokens=most, packing=False,
             per_pass=per_pass * chats_per_row),
    )  # fmt: skip
    return {rows.name: rows for rows in kinds}


def as_hugging_face_has_them(store: TokenStore, rows: Sequence[PackedRow], *, packing: bool) -> list[dict[str, Tensor]]:
    """One item a row, without padding. Labels are not shifted: each is the token itself, or -100.

    Packed rows have positions that restart, by which transformers keeps conversations apart; others have none.
    """
    items = []
    for row in rows:
        batch = collate(store, [row], pad_token_id=0)
        length = int((batch.segment_ids_BT > 0).sum())
        labels = batch.labels_BT[0].roll(1)
        labels[0] = IGNORE_INDEX
        item = {"input_ids": batch.token_ids_BT[0, :length], "labels": labels[:length]}
        items.append(item | ({"position_ids": batch.position_ids_BT[0, :length]} if packing else {}))
    return items


def pad(items: Sequence[dict[str, Tensor]]) -> dict[str, Any]:
    """The collator of transformers' users: rows padded on the right, and a mask where nothing else tells padding.

    Packed rows are padded by tokens of position 0, and need no mask.
    """
    longest = max(len(item["input_ids"]) for item in items)
    length = -(-longest // MULTIPLE) * MULTIPLE
    filler = {"input_ids": 0, "labels": IGNORE_INDEX, "position_ids": 0}
    batch: dict[str, Any] = {
        name: torch.stack([_filled(item[name], length, filler[name]) for item in items]) for name in items[0]
    }
    if "position_ids" not in batch:
        ones = [torch.ones_like(item["input_ids"]) for item in items]
        batch["attention_mask"] = torch.stack([_filled(one, length, 0) for one in ones])
    return batch


def _filled(values: Tensor, length: int, filler: int) -> Tensor:
    return torch.nn.functional.pad(values, (0, length - len(values)), value=filler)
