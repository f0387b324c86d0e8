"""What is left of a disk, beside what will be written next."""

from __future__ import annotations

from components.storage.folder import Folder
from components.storage.size import size_in_words


def lack_of_room(folder: Folder, needed: int) -> str:
    """Says that a folder's disk has less room than `needed` bytes; empty if it has, and where there is no end of room.

    Nobody need wait yet, and a quota is not always seen: who meets it waits, and says so (room.py).
    """
    try:
        free = folder.free_bytes()
    except OSError:
        return ""  # who writes there will say more
    if free is None or free >= needed:
        return ""
    return (
        f"{folder}: its disk has {size_in_words(free)} of room left, and a checkpoint takes up to {size_in_words(needed)}."
        " Where it is full, trials wait at their next report, and nothing is lost"
    )
