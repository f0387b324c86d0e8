"""The script that a text is written in: what stands for its language where losses are shown by language."""

from __future__ import annotations

import unicodedata
from collections import Counter
from functools import lru_cache

NO_LETTERS = "no letters"
_NAMES = {"cjk": "han", "hiragana": "kana", "katakana": "kana"}


def dominant_script(text: str) -> str:
    """Returns the script of most letters: latin, han, kana, hangul, cyrillic ...; of equal ones the first in the text.

    A letter's script is the first word of its Unicode name, so digits, marks and emojis count for none.
    """
    counts = Counter(_script_of(letter) for letter in text if letter.isalpha())
    return max(counts, key=lambda script: counts[script], default=NO_LETTERS)


@lru_cache(maxsize=65536)
def _script_of(letter: str) -> str:
    first = unicodedata.name(letter, "unnamed").partition(" ")[0].lower()
    return _NAMES.get(first, first)
