"""Machines one can rent, with their memory, speed and price: a table of yours, or experiments/cluster/nodes.yaml."""

from __future__ import annotations

from datetime import date
from pathlib import Path

from pydantic import Field, PositiveFloat, PositiveInt, ValidationError

from components.experiment.errors import ExperimentError, problems_of
from components.experiment.load import read_yaml
from components.experiment.spec import Name, Share, Spec


class NodeType(Spec):
    """One kind of machine. Speeds are peaks of dense matrix products; nobody reaches them."""

    gpu: str = Field(description="As people call it; a calibration finds its own GPU by this word, e.g. L40S.")
    gpus: PositiveInt
    gpu_memory_gb: PositiveFloat = Field(description="Of one GPU, in 1e9 bytes, as torch sees it.")
    bf16_tflops: PositiveFloat
    fp32_tflops: PositiveFloat
    dollars_per_hour: PositiveFloat = Field(description="Of the whole machine, on demand.")
    spot_dollars_per_hour: PositiveFloat | None = None

    @property
    def dollars_per_gpu_hour(self) -> float:
        return self.dollars_per_hour / self.gpus

    @property
    def spot_dollars_per_gpu_hour(self) -> float | None:
        return None if self.spot_dollars_per_hour is None else self.spot_dollars_per_hour / self.gpus


NO_TABLE = "no such table of node types; experiments/cluster/nodes.yaml is one"
TABLE_IS = "a table of node types is a mapping of keys, e.g. `nodes: ...`"


class NodeTable(Spec):
    as_of: date = Field(description="When the prices were looked up.")
    utilization: Share = Field(0.35, description="Share of the peak that training reaches, where nothing was measured.")
    nodes: dict[Name, NodeType] = Field(min_length=1)


def load_nodes(path: Path) -> NodeTable:
    """Raises ExperimentError with every problem of the file."""
    try:
        return NodeTable.model_validate(read_yaml(path, missing=NO_TABLE, example=TABLE_IS))
    except ValidationError as error:
        raise ExperimentError(problems_of(error, NodeTable), where=str(path)) from None
