"""Conversations of random tokens, as prepared data."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from components.conversations.chat_formats.rendered import RenderedConversation
from components.data.prepare import PREPARED_MANIFEST, PreparedDataset
from components.data.token_store import Entry, digest_of, write_store
from components.storage.open_folder import folder_at

FIRST_TOKEN = 3  # below are padding, begin and end


def random_dataset(
    directory: Path,
    vocabulary: int,
    *,
    train: Iterable[int],
    evaluate: Iterable[int],
    target_every: int = 2,
    seed: int = 0,
) -> PreparedDataset:
    """Writes conversations of these lengths, in tokens, and opens them. By default every second token is a target."""
    generator = np.random.default_rng(seed)

    def entry(tokens: int) -> Entry:
        token_ids = generator.integers(FIRST_TOKEN, vocabulary, tokens).tolist()
        weights = [float(position > 0 and (position + 1) % target_every == 0) for position in range(tokens)]
        rendered = RenderedConversation(token_ids=token_ids, target_weights=weights, turn_ends=[tokens])
        return Entry(source="random", rendered=rendered)

    directory.mkdir(parents=True)
    for split, lengths in (("train", train), ("eval", evaluate)):
        write_store(directory / f"{split}.arrow", [entry(tokens) for tokens in lengths])
    digests = {f"{split}_digest": digest_of(directory / f"{split}.arrow") for split in ("train", "eval")}
    manifest = {"digest": directory.name, **digests, "counts": {}}
    (directory / PREPARED_MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    return PreparedDataset.open(folder_at(directory))
