"""How far a merged model is from the adapter beside its base.

Without data, the two are compared by their next tokens at every position of a few fixed conversations; with data, by loss.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
from transformers import PreTrainedModel

from components.conversations.chat_formats.chat_format import ChatFormat
from components.conversations.chat_formats.truncation import fit_length
from components.conversations.messages import Conversation, Message
from components.data.token_store import Entry, TokenStore, write_store
from components.errors import InputError
from components.models.attention_backend import attention_of
from components.training.evaluate import evaluate
from components.training.loss import ScoredModel
from components.training.model_abilities import laid_out
from components.training.workers import OneWorker

ROWS_PER_BATCH = 4
# Nats, of the mean divergence and of the difference in loss. Measured on SmolLM2-135M: rounding to bfloat16 costs 0.00002,
# a head's adapter merged into shared embeddings 0.05. Weights of 4 bits are 0.9 from the unquantized ones, 0.1 once trained.
MAX_DIFFERENCE, MAX_DIFFERENCE_QUANTIZED = 0.005, 1.0
FIXED = (
    (
        "Who are you, and what can you do?",
        "I am an assistant. I answer questions, write text and explain how things work.",
    ),
    ("Name three large rivers.", "The Nile, the Amazon and the Yangtze.\n\n1. Nile: 6,650 km\n2. Amazon: 6,400 km"),
    ("能告诉我今天做什么吗?", "当然可以。我们先写一份计划, 然后一步一步完成。"),
    (
        "Write a function that adds two numbers.",
        "```python\ndef add(a: float, b: float) -> float:\n    return a + b\n```",
    ),
)


class Divergence(BaseModel):
    """Kullback-Leibler divergence in nats of the merged model's next token from the adapter's, over fixed positions."""

    model_config = ConfigDict(frozen=True)

    mean: float
    largest: float
    num_positions: int

    def sentence(self) -> str:
        return (
            f"{self.mean:.2g} nats apart on average ({self.largest:.2g} at most, over {self.num_positions:,} positions)"
        )


def fixed_rows(chat_format: ChatFormat) -> list[list[int]]:
    """Returns the token ids of a few conversations, the same for every model with this chat format."""
    return [list(chat_format.render(_conversation(asked, said)).token_ids) for asked, said in FIXED]


@torch.no_grad()
def next_tokens(model: nn.Module, rows: Sequence[Sequence[int]]) -> list[Tensor]:
    """Returns log probabilities of every next token: [tokens, vocabulary] for each row, float32 on the CPU."""
    model.eval()
    device = next(model.parameters()).device
    inputs = (torch.tensor([list(row)], device=device) for row in rows)
    return [model(input_ids=row, use_cache=False).logits[0].float().log_softmax(-1).cpu() for row in inputs]


def divergence(adapted: Sequence[Tensor], merged: Sequence[Tensor]) -> Divergence:
    each = torch.cat(
        [
            F.kl_div(other, one, log_target=True, reduction="none").sum(-1)
            for one, other in zip(adapted, merged, strict=True)
        ]
    )
    return Divergence(mean=float(each.mean()), largest=float(each.max()), num_positions=len(each))


def check_merge(found: Divergence, *, quantized: bool = False) -> None:
    """Raises InputError if the merged files are another model than the adapter beside its base.

    Args:
        quantized: whether the adapter's base is quantized, while the merged weights are not.
    """
    limit = MAX_DIFFERENCE_QUANTIZED if quantized else MAX_DIFFERENCE
    if not found.mean <= limit:
        beside = "its quantized base" if quantized else "its base"
        raise InputError(
            f"the merged model is another one than the adapter beside {beside}: {found.sentence()}, and at most {limit} nats"
            " on average are allowed; layout adapter writes the adapter alone, dtype fp32 rounds less"
        )


class MergeCheck(BaseModel):
    """Losses in nats per target, over the same conversations."""

    model_config = ConfigDict(frozen=True)

    adapter_loss: float
    merged_loss: float
    num_targets: int

    @property
    def difference(self) -> float:
        """Above 0, the merged model is the worse one."""
        return self.merged_loss - self.adapter_loss

    def check(self, *, quantized: bool) -> None:
        """Raises InputError if the losses are further apart than check_merge allows."""
        limit = MAX_DIFFERENCE_QUANTIZED if quantized else MAX_DIFFERENCE
        if not abs(self.difference) <= limit:
            raise InputError(
                f"the merged model is another one: {self.sentence()}, and at most {limit} nats are allowed; layout adapter"
                " writes the adapter alone, dtype fp32 rounds less"
            )

    def sentence(self) -> str:
        return (
            f"{self.adapter_loss:.4f} nats per target with the adapter, {self.merged_loss:.4f} merged"
            f" ({self.difference:+.4f}, over {self.num_targets:,} targets)"
        )


class Scorer:
    """Scores models on the same conversations. One that is too long is cut after its last turn that fits."""

    def __init__(
        self, conversations: Sequence[Conversation], chat_format: ChatFormat, folder: Path, max_tokens: int
    ) -> None:
        """Raises InputError if no conversation fits."""
        self.max_tokens, self.pad_token_id = max_tokens, chat_format.pad_token_id
        write_store(folder / "scored.arrow", _entries_that_fit(conversations, chat_format, max_tokens))
        self.store = TokenStore(folder / "scored.arrow")
        if len(self.store) == 0:
            raise InputError(f"no turn of any conversation fits into {max_tokens} tokens; give a larger max_tokens")

    def score(self, model: PreTrainedModel, *, precision: str = "fp32") -> tuple[float, int]:
        """Returns (nats per target, number of targets)."""
        attention = attention_of(model)
        return evaluate(
            ScoredModel(model.eval(), precision=precision, attention=attention, device=model.device),
            laid_out(self.store, model, attention, longest=self.max_tokens),
            OneWorker(model.device),
            max_tokens=self.max_tokens,
            rows_per_batch=ROWS_PER_BATCH,
            pad_token_id=self.pad_token_id,
        )


def _conversation(asked: str, said: str) -> Conversation:
    return Conversation(messages=(Message(role="user", content=asked), Message(role="assistant", content=said)))


def _entries_that_fit(
    conversations: Sequence[Conversation], chat_format: ChatFormat, max_tokens: int
) -> Iterator[Entry]:
    for conversation in conversations:
        rendered = fit_length(chat_format.render(conversation), max_tokens, truncate=True)
        if rendered is not None:
            yield Entry(source=conversation.source, rendered=rendered)
