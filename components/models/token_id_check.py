"""Checks token ids against the rows of a model's embeddings: a larger id ends a worker, on CUDA with its whole process."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from components.conversations.chat_formats.chat_format import ChatFormat
from components.errors import InputError

SHOWN = 5


def rows_of_config(config: PreTrainedConfig) -> int:
    return int(config.get_text_config(decoder=True).vocab_size)


def rows_of(model: nn.Module) -> int:
    """Returns the number of rows of the embeddings, or of the head if it has fewer."""
    parts = (model.get_input_embeddings(), model.get_output_embeddings())  # type: ignore[operator]
    return min(int(part.weight.shape[0]) for part in parts if part is not None)


def required_tokens(chat_format: ChatFormat) -> dict[int, str]:
    """Returns the token ids that a chat format always needs, with their purposes."""
    stops = dict.fromkeys(chat_format.stop_token_ids, "ends a turn")
    return {**stops, chat_format.pad_token_id: stops.get(chat_format.pad_token_id, "fills up rows")}


def check_token_ids(rows: int, used: Mapping[int, str], tokenizer: PreTrainedTokenizerBase, *, name: str) -> None:
    """Raises InputError if the model `name` has no row for one of the ids. `used` has a short description of each id."""
    beyond = {token_id: what for token_id, what in sorted(used.items()) if token_id >= rows}
    if not beyond:
        return
    tokens = [f'"{tokenizer.convert_ids_to_tokens(token_id)}" ({token_id}) {what}' for token_id, what in beyond.items()]
    raise InputError(
        f"model.path={name}: its embeddings have {rows:,} rows, and there are tokens without one: {_some(tokens)}; take"
        " the tokenizer it was published with, or give each token a row (transformers:"
        f" model.resize_token_embeddings({max(len(tokenizer), max(beyond) + 1)}), then save it)"
    )


def tokens_without_rows(rows: int, tokenizer: PreTrainedTokenizerBase) -> str:
    """Returns the first of them, quoted; "" if there are none. (Rows without a token are common: padding.)"""
    beyond = sorted((token_id, token) for token, token_id in tokenizer.get_vocab().items() if token_id >= rows)
    return _some([f'"{token}" ({token_id})' for token_id, token in beyond])


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
