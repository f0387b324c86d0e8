"""Prepares conversations as token stores, once per content: the folder's name is a digest of all that may change a token."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Self

from components.conversations.chat_formats import load_chat_format
from components.conversations.chat_formats.chat_format import ChatFormat
from components.conversations.load_format import format_spec_in, load_format_of
from components.conversations.readers.data_problems import MAX_SHOWN, ConversationError
from components.conversations.readers.mending import mended_sentence
from components.conversations.readers.read import content_digest
from components.conversations.readers.record_count import count_records
from components.conversations.readers.unknown_keys import unused_keys_sentences
from components.conversations.tokenizers.load_tokenizer import load_tokenizer
from components.data.parallel_rendering import Renderer, rendering
from components.data.process_pool import StartPool, on_this_machine
from components.data.rows import rows_of
from components.data.split import Records, Split, read_records, read_side
from components.data.token_store import TokenStore, check_file, digest_of
from components.data.written_sides import SideWriter, WrittenSide
from components.errors import InputError
from components.experiment.spec import PREPARED, ChatFormatSpec, DataSpec, ExperimentSpec
from components.statistics.paired_bootstrap import LEAST, number_needed
from components.storage.folder import Folder

STORE_VERSION = 5  # of the files below; part of the digest
PREPARED_MANIFEST = "manifest.json"
MAX_LEFT_OUT_LISTED = 1000  # conversations that were left out, and mended ones, in the manifest
MAX_READS = 3

OpenCluster = Callable[[Folder], StartPool]  # given a folder for what a killed process leaves to the next one


@dataclass(frozen=True, kw_only=True)
class PreparedDataset:
    """Two or three token stores in one folder. `reused` says that they had been prepared before.

    `context` is the model's, if it is less than data.max_tokens: no path has more tokens.
    `counts` has the conversations, tokens and targets of each split, and the numbers of conversations that were dropped,
    truncated, mended, equal to another, or kept apart from what is held out (see sides.Sides). `left_out` names the dropped
    ones with reasons, `mended` the mended ones with what was done to them, of which `mended_kinds` counts the kinds.
    `verdict_note` says whether there is a verdict split, and why not if there is none.
    `unused_keys` counts keys of records that change no token, `ignored_keys` unknown keys that were ignored on request.
    """

    directory: Folder
    digest: str
    train_digest: str
    eval_digest: str
    verdict_digest: str | None = None
    verdict_note: str = ""
    reused: bool = False
    context: int | None = None
    counts: dict[str, int] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    mended: tuple[str, ...] = ()
    mended_kinds: dict[str, int] = field(default_factory=dict)
    unused_keys: dict[str, int] = field(default_factory=dict)
    ignored_keys: dict[str, int] = field(default_factory=dict)

    @classmethod
    def open(cls, directory: Folder, *, reused: bool = True) -> PreparedDataset:
        try:
            manifest = json.loads(directory.read_text(PREPARED_MANIFEST))
        except json.JSONDecodeError:
            raise InputError(
                f"{directory}: {PREPARED_MANIFEST} of this prepared data cannot be read; {_way_out(directory)}"
            ) from None
        left_out, mended = (tuple(manifest.pop(key, ())) for key in ("left_out", "mended"))
        return cls(directory=directory, reused=reused, left_out=left_out, mended=mended, **manifest)

    @cached_property
    def train(self) -> TokenStore:
        return self._store("train", self.train_digest)

    @cached_property
    def eval(self) -> TokenStore:
        return self._store("eval", self.eval_digest)

    @cached_property
    def verdict(self) -> TokenStore | None:
        """The conversations that only the gate sees; None if the data is too small for a third side."""
        return None if self.verdict_digest is None else self._store("verdict", self.verdict_digest)

    @property
    def judged(self) -> TokenStore:
        """The split that the gate judges by: the verdict split, or eval without one."""
        return self.eval if self.verdict is None else self.verdict

    @property
    def stores(self) -> dict[str, TokenStore]:
        """Every split that there is, by name."""
        splits = {"train": self.train, "eval": self.eval, "verdict": self.verdict}
        return {name: store for name, store in splits.items() if store is not None}

    def verify(self) -> Self:
        """Returns itself. Raises InputError if the file of a split has changed."""
        _ = self.stores  # opening a split checks its file
        return self

    def _store(self, split: str, digest: str) -> TokenStore:
        path = self.directory.download() / f"{split}.arrow"
        try:
            check_file(path, digest)
        except (ValueError, FileNotFoundError) as error:
            raise InputError(f"{error}; {_way_out(self.directory)}") from None
        return TokenStore(path)

    def summary(self) -> str:
        """Returns one line for users."""
        counts = self.counts
        parts = [
            f"{counts['train_conversations']} conversations to train on ({counts['train_targets']:,} target tokens)",
            f"{counts['eval_conversations']} held out ({counts['eval_targets']:,})",
        ]
        if self.verdict_digest is not None:
            parts.append(f"{counts['verdict_conversations']} for the verdict ({counts['verdict_targets']:,})")
        for key, words in _LEFT_OUT_WORDS.items():
            if counts.get(key):
                parts.append(f"{counts[key]} {words}")
        if counts.get("mended"):
            parts.append(mended_sentence(self.mended_kinds, counts["mended"]))
        parts += unused_keys_sentences(self.unused_keys, self.ignored_keys)
        how = "reused from before" if self.reused else "prepared"
        return f"data {self.digest[:12]} {how}: " + ", ".join(parts)


def _way_out(directory: Folder) -> str:
    return f"remove {directory}, and start again: the data is prepared anew"


_LEFT_OUT_WORDS = {
    "dropped_bad": "dropped as unusable",
    "dropped_too_long": "dropped as too long",
    "truncated": "truncated",
    "duplicates": "duplicates left out",
    "not_for_all": "left out, as another base model has other words of them",
    "leaked": "held out and therefore not trained on",
    "near_duplicates": "not trained on because they are near held-out ones (data.near_duplicates)",
    "eval_leaked": "left out of eval because they are in the verdict split, or near it",
}


def prepare_experiment(
    experiment: ExperimentSpec,
    model_path: Path,
    *,
    context: int | None,
    shared: Set[str] | None = None,
    cluster: OpenCluster | None = None,
) -> PreparedDataset:
    """Prepares an experiment's data on the storage that all experiments share, as `prepare` does."""
    return prepare(
        experiment.data,
        model_path=model_path,
        chat_format=experiment.format_spec,
        storage=experiment.folder.parent,
        context=context,
        shared=shared,
        cluster=cluster,
    )


