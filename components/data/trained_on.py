"""The file beside a model that says what it was trained on: the keys of its conversations, without their text."""

from __future__ import annotations

import hashlib
from pathlib import Path

from components.data.token_store import TokenStore
from components.errors import InputError

TRAINED_ON = "trained_on.txt"


def training_keys(store: TokenStore) -> tuple[str, ...] | None:
    """Returns the keys of all conversations (and groups) of a split, sorted; None if the store has none."""
    return None if store.keys is None else tuple(sorted({key for keys in store.keys for key in keys}))


def keys_digest(keys: tuple[str, ...]) -> str:
    return f"sha256:{hashlib.sha256(''.join(keys).encode()).hexdigest()}"


def write_trained_on(store: TokenStore, directory: Path) -> None:
    """Writes one key per line after a line with their digest. Writes no file if the store has no keys."""
    keys = training_keys(store)
    if keys is not None:
        (directory / TRAINED_ON).write_text("\n".join([keys_digest(keys), *keys]) + "\n", encoding="utf-8")


def read_trained_on(directory: Path) -> frozenset[str] | None:
    """Reads the keys; None if there is no file. Raises InputError if the file has changed."""
    path = directory / TRAINED_ON
    if not path.is_file():
        return None
    digest, *keys = path.read_text(encoding="utf-8").splitlines() or [""]
    if keys_digest(tuple(keys)) != digest:
        raise InputError(f"{path}: cut short or changed, so nothing says what the version was trained on")
    return frozenset(keys)
