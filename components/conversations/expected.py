"""The field `expect` of records and probes: what an answer should hold."""

from __future__ import annotations

import math
import re
from functools import lru_cache

import regex

MAX_REPEATS = 10_000  # the product of all numbers in {}: a compiled expression holds its parts so often
MAX_LETTERS = 1000  # of a regular expression
TRIED_SECONDS, MAX_SECONDS = 1.0, 5.0  # of a regular expression, for one text


def pattern_of(expect: str) -> regex.Pattern[str] | None:
    """Returns the regular expression of `/.../`; None for words. Raises regex.error if it is none."""
    text = expect.strip()
    if not (len(text) > 2 and text.startswith("/") and text.endswith("/")):
        return None
    repeats = math.prod(
        max(1, int(number[:9])) for number in re.findall("[0-9]+", " ".join(re.findall("{[0-9, ]*}", text)))
    )
    if repeats > MAX_REPEATS or len(text) > MAX_LETTERS:
        raise regex.error(f"larger than {MAX_LETTERS:,} letters, or than {MAX_REPEATS:,} repeats written out")
    return regex.compile(text[1:-1])


def places_of(expect: str, answer: str) -> list[tuple[int, int]]:
    """Returns (start, end) of what is expected in an answer: the words in any case of letters, or the pattern of `/.../`.

    None of a pattern that has not come to an end after MAX_SECONDS.
    """
    pattern = pattern_of(expect) or regex.compile(regex.escape(expect.strip()), regex.IGNORECASE)
    try:
        return [match.span() for match in pattern.finditer(answer, timeout=MAX_SECONDS)]
    except TimeoutError:
        return []


def expect_problem(expect: object) -> str:
    """Returns what is wrong with a value of `expect`; "" if nothing is."""
    if not isinstance(expect, str) or not expect.strip():
        return f'"expect" must be words or a regular expression as /.../, not {expect!r}'
    return _problem_of(expect)


@lru_cache(maxsize=1024)  # records of a file often expect the same
def _problem_of(expect: str) -> str:
    try:
        pattern = pattern_of(expect)
    except (regex.error, RecursionError, OverflowError) as error:
        return f'"expect" {expect}: no regular expression: {error}'
    if pattern is None:
        return ""
    try:
        for letter in dict.fromkeys("a 1" + expect[:100]):
            pattern.search(letter * 40 + "\0", timeout=TRIED_SECONDS)
    except TimeoutError:
        return f'"expect" {expect}: does not end on a text of 40 letters; write it without a repeat inside a repeat'
    return ""
