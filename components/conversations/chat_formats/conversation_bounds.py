"""How long one conversation may be: its prompts, one for each turn, are rendered each with all before it."""

from __future__ import annotations

from collections.abc import Sequence

from components.conversations.chat_formats.template_dialect import Raw
from components.errors import InputError

MAX_TURNS_ONE_BY_ONE = 1000  # of a template that rewrites turns: the time grows with the square of their number
MAX_LETTERS_OF_TURNS = 10**9  # turns times letters: the texts up to each turn have half of that


def check_size(whole: str, raw: Sequence[Raw], source: str) -> None:
    """Raises InputError for a conversation whose prompts, one for each turn, would together fill the memory."""
    turns = sum(message["role"] == "assistant" for message in raw)
    if turns * len(whole) > MAX_LETTERS_OF_TURNS:
        raise InputError(
            f"{source}: {turns:,} turns in {len(whole):,} letters are too much for one conversation; split it (the product of"
            f" the two is at most {MAX_LETTERS_OF_TURNS:,})"
        )


def check_turns_one_by_one(turns: int, name: str, source: str) -> None:
    """Raises InputError for too many turns of a template, called `name`, that rewrites them."""
    if turns > MAX_TURNS_ONE_BY_ONE:
        raise InputError(
            f"{source}: chat_format {name} rewrites earlier turns, so each of its {turns:,} is rendered"
            f" with all before it; that is done for at most {MAX_TURNS_ONE_BY_ONE:,}: split it"
        )
