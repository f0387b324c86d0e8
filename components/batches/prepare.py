"""Conversations become token stores, once per content: everything that could change a token is in the folder's name."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from components.batches.store import TokenStore, write_store
from components.conversations.chat_format import ChatFormat
from components.conversations.formats import load_chat_format
from components.conversations.messages import Conversation
from components.conversations.readers import content_digest, read_conversations
from components.conversations.rendered import RenderedConversation
from components.conversations.tokenizers import load_tokenizer
from components.conversations.truncation import fit_length
from components.experiment.spec import DataSpec

LAYOUT = 1  # of the files below; a new layout is a new digest
MANIFEST = "manifest.json"
FEWER_IN_PROCESS = 500  # below this, starting processes costs more than it saves
CHUNK = 64


@dataclass(frozen=True, kw_only=True)
class PreparedDataset:
    """Two token stores in one folder. `reused` says that they had been prepared before."""

    directory: Path
    digest: str
    train_digest: str
    eval_digest: str
    reused: bool = False
    counts: dict[str, int] = field(default_factory=dict)

    @classmethod
    def open(cls, directory: Path, *, reused: bool = True) -> PreparedDataset:
        manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
        return cls(directory=directory, reused=reused, **manifest)

    @cached_property
    def train(self) -> TokenStore:
        return TokenStore(self.directory / "train.arrow")

    @cached_property
    def eval(self) -> TokenStore:
        return TokenStore(self.directory / "eval.arrow")

    def summary(self) -> str:
        """One line for people."""
        counts = self.counts
        parts = [
            f"{counts['train_conversations']} conversations to train on ({counts['train_targets']:,} target tokens)",
            f"{counts['eval_conversations']} held out ({counts['eval_targets']:,})",
        ]
        for key, words in _LOSSES.items():
            if counts[key]:
                parts.append(f"{counts[key]} {words}")
        how = "reused from before" if self.reused else "prepared"
        return f"data {self.digest[:12]} {how}: " + ", ".join(parts)


_LOSSES = {
    "dropped_bad": "dropped as unusable",
    "dropped_too_long": "dropped as too long",
    "truncated": "truncated",
    "duplicates": "duplicates left out",
}


def prepare(
    data: DataSpec, *, model_path: Path, chat_format_name: str, storage: Path, processes: int | None = None
) -> PreparedDataset:
    """Reads, splits, renders and stores; or finds that all this has been done before with the same content.

    Args:
        storage: prepared data lies under storage/prepared/<digest>/.
        processes: for rendering; by default one per core.

    Raises:
        ValueError: with all that is wrong with the conversations; or if a split would be empty.
    """
    chat_format = load_chat_format(load_tokenizer(model_path), chat_format_name)
    digest = _digest(data, chat_format)
    directory = storage / "prepared" / digest
    if (directory / MANIFEST).exists():
        return PreparedDataset.open(directory)
    train, held_out, counts = _read_and_split(data)
    renderer = _Renderer(data, model_path, chat_format_name, chat_format, processes)
    scratch = directory.with_name(f".{digest}.{os.getpid()}")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        manifest: dict[str, Any] = {"digest": digest, "counts": counts}
        for name, conversations in {"train": train, "eval": held_out}.items():
            write_store(scratch / f"{name}.arrow", renderer.kept(conversations, counts))
            store = TokenStore(scratch / f"{name}.arrow")
            if len(store) == 0:
                raise ValueError(f"data.{name}: no conversation is left to {name} on; raise data.max_tokens")
            manifest[f"{name}_digest"] = _file_digest(scratch / f"{name}.arrow")
            counts[f"{name}_conversations"] = len(store)
            counts[f"{name}_tokens"] = int(store.lengths.sum())
            counts[f"{name}_targets"] = store.total_targets
        (scratch / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        _move_into_place(scratch, directory)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return PreparedDataset.open(directory, reused=False)


def _digest(data: DataSpec, chat_format: ChatFormat) -> str:
    hashed = hashlib.sha256(f"layout {LAYOUT}\n{chat_format.digest()}\n".encode())
    hashed.update(data.model_dump_json(exclude={"train", "eval"}).encode())
    for source in (data.train, data.eval):
        hashed.update(b"\0" if source is None else content_digest(source).encode())
    return hashed.hexdigest()[:32]


def _read_and_split(data: DataSpec) -> tuple[list[Conversation], list[Conversation], dict[str, int]]:
    """(train, eval, counts). Equal conversations count once, and one that is held out is never trained on."""
    read = read_conversations(data.train, format=data.format, on_bad_row=data.on_bad_row)
    conversations, duplicates = _distinct(read.conversations, set())
    dropped = len(read.dropped)
    if data.eval is not None:
        held = read_conversations(data.eval, format=data.format, on_bad_row=data.on_bad_row)
        held_out, twice = _distinct(held.conversations, set())
        train, leaked = _distinct(conversations, {_key(conversation) for conversation in held_out})
        counts = {"dropped_bad": dropped + len(held.dropped), "duplicates": duplicates + twice + leaked}
    else:
        if len(conversations) < 2:
            raise ValueError(
                f"data.train: {len(conversations)} distinct conversation cannot be split into train and eval;"
                " add conversations, or give data.eval"
            )
        order = np.random.default_rng(data.split_seed).permutation(len(conversations)).tolist()
        held_count = min(max(1, round(data.eval_fraction * len(conversations))), len(conversations) - 1)
        # In the order of the file: the folder's content must not depend on more than it has to.
        held_out = [conversations[index] for index in sorted(order[:held_count])]
        train = [conversations[index] for index in sorted(order[held_count:])]
        counts = {"dropped_bad": dropped, "duplicates": duplicates}
    return train, held_out, {**counts, "dropped_too_long": 0, "truncated": 0}


def _distinct(conversations: Sequence[Conversation], known: set[str]) -> tuple[list[Conversation], int]:
    seen = set(known)
    distinct = []
    for conversation in conversations:
        key = _key(conversation)
        if key not in seen:
            seen.add(key)
            distinct.append(conversation)
    return distinct, len(conversations) - len(distinct)


def _key(conversation: Conversation) -> str:
    content = asdict(conversation)
    del content["source"]
    return json.dumps(content, sort_keys=True, ensure_ascii=False)


class _Renderer:
    """Renders in this process, or in several that each load the tokenizer once."""

    def __init__(
        self, data: DataSpec, model_path: Path, name: str, chat_format: ChatFormat, processes: int | None
    ) -> None:
        self.data, self.chat_format = data, chat_format
        self.setup = (model_path, name)
        self.processes = processes or os.cpu_count() or 1

    def kept(
        self, conversations: list[Conversation], counts: dict[str, int]
    ) -> Iterator[tuple[str, RenderedConversation]]:
        """(source, rendered) of those that fit, in order; the others are counted."""
        for conversation, rendered in zip(conversations, self._render(conversations), strict=True):
            fitted = fit_length(rendered, self.data.max_tokens, self.data.too_long, conversation.source)
            if fitted is None:
                counts["dropped_too_long"] += 1
                continue
            counts["truncated"] += len(fitted.token_ids) < len(rendered.token_ids)
            yield conversation.source, fitted

    def _render(self, conversations: list[Conversation]) -> Iterator[RenderedConversation]:
        if self.processes == 1 or len(conversations) < FEWER_IN_PROCESS:
            yield from map(self.chat_format.render, conversations)
            return
        chunks = [conversations[start : start + CHUNK] for start in range(0, len(conversations), CHUNK)]
        with ProcessPoolExecutor(self.processes, get_context("spawn"), _load_in_process, self.setup) as pool:
            yield from itertools.chain.from_iterable(pool.map(_render_in_process, chunks))


_format_of_this_process: ChatFormat | None = None


def _load_in_process(model_path: Path, name: str) -> None:
    global _format_of_this_process
    _format_of_this_process = load_chat_format(load_tokenizer(model_path), name)


def _render_in_process(conversations: list[Conversation]) -> list[RenderedConversation]:
    assert _format_of_this_process is not None
    return [_format_of_this_process.render(conversation) for conversation in conversations]


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _move_into_place(scratch: Path, directory: Path) -> None:
    """Another process may have been faster; its content is the same."""
    try:
        scratch.rename(directory)
    except OSError:
        if not (directory / MANIFEST).exists():
            raise
