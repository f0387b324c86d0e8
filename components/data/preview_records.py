"""Converts prepared data, or a file of conversations, to records of the mask preview."""

from __future__ import annotations

from collections.abc import Sequence

from components.conversations.chat_formats.rendered import RenderedConversation
from components.conversations.chat_formats.truncation import fit_length
from components.conversations.messages import Conversation
from components.conversations.preview.mask_preview import PreviewRecord, PreviewTotals
from components.conversations.readers.data_problems import MAX_SHOWN
from components.data.parallel_rendering import Renderer
from components.data.prepare import PreparedDataset
from components.data.token_store import TokenStore
from components.errors import InputError

DROPPED = (
    "dropped_bad",
    "dropped_too_long",
    "leaked",
    "near_duplicates",
    "eval_leaked",
)  # equal ones count once, in all
TRUNCATED = "truncated, its last turns did not fit"


def stored_records(store: TokenStore, count: int | None = None) -> list[PreviewRecord]:
    """Returns the first `count` conversations of a split, or all."""
    records = []
    for index in range(len(store) if count is None else min(count, len(store))):
        token_ids, target_weights = store[index]
        record = PreviewRecord(
            source=store.source(index),
            token_ids=token_ids.tolist(),
            target_weights=target_weights.tolist(),
            forks=store.forks(index),
            note=TRUNCATED if store.is_truncated(index) else "",
        )
        records.append(record)
    return records


def totals_of(dataset: PreparedDataset) -> PreviewTotals:
    """Returns the totals of all splits."""

    def total(what: str) -> int:
        return sum(dataset.counts.get(f"{split}_{what}", 0) for split in ("train", "eval", "verdict"))

    return PreviewTotals(
        conversations=total("conversations"),
        tokens=total("tokens"),
        targets=total("targets"),
        dropped=sum(dataset.counts.get(kind, 0) for kind in DROPPED),
        truncated=dataset.counts["truncated"],
        trees=total("trees"),
        separate_tokens=total("separate_tokens"),
    )


def rendered_records(
    conversations: Sequence[Conversation], renderer: Renderer, max_tokens: int | None = None
) -> list[PreviewRecord]:
    """Returns one record per conversation, in order, truncated to max_tokens; an empty one if not even one turn fits.

    Raises InputError with the conversations that the chat format refuses.
    """
    records: list[PreviewRecord] = []
    refused: list[str] = []
    for conversation, rendered in zip(conversations, renderer.render(conversations), strict=True):
        if isinstance(rendered, str):
            refused.append(rendered)
        else:
            records.append(_record(conversation.source, rendered, max_tokens))
    if refused:
        more = [f"... and {len(refused) - MAX_SHOWN} more"] if len(refused) > MAX_SHOWN else []
        raise InputError("\n".join([*refused[:MAX_SHOWN], *more]))
    return records


def totals_of_records(records: Sequence[PreviewRecord], dropped: int = 0) -> PreviewTotals:
    """Returns the totals of records; `dropped` conversations are not among them."""
    kept = [record for record in records if record.token_ids]
    return PreviewTotals(
        conversations=len(kept),
        tokens=sum(len(record.token_ids) for record in kept),
        targets=sum(record.num_targets for record in kept),
        dropped=dropped + len(records) - len(kept),
        truncated=sum(record.note == TRUNCATED for record in kept),
        trees=sum(bool(record.forks) for record in kept),
        separate_tokens=sum(record.num_separate_tokens for record in kept),
    )


def _record(source: str, rendered: RenderedConversation, max_tokens: int | None) -> PreviewRecord:
    length = len(rendered.token_ids)
    fitted = rendered if max_tokens is None else fit_length(rendered, max_tokens, truncate=True)
    if fitted is None:
        dropped = f"dropped, of its {length} tokens not even the first scored turn fits into {max_tokens}"
        return PreviewRecord(source=source, token_ids=(), target_weights=(), note=dropped)
    note = TRUNCATED if len(fitted.token_ids) < length else ""
    return PreviewRecord(
        source=source,
        token_ids=fitted.token_ids,
        target_weights=fitted.target_weights,
        forks=fitted.forks,
        note=note,
    )
