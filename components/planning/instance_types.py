"""Machines for rent, with their memory, speed and price: nodes.yaml beside this file, or a table of the user's."""

from __future__ import annotations

import re
from datetime import date
from pathlib import Path

from pydantic import Field, PositiveFloat, PositiveInt, ValidationError

from components.experiment.experiment_errors import ExperimentError, problems_of
from components.experiment.read_yaml import read_yaml
from components.experiment.spec import Name, Share, Spec

PACKAGED_TABLE = Path(__file__).with_name("nodes.yaml")
NO_TABLE = f"no such table of machines; {PACKAGED_TABLE} is one to copy"
TABLE_IS = "a table of machines is a mapping of keys, e.g. `nodes: ...`"


class InstanceType(Spec):
    """One type of machine. Speeds are peaks of dense matrix products; no training reaches them."""

    gpu: str = Field(description="Of its name in torch, the word that tells it apart, e.g. L40S.")
    gpus: PositiveInt
    gpu_memory_gb: PositiveFloat = Field(description="Of one GPU, in 1e9 bytes, as torch sees it.")
    bf16_tflops: PositiveFloat
    fp32_tflops: PositiveFloat
    dollars_per_hour: PositiveFloat = Field(description="Of the whole machine, on demand.")
    spot_dollars_per_hour: PositiveFloat | None = None

    def is_of(self, device: str) -> bool:
        """Whether torch's name of a device is that of this GPU: `NVIDIA L40S` is an L40S, and no L4."""
        return re.search(rf"(?<!\w){re.escape(self.gpu)}(?!\w)", device) is not None

    @property
    def dollars_per_gpu_hour(self) -> float:
        return self.dollars_per_hour / self.gpus

    @property
    def spot_dollars_per_gpu_hour(self) -> float | None:
        return None if self.spot_dollars_per_hour is None else self.spot_dollars_per_hour / self.gpus

    def peak_flops(self, precision: str) -> float:
        """Floating-point operations of one GPU in a second."""
        return 1e12 * (self.bf16_tflops if precision == "bf16" else self.fp32_tflops)


class NodeTable(Spec):
    as_of: date = Field(description="When the prices were looked up.")
    utilization: Share = Field(0.35, description="Share of the peak that training reaches, where it was not measured.")
    nodes: dict[Name, InstanceType] = Field(min_length=1)


def load_node_table(path: Path | None = None) -> NodeTable:
    """Reads a table of machines.

    Args:
        path: a YAML file; by default the packaged table.

    Raises:
        ExperimentError: with every problem of the file.
    """
    path = path or PACKAGED_TABLE
    try:
        return NodeTable.model_validate(read_yaml(path, missing=NO_TABLE, example=TABLE_IS))
    except ValidationError as error:
        raise ExperimentError(problems_of(error, NodeTable), where=str(path)) from None