def prepared_before(experiment: ExperimentSpec, model_path: Path, *, context: int | None) -> PreparedDataset | None:
    """Returns an experiment's data if it has been prepared. Raises InputError as `prepare` does."""
    chat_format = load_format_of(model_path, experiment.format_spec)
    data = experiment.data
    _, directory = _place(data, chat_format, experiment.folder.parent, _relevant(context, data), None)
    return PreparedDataset.open(directory).verify() if directory.is_complete() else None


def prepare(
    data: DataSpec,
    *,
    model_path: Path,
    chat_format: ChatFormatSpec | str,
    storage: Folder,
    context: int | None = None,
    shared: Set[str] | None = None,
    processes: int | None = None,
    cluster: OpenCluster | None = None,
) -> PreparedDataset:
    """Reads, splits, renders and stores conversations; returns the existing data if the same content was prepared before.

    Args:
        storage: prepared data is kept in storage/prepared/<digest>/.
        context: the most tokens that the model sees at once; None for any number.
        shared: the sources of the conversations to use, if several base models have not the same words of the others.
        processes: for reading and rendering; by default one per core.
        cluster: reads and renders data.on_cluster_from conversations and more, with the same result; by default processes do.

    Raises:
        InputError: with all problems of the conversations, or if a split would be empty.
    """
    format_spec = format_spec_in(model_path, chat_format)
    context = _relevant(context, data)
    tokenizer = load_tokenizer(model_path)
    loaded = load_chat_format(tokenizer, format_spec)
    for _ in range(MAX_READS):
        contents, directory = _place(data, loaded, storage, context, shared)
        if directory.is_complete():
            return PreparedDataset.open(directory).verify()
        start_pool = _pool_for(data, directory, cluster, processes)
        with rendering(tokenizer, format_spec, loaded, start_pool) as renderer:
            if directory.is_complete():  # another driver has prepared it while this one waited for its turn
                return PreparedDataset.open(directory).verify()
            records = _read_records(data, renderer)
            if records.contents == contents:  # else the files changed between digest and reading
                directory.publish(partial(_write, records, renderer, context, shared, directory.name))
                return PreparedDataset.open(directory, reused=False).verify()
    named = " or ".join(str(source) for source in _sources(data) if source is not None)
    raise InputError(
        f"data: files of {named} changed each of the {MAX_READS} times they were read; wait until they are written,"
        " or name copies of them"
    )


