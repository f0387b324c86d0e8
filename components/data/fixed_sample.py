"""A choice of conversations that every trial shares, and that stays where others are added beside it."""

from __future__ import annotations

import hashlib

from components.data.token_store import TokenStore


def fixed_sample(store: TokenStore, count: int) -> list[int]:
    """Returns the indices of at most `count` conversations, ascending: those with the smallest hashes of their text.

    So a sample stays the same where conversations are added, but for what is new and smaller; and a smaller sample is part
    of a larger one.
    """
    known = store.keys or [(store.source(index),) for index in range(len(store))]
    marks = [hashlib.sha256(f"generate\n{keys[0]}".encode()).hexdigest() for keys in known]
    return sorted(sorted(range(len(store)), key=lambda index: marks[index])[:count])
