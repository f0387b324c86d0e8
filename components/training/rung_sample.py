"""The held-out conversations by which rungs are decided, where an experiment asks for fewer than all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from components.data.fixed_sample import fixed_sample
from components.data.rows import RowStore
from components.data.token_store import TokenStore
from components.experiment.spec import EVAL_LOSS
from components.records.evaluation_record import ConversationScores
from components.records.events import RungEvaluation


@dataclass(frozen=True, slots=True)
class RungSample:
    """Indices of conversations of the eval split, the same for every trial of a search."""

    conversations: frozenset[int]

    @classmethod
    def of(cls, held_out: TokenStore, count: int | None) -> RungSample | None:
        """Returns None where all conversations are wanted: such an evaluation counts like any other."""
        if count is None or count >= len(held_out):
            return None
        return cls(frozenset(fixed_sample(held_out, count)))

    def rows_of(self, store: RowStore) -> list[int]:
        """Returns all rows of these conversations. `store` has the eval split."""
        return [row for row in range(len(store)) if store.conversation_of(row) in self.conversations]

    def evaluation(self, metrics: Mapping[str, ConversationScores]) -> RungEvaluation:
        """Returns the means over the sample. `metrics` may have all conversations; the eval loss is one of them."""
        within = {name: scores.only(self.conversations) for name, scores in metrics.items()}
        loss = within.pop(EVAL_LOSS)
        known = {name: scores.value for name, scores in within.items() if any(scores.weights)}
        return RungEvaluation(conversations=len(self.conversations), eval_loss=loss.value, scores=known)
