"""Checks that a model's embeddings have a row for every token that it will be given."""

from __future__ import annotations

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from components.conversations.chat_formats.chat_format import ChatFormat
from components.data.prepare import PreparedDataset
from components.data.token_store import TokenStore
from components.models.token_id_check import check_token_ids, required_tokens, rows_of_config, tokens_without_rows


def check_vocabulary(
    config: PreTrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    chat_format: ChatFormat,
    dataset: PreparedDataset,
    *,
    name: str,
) -> str:
    """Raises ValueError if the data, the end of a turn or the padding has a token without a row.

    A tokenizer may have such tokens that are not used (some are published so). Then a sentence about them is returned, else
    an empty string.
    """
    rows = rows_of_config(config)
    used = {**_in_stores(dataset, rows), **required_tokens(chat_format)}
    check_token_ids(rows, used, tokenizer, name=name)
    unused = tokens_without_rows(rows, tokenizer)
    if not unused:
        return ""
    return (
        f"model.path={name}: its embeddings have {rows:,} rows, and the tokenizer has tokens without one: {unused}; the data"
        " has none of them, and a prompt that has one will be refused"
    )


def _in_stores(dataset: PreparedDataset, rows: int) -> dict[int, str]:
    return {token: where for store in dataset.stores.values() for token, where in in_store(store, rows).items()}


def in_store(store: TokenStore, rows: int) -> dict[int, str]:
    """Returns the tokens of a store for which an embedding of so many rows is too small."""
    return dict.fromkeys(store.token_ids_from(rows), "is in the data")
