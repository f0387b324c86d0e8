"""Which script a text is written in, and its words. Where a script writes no spaces, as Chinese, each character is one."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from functools import lru_cache

HAN, JAPANESE, LATIN = "CJK", "JAPANESE", "LATIN"
WITHOUT_SPACES = (HAN, JAPANESE, "THAI", "LAO", "KHMER", "MYANMAR")
_KANA_SHARE = 0.1  # of a Japanese text at least so many characters are kana; Chinese has none
_CHARACTERS = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_WORD = re.compile(rf"[{_CHARACTERS}]|[^\W_{_CHARACTERS}]+")


def words_of(text: str) -> list[str]:
    """Returns the words in lower case, without punctuation. A character of a script without spaces is a word."""
    return _WORD.findall(unicodedata.normalize("NFC", text).lower())


def main_script(text: str) -> str | None:
    """Returns the script of most letters by its Unicode name, e.g. LATIN, CJK (Chinese), CYRILLIC; None without letters."""
    counts = Counter(_script(letter) for letter in unicodedata.normalize("NFKC", text) if letter.isalpha())
    kana = counts.pop("HIRAGANA", 0) + counts.pop("KATAKANA", 0) + counts.pop("KATAKANA-HIRAGANA", 0)
    if kana and kana >= _KANA_SHARE * (kana + counts[HAN]):
        counts[JAPANESE] = kana + counts.pop(HAN, 0)
    return max(counts, key=lambda script: counts[script]) if counts else None


@lru_cache(maxsize=4096)
def _script(letter: str) -> str:
    return unicodedata.name(letter, "UNKNOWN").split()[0]
