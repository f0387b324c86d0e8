"""Copies a tokenizer with other names for some tokens, so that their former names are plain text in the copy."""

from __future__ import annotations

import json
import re
from typing import Any

from tokenizers import Tokenizer

Aliases = dict[str, str]  # a token's text -> its name in the copy
OPENS, CLOSES, FIRST = "\U0010fff0", "\U0010fff1", 0x100000  # private use: they have no meaning in any text
_ALIAS = re.compile(f"{OPENS}[\U00100000-\U0010ffef]{CLOSES}")


def alias_of(number: int) -> str:
    return f"{OPENS}{chr(FIRST + number)}{CLOSES}"


def contains_alias(text: str) -> bool:
    return OPENS in text and bool(_ALIAS.search(text))


def alias_tokens(tokenizer: Tokenizer, aliases: Aliases) -> Tokenizer:
    """Returns the copy. It has the same ids for the same texts, except for texts with one of these tokens."""
    state = json.loads(tokenizer.to_str())
    for token in state["added_tokens"]:
        token["content"] = aliases.get(token["content"], token["content"])
    _rename(state["model"], aliases)
    # The post-processor adds tokens by name; a chat template writes its own, so it is not needed.
    return Tokenizer.from_str(json.dumps(state | {"post_processor": None, "truncation": None, "padding": None}))


def _rename(model: dict[str, Any], aliases: Aliases) -> None:
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        model["vocab"] = {aliases.get(text, text): number for text, number in vocabulary.items()}
    else:  # Unigram: pairs of text and score, in order
        model["vocab"] = [[aliases.get(text, text), score] for text, score in vocabulary]
    if model.get("unk_token") in aliases:
        model["unk_token"] = aliases[model["unk_token"]]
    if "merges" in model:  # merges must not produce these tokens from their letters
        model["merges"] = [pair for pair in model["merges"] if aliases.keys().isdisjoint((*pair, "".join(pair)))]