def _sources(data: DataSpec) -> tuple[str | Sequence[str] | None, ...]:
    return data.train, data.eval, data.verdict


def _relevant(context: int | None, data: DataSpec) -> int | None:
    """No path is longer than its tree."""
    return context if context is not None and context < data.max_tokens else None


def _place(
    data: DataSpec, chat_format: ChatFormat, storage: Folder, context: int | None, shared: Set[str] | None
) -> tuple[list[str | None], Folder]:
    """Returns the digests of the sources as they are now, and the folder of what is made of them."""
    contents = [None if source is None else content_digest(source) for source in _sources(data)]
    return contents, storage / PREPARED / _digest(data, chat_format, contents, context, shared)


def _pool_for(data: DataSpec, directory: Folder, cluster: OpenCluster | None, processes: int | None) -> StartPool:
    least = data.on_cluster_from
    if cluster is None or least is None or count_records(_sources(data), enough=least) < least:
        return partial(on_this_machine, processes=processes)
    return cluster(directory.parent / f"{directory.name}.shards")


def _write(
    records: Records, renderer: Renderer, context: int | None, shared: Set[str] | None, digest: str, scratch: Path
) -> None:
    data = records.data
    sides = SideWriter(scratch, renderer, data, context=context, shared=shared)
    split = records.split()
    if split.verdict and data.verdict_is_automatic:
        needed = _needed(sides.write("verdict", split.verdict, every=True), by_bytes=shared is not None)
        split = split if needed is None else records.split(too_few=needed)
    tally, digests = _Tally(split), {}
    for name, conversations in (("train", split.train), ("eval", split.eval), ("verdict", split.verdict)):
        if conversations:
            written = sides.write(name, conversations)
            tally.add(written, data)
            tally.count_store(name, TokenStore(written.file))
            digests[f"{name}_digest"] = digest_of(written.file)
    manifest = {
        "digest": digest,
        **digests,
        "verdict_note": split.verdict_note,
        "context": context,
        "counts": tally.counts,
        "left_out": tally.left_out[:MAX_LEFT_OUT_LISTED],
        "mended": split.mended[:MAX_LEFT_OUT_LISTED],
        "mended_kinds": split.mended_kinds,
        "unused_keys": split.unused_keys,
        "ignored_keys": split.ignored_keys,
    }
    (scratch / PREPARED_MANIFEST).write_text(
        json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )


def _needed(verdict: WrittenSide, *, by_bytes: bool) -> int | None:
    """Returns how many conversations like those of the verdict split can decide; None if it has so many.

    Only their targets say so, once they are rendered; what cannot be used is reported later. Where several base models share
    the words, their bytes decide (`by_bytes`), so that all have a verdict split or none.
    """
    store = TokenStore(verdict.file)
    weights = store.target_bytes if by_bytes else store.num_targets
    needed = number_needed(weights) if len(weights) else LEAST
    if len(weights) >= needed:
        return None
    verdict.file.unlink()
    return needed


