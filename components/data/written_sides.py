"""Writes the sides of a split as token stores, each once, and says what was left out of them."""

from __future__ import annotations

from collections.abc import Iterator, Set
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.compute

from components.conversations.readers.data_problems import MAX_SHOWN
from components.data.conversation_file import Conversations
from components.data.parallel_rendering import CHUNK, Renderer
from components.data.rendered_rows import BAD, Refusal, RowRules, rendered_rows
from components.data.token_store import write_batches
from components.experiment.spec import DataSpec


@dataclass(slots=True, kw_only=True)
class WrittenSide:
    """`given` conversations were to be written; `not_for_all` others are left out for another base model."""

    file: Path
    given: int
    not_for_all: int
    truncated: int = 0
    refused: list[Refusal] = field(default_factory=list)

    def failing(self, data: DataSpec) -> list[Refusal]:
        """Returns those that `data` does not allow to be left out."""
        return [each for each in self.refused if (data.on_bad_row if each.kind == BAD else data.too_long) == "fail"]


class SideWriter:
    """Args:
    context: the most tokens of a path; None for any number.
    shared: the sources of the conversations to use; None for all.
    """

    def __init__(
        self, folder: Path, renderer: Renderer, data: DataSpec, *, context: int | None, shared: Set[str] | None
    ) -> None:
        self.folder, self.renderer, self.data = folder, renderer, data
        self.context, self.shared = context, shared
        self._written: dict[str, tuple[Conversations, WrittenSide]] = {}

    def write(self, name: str, conversations: Conversations, *, every: bool = False) -> WrittenSide:
        """Writes a side, unless it has been written before.

        Args:
            every: goes on however many are refused; else it ends where there are enough for an error.
        """
        if name in self._written and self._written[name][0] is conversations:
            return self._written[name][1]
        kept = self._for_all(conversations)
        left = len(conversations) - len(kept)
        side = WrittenSide(file=self.folder / f"{name}.arrow", given=len(kept), not_for_all=left)
        write_batches(side.file, self._rows(kept, side, keep=name != "train", every=every))
        self._written[name] = conversations, side
        return side

    def _rows(self, kept: Conversations, side: WrittenSide, *, keep: bool, every: bool) -> Iterator[pa.RecordBatch]:
        """Yields rows, and adds what is refused to the side.

        Those that are held out are also kept as text: another version's chat format may have to render them.
        """
        rules = RowRules(
            max_tokens=self.data.max_tokens,
            truncate=self.data.too_long == "truncate",
            context=self.context,
            keep=keep,
        )
        chunks = (
            [kept.content(index) for index in range(start, min(start + CHUNK, len(kept)))]
            for start in range(0, len(kept), CHUNK)
        )
        for done in self.renderer.map(partial(rendered_rows, rules), chunks):
            side.refused += done.refused
            side.truncated += pa.compute.sum(done.rows.column("truncated")).as_py() or 0
            yield done.rows
            if not every and len(side.failing(self.data)) >= MAX_SHOWN:
                return

    def _for_all(self, conversations: Conversations) -> Conversations:
        if self.shared is None:
            return conversations
        return conversations.only(n for n, each in enumerate(conversations) if each.source in self.shared)
