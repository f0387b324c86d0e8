"""What became of a candidate, and whether the held-out data can tell a better model at all. No MLflow in here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from components.data.split_membership import fraction_that_holds_out, mark_of
from components.experiment.spec import DataSpec
from components.registry.probes import Probe
from components.statistics.paired_bootstrap import Comparison, number_needed

if TYPE_CHECKING:
    # It imports torch, through the code that renders; reports must be readable without torch.
    from components.data.prepare import PreparedDataset


class RegistryResult(BaseModel):
    """What became of a candidate. `promoted` says whether it holds the alias now."""

    model_config = ConfigDict(frozen=True)

    name: str
    version: str
    alias: str
    promoted: bool
    reason: str
    verdicts: tuple[Comparison, ...]
    probes: tuple[Probe, ...]
    base_answers: tuple[str, ...]
    candidate_answers: tuple[str, ...]
    base_loss: float
    candidate_loss: float
    base_bits_per_byte: float | None = None
    candidate_bits_per_byte: float | None = None
    base_model: str | None = Field(None, description="Of the candidate, in a search over several.")
    parameters: int = Field(0, description="Of the candidate, its adapter included; 0 in earlier results.")
    weight_bytes: int = Field(0, description="Memory of its weights where it is served.")

    @property
    def size(self) -> str:
        """Of which base it is and what it takes to serve it, in words; "" in a search over one base."""
        if self.base_model is None:
            return ""
        return f" of {self.base_model}, {self.parameters:,} parameters, {self.weight_bytes / 1e9:.2f} GB of weights to serve"


def too_few_held_out(dataset: PreparedDataset, data: DataSpec) -> str | None:
    """Says why the gate will promote no candidate on this data, and the way out. None if the data is enough."""
    held_out, needed = len(dataset.eval), number_needed(dataset.eval.num_targets)
    if held_out >= needed:
        return None
    fraction = None
    if data.eval is None and dataset.train.keys is not None and dataset.eval.keys is not None:
        marks = [mark_of(keys, data.split_seed) for keys in (*dataset.train.keys, *dataset.eval.keys)]
        fraction = fraction_that_holds_out(needed, marks)
    way_out = "add conversations, or give data.eval" if data.eval is None else "add conversations to data.eval"
    return (
        f"{held_out} conversations held out are too few to tell a better model: the gate needs {needed} like these and will"
        f" promote none; {f'data.eval_fraction={fraction} would do' if fraction is not None else way_out}"
    )