def _digest(
    data: DataSpec,
    chat_format: ChatFormat,
    contents: Sequence[str | None],
    context: int | None,
    shared: Set[str] | None,
) -> str:
    hashed = hashlib.sha256(f"layout {STORE_VERSION}\n{chat_format.digest()}\n".encode())
    hashed.update(data.model_dump_json(exclude={"train", "eval", "verdict", "on_cluster_from"}).encode())
    if context is not None:
        hashed.update(f"context {context}\n".encode())
    if shared is not None:
        hashed.update("\n".join(["shared", *sorted(shared)]).encode())
    for content in contents:
        hashed.update(b"\0" if content is None else content.encode())
    return hashed.hexdigest()[:32]


class _Tally:
    """Counts of conversations, and the locations and reasons of those that were left out."""

    def __init__(self, split: Split) -> None:
        self.left_out = [*split.left_out, *split.sides.dropped]
        self.counts = {
            "dropped_bad": len(split.left_out),
            "mended": len(split.mended),
            "duplicates": split.sides.duplicates,
            "leaked": split.sides.leaked,
            "near_duplicates": split.sides.near_duplicates,
            "eval_leaked": split.sides.eval_leaked,
            "not_for_all": 0,
            "dropped_too_long": 0,
            "truncated": 0,
            "ignored_keys": sum(split.ignored_keys.values()),
        }

    def add(self, written: WrittenSide, data: DataSpec) -> None:
        """Counts what was left out of a side. Raises InputError if `data` does not allow it, with all of it together."""
        failing = written.failing(data)
        if failing:
            count = f"at least {MAX_SHOWN}" if len(failing) >= MAX_SHOWN else f"{len(failing)}"
            listed = "".join(f"\n  {each.problem}{each.way_out}" for each in failing[:MAX_SHOWN])
            raise InputError(f"data: {count} of {written.given} conversations cannot be used{listed}")
        self.counts["truncated"] += written.truncated
        self.counts["not_for_all"] += written.not_for_all
        for each in written.refused:
            self.counts[each.kind] += 1
            self.left_out.append(each.problem)

    def count_store(self, name: str, store: TokenStore) -> None:
        if len(store) == 0:
            listed = "".join(f"\n  {problem}" for problem in self.left_out[-MAX_SHOWN:])
            raise InputError(f"data.{name}: every conversation was dropped, so none is left{listed}")
        self.counts[f"{name}_conversations"] = len(store)
        self.counts[f"{name}_tokens"] = int(store.lengths.sum())
        self.counts[f"{name}_targets"] = store.total_targets
        self.counts[f"{name}_target_bytes"] = int(store.target_bytes.sum())
        self.counts[f"{name}_trees"] = store.num_trees
        self.counts[f"{name}_separate_tokens"] = int(rows_of(store, separate=True).lengths.sum())


def _read_records(data: DataSpec, renderer: Renderer) -> Records:
    """Raises InputError for conversations that cannot be read, together with those that can, but cannot be rendered."""
    try:
        return read_records(data, renderer.pool)
    except ConversationError as error:
        sources = [source for source in (data.train, data.eval, data.verdict) if source is not None]
        refused = [text for source in sources for text in _refusals(source, data, renderer)]
        if not refused:
            raise
        listed = "".join(f"\n  {text}" for text in refused[:MAX_SHOWN])
        raise InputError(f"{error}\nOf those that can be read, {len(refused)} cannot be rendered{listed}") from None


def _refusals(source: str | Sequence[str], data: DataSpec, renderer: Renderer) -> list[str]:
    try:
        read = read_side(source, data, drop=True, pool=renderer.pool)
    except ConversationError:
        return []
    return [rendered for rendered in renderer.render(read.conversations) if isinstance(rendered, str)]
