"""Sizes in bytes: of folders, and for people."""

from __future__ import annotations

import os
from pathlib import Path

GB = 1e9


def size_in_words(size: float) -> str:
    """E.g. `12.3 GB`, which is 12.3e9 bytes; in MB where it is less than one."""
    if size >= GB:
        return f"{size / GB:,.1f} GB"
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e6:.2g} MB"


def tree_bytes(folder: Path) -> int:
    """Bytes of all files in a folder; 0 if there is none. A file that goes meanwhile does not count."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += Path(place, name).lstat().st_size
            except FileNotFoundError:
                continue
    return total
