"""The field `expect` of records and probes: what an answer should hold."""

from __future__ import annotations

import re


def pattern_of(expect: str) -> re.Pattern[str] | None:
    """Returns the regular expression of `/.../`; None for words. Raises re.error if it is none."""
    text = expect.strip()
    if len(text) > 2 and text.startswith("/") and text.endswith("/"):
        return re.compile(text[1:-1])
    return None


def expect_problem(expect: object) -> str:
    """Returns what is wrong with a value of `expect`; "" if nothing is."""
    if not isinstance(expect, str) or not expect.strip():
        return f'"expect" must be words or a regular expression as /.../, not {expect!r}'
    try:
        pattern_of(expect)
    except re.error as error:
        return f'"expect" {expect}: no regular expression: {error}'
    return ""
