"""What a record or a probe expects of an answer: words, or a regular expression."""

from __future__ import annotations

import re

from components.conversations.expected import pattern_of


def is_met(expect: str, answer: str) -> bool:
    """Whether the answer holds the expected words, in any case of letters, or the pattern of `/.../` anywhere."""
    pattern = pattern_of(expect)
    if pattern is None:
        return expect.strip().lower() in answer.lower()
    return re.search(pattern, answer) is not None
