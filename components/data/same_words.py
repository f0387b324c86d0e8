"""Which conversations several base models can all use: those of which each has the same scored words.

A conversation that is too long for one tokenizer, or is cut at another turn, or that one chat format refuses, is left out for
all. So all trials of a search are trained on and compared on the same words, whatever their tokens are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from components.data.prepare import PreparedDataset
from components.data.token_store import TokenStore


def shared_sources(datasets: Sequence[PreparedDataset]) -> frozenset[str] | None:
    """Returns the sources of the conversations whose scored words all data sets have; None if those are all there are.

    The sides of a conversation are those of the split, but the targets of one base may be too few for a verdict split, and
    those of another not: then all are listed, and preparing with them gives all bases the same sides.
    """
    words = [{word for named in dataset.stores.items() for word in _words_in(*named)} for dataset in datasets]
    if all(each == words[0] for each in words):
        return None
    shared = frozenset.intersection(*(frozenset((source, size) for _, source, size in each) for each in words))
    return frozenset(source for source, _ in shared)


def _words_in(split: str, store: TokenStore) -> Iterator[tuple[str, str, int]]:
    """Yields (split, source, scored bytes) of each conversation: the turns that are left decide the bytes."""
    for index, num_bytes in enumerate(store.target_bytes.tolist()):
        yield split, store.source(index), num_bytes
