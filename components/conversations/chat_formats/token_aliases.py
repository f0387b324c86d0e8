"""A copy of a tokenizer in which some tokens go by another name, so that the texts of their old ones are plain text."""

from __future__ import annotations

import json
import re
from typing import Any

from tokenizers import Tokenizer

Aliases = dict[str, str]  # a token's text -> its name in the copy
OPENS, CLOSES, FIRST = "\U0010fff0", "\U0010fff1", 0x100000  # private use: no text means anything by them
_ALIAS = re.compile(f"{OPENS}[\U00100000-\U0010ffef]{CLOSES}")


def alias_of(number: int) -> str:
    return f"{OPENS}{chr(FIRST + number)}{CLOSES}"


def holds_alias(text: str) -> bool:
    return OPENS in text and bool(_ALIAS.search(text))


def aliased(tokenizer: Tokenizer, aliases: Aliases) -> Tokenizer:
    """The copy: the same ids for the same texts, but for those that held one of these tokens."""
    state = json.loads(tokenizer.to_str())
    for token in state["added_tokens"]:
        token["content"] = aliases.get(token["content"], token["content"])
    _rename(state["model"], aliases)
    # What adds tokens around a text knows them by name; a chat template writes its own.
    return Tokenizer.from_str(json.dumps(state | {"post_processor": None, "truncation": None, "padding": None}))


def _rename(model: dict[str, Any], aliases: Aliases) -> None:
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        model["vocab"] = {aliases.get(text, text): number for text, number in vocabulary.items()}
    else:  # Unigram: pairs of text and score, in order
        model["vocab"] = [[aliases.get(text, text), score] for text, score in vocabulary]
    if model.get("unk_token") in aliases:
        model["unk_token"] = aliases[model["unk_token"]]
    if "merges" in model:  # no text of letters becomes a token by another way than its name
        model["merges"] = [pair for pair in model["merges"] if aliases.keys().isdisjoint((*pair, "".join(pair)))]
