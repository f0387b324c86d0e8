"""The loss of a loaded model on general text, without a chat template."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from components.data.general_text import PassageRows, encode_passages, token_ids_of
from components.models.load_trained import LoadedModel
from components.models.token_id_check import rows_of
from components.records.general_scores import GeneralScores
from components.training.evaluate import all_losses, scored_model
from components.training.workers import OneWorker


def score_general_text(
    loaded: LoadedModel, texts: Sequence[str], *, max_tokens: int, rows_per_batch: int
) -> GeneralScores | None:
    """Returns None without texts, and for a model that has no row for one of their tokens."""
    passages = encode_passages(texts, loaded.tokenizer, max_tokens=max_tokens)
    if not passages or max(token_ids_of(passages)) >= rows_of(loaded.model):
        return None
    losses = all_losses(
        scored_model(loaded),
        PassageRows(passages),
        OneWorker(loaded.device),
        max_tokens=max_tokens,
        rows_per_batch=rows_per_batch,
        pad_token_id=loaded.chat_format.pad_token_id,
    )
    return GeneralScores(
        sums=losses.sums,
        num_targets=tuple(passage.num_targets for passage in passages),
        num_bytes=tuple(passage.num_bytes for passage in passages),
        tokens=hashlib.sha256(repr([passage.token_ids for passage in passages]).encode()).hexdigest(),
    )
