"""What a record or a probe expects of an answer: words, or a regular expression."""

from __future__ import annotations

from components.conversations.expected import MAX_SECONDS, pattern_of


def is_met(expect: str, answer: str) -> bool:
    """Whether the answer holds the expected words, in any case of letters, or the pattern of `/.../` anywhere.

    A pattern that has not come to an end after MAX_SECONDS is not met.
    """
    pattern = pattern_of(expect)
    if pattern is None:
        return expect.strip().lower() in answer.lower()
    try:
        return pattern.search(answer, timeout=MAX_SECONDS) is not None
    except TimeoutError:
        return False
