"""What became of a candidate, and whether the held-out data can tell a better model at all. No MLflow in here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field

from components.data.split_membership import fraction_that_holds_out, mark_of
from components.experiment.spec import DataSpec
from components.registry.probes import Probe
from components.registry.side_results import SideResults
from components.statistics.paired_bootstrap import Comparison, number_needed

if TYPE_CHECKING:
    # It imports torch, through the code that renders; reports must be readable without torch.
    from components.data.prepare import PreparedDataset


class RegistryResult(BaseModel):
    """What became of a candidate. `promoted`: it holds the alias now. `judged_by`: the split whose losses these are."""

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
    judged_by: Literal["eval", "verdict"] = "eval"
    sides: SideResults = SideResults()
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
    held_out, needed = len(dataset.judged), number_needed(dataset.judged.num_targets)
    if held_out >= needed:
        return None
    what = "conversations held out" if dataset.verdict is None else "conversations of the verdict split"
    return (
        f"{held_out} {what} are too few to tell a better model: the gate needs {needed} like these and will promote none;"
        f" {_way_out(dataset, data, needed)}"
    )


def _way_out(dataset: PreparedDataset, data: DataSpec, needed: int) -> str:
    """The fraction that would do, or what else would."""
    name = "eval" if dataset.verdict is None else "verdict"
    if (data.eval if name == "eval" else data.verdict) is not None:
        return f"add conversations to data.{name}"
    source = dataset.train if data.eval is None else dataset.eval  # what this split was split off from
    fraction = None
    if source.keys is not None and dataset.judged.keys is not None:
        # Eval has the lowest marks of data.train, and the verdict those above it; of data.eval the verdict has the lowest.
        below = data.eval_fraction if name == "verdict" and data.eval is None else 0.0
        marks = [mark_of(keys, data.split_seed) - below for keys in (*source.keys, *dataset.judged.keys)]
        fraction = fraction_that_holds_out(needed, marks)
        fraction = fraction if fraction is not None and below + fraction < 1 else None
    way_out = f"add conversations, or give data.{name}"
    return f"data.{name}_fraction={fraction} would do" if fraction is not None else way_out
