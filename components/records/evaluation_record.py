"""How a trial did on each held-out conversation at one report: a file in the folder of the search.

The journal has the means. A comparison of two trials, or one that is corrected for the number of those to choose from,
needs the conversations.
"""

from __future__ import annotations

from collections.abc import Collection

from pydantic import BaseModel, ConfigDict

from components.storage.folder import Folder
from components.storage.foreign_files import explain_foreign

EVALUATIONS = "evaluations"


class ConversationScores(BaseModel):
    """One metric on each conversation of a split, in the split's order. Its value is sum(sums) / sum(weights).

    Of the loss, sums are nats and weights are targets. Of other metrics a sum is a conversation's score and its weight is
    1, or 0 if the metric says nothing of this conversation.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")

    sums: tuple[float, ...]
    weights: tuple[float, ...]

    @property
    def value(self) -> float:
        return sum(self.sums) / sum(self.weights)

    def only(self, conversations: Collection[int]) -> ConversationScores:
        """Returns the scores of these conversations, in the split's order."""
        kept = sorted(conversations)
        return ConversationScores(
            sums=tuple(self.sums[index] for index in kept), weights=tuple(self.weights[index] for index in kept)
        )


class EvaluationRecord(BaseModel):
    """`metrics` by name; `eval_loss` is always there. `general_loss` is at a trial's last evaluation, passage by passage."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    metrics: dict[str, ConversationScores]

    def write(self, search: Folder, trial_id: str, step: int) -> None:
        (search / EVALUATIONS / trial_id).write_text(_file(step), self.model_dump_json() + "\n")

    @classmethod
    def read(cls, search: Folder, trial_id: str, step: int) -> EvaluationRecord | None:
        """Returns None where nothing was kept, as by earlier versions. Raises InputError if it cannot be read."""
        folder = search / EVALUATIONS / trial_id
        if not folder.has_file(_file(step)):
            return None
        with explain_foreign(f"{folder}/{_file(step)}"):
            return cls.model_validate_json(folder.read_text(_file(step)))


def _file(step: int) -> str:
    return f"{step:08d}.json"
