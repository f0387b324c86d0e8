"""What merging an adapter into its base costs: the loss with the adapter beside the base, and that of the merged files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict
from transformers import PreTrainedModel

from components.batches.store import Entry, TokenStore, write_store
from components.conversations.chat_format import ChatFormat
from components.conversations.messages import Conversation
from components.conversations.truncation import fit_length
from components.training.evaluate import evaluate
from components.training.loss import ScoredModel
from components.training.workers import OneWorker

ROWS_PER_BATCH = 4


class MergeCheck(BaseModel):
    """Nats per target over the same conversations."""

    model_config = ConfigDict(frozen=True)

    adapter_loss: float
    merged_loss: float
    num_targets: int

    @property
    def difference(self) -> float:
        """Above 0 the merged model is the worse one."""
        return self.merged_loss - self.adapter_loss

    def sentence(self) -> str:
        return (
            f"{self.adapter_loss:.4f} nats per target with the adapter, {self.merged_loss:.4f} merged"
            f" ({self.difference:+.4f}, over {self.num_targets:,} targets)"
        )


class Scorer:
    """Scores models on the same conversations. Those too long are cut behind their last turn that fits."""

    def __init__(
        self, conversations: Sequence[Conversation], chat_format: ChatFormat, folder: Path, max_tokens: int
    ) -> None:
        """Raises ValueError if no conversation fits."""
        self.max_tokens, self.pad_token_id = max_tokens, chat_format.pad_token_id
        write_store(folder / "scored.arrow", _fitted(conversations, chat_format, max_tokens))
        self.store = TokenStore(folder / "scored.arrow")
        if len(self.store) == 0:
            raise ValueError(f"no turn of any conversation fits into {max_tokens} tokens; raise --max-tokens")

    def score(self, model: PreTrainedModel, *, precision: str = "fp32") -> tuple[float, int]:
        """(nats per target, targets)."""
        return evaluate(
            ScoredModel(model.eval(), precision=precision, attention="sdpa", device=model.device),
            self.store,
            OneWorker(model.device),
            max_tokens=self.max_tokens,
            rows_per_batch=ROWS_PER_BATCH,
            pad_token_id=self.pad_token_id,
        )


def _fitted(conversations: Sequence[Conversation], chat_format: ChatFormat, max_tokens: int) -> Iterator[Entry]:
    for conversation in conversations:
        rendered = fit_length(chat_format.render(conversation), max_tokens, truncate=True)
        if rendered is not None:
            yield Entry(source=conversation.source, rendered=rendered)
