"""Registered versions as a table, and one of them as lines."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

from rich.table import Table

from components.registry.prune import PrunePlan
from components.registry.version_record import VersionRecord
from components.storage.size import size_in_words

NONE = "-"


def versions_table(records: Iterable[VersionRecord]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("version", "aliases", "gate", "proven", "method", "eval loss", "size", "created"):
        table.add_column(column, justify="right" if column in ("version", "eval loss", "size") else "left")
    for record in records:
        table.add_row(
            record.version,
            ", ".join(record.aliases) or NONE,
            gate_in_words(record),
            "yes" if record.proven else "no",
            record.method or NONE,
            NONE if record.eval_loss is None else f"{record.eval_loss:.4f}",
            NONE if record.bytes is None else size_in_words(record.bytes),
            created_in_words(record),
        )
    return table


def version_lines(record: VersionRecord) -> Iterator[str]:
    """What the registry says of a version: what it is, its description, and all its tags in the order of the alphabet."""
    yield record.uri
    yield f"aliases  {', '.join(record.aliases) or NONE}"
    yield f"created  {created_in_words(record)}"
    yield f"gate     {record.gate or 'has not decided'}"
    yield f"proven   {record.proven or 'no; prove it before it gets an alias'}"
    yield f"files    {record.source}{'' if record.bytes is None else f', {size_in_words(record.bytes)}'}"
    if record.description:
        yield f"\n{record.description}\n"
    yield "tags"
    width = max(map(len, record.tags), default=0)
    for key, value in record.tags.items():
        first, *rest = value.splitlines() or [""]
        yield f"  {key:{width}}  {first}"
        yield from (f"  {'':{width}}  {line}" for line in rest)


def prune_lines(plan: PrunePlan, *, dry: bool) -> Iterator[str]:
    for record, reason in plan.kept:
        yield f"version {record.version} stays: {reason}"
    numbers = ", ".join(record.version for record in plan.unneeded)
    if not plan.unneeded:
        yield "nothing to delete: each version is needed"
    elif dry:
        yield f"would be deleted: {numbers} ({size_in_words(plan.bytes)}); do so with --yes"


def gate_in_words(record: VersionRecord) -> str:
    return {True: "passed", False: "not passed", None: NONE}[record.gate_passed]


def created_in_words(record: VersionRecord) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(record.created))
