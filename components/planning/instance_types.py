"""Machines for rent, with their memory, speed and price: nodes.yaml beside this file, or a table of the user's."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import yaml
from pydantic import Field, PositiveFloat, PositiveInt, ValidationError

from components.errors import InputError
from components.experiment.errors import problems_of
from components.experiment.load import parse_yaml
from components.experiment.spec import Name, Share, Spec

PACKAGED_TABLE = Path(__file__).with_name("nodes.yaml")


class InstanceType(Spec):
    """One type of machine. Speeds are peaks of dense matrix products; no training reaches them."""

    gpu: str = Field(description="Its common name; a calibration finds its own GPU by this word, e.g. L40S.")
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
        InputError: with every problem of the file.
    """
    path = path or PACKAGED_TABLE
    try:
        tree = parse_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such table of machines; {PACKAGED_TABLE} is one to copy") from None
    except (IsADirectoryError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: a table of machines is a text file: {error}") from None
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise InputError(f"{path}: a table of machines is a mapping with the keys as_of, utilization and nodes")
    try:
        return NodeTable.model_validate(tree)
    except ValidationError as error:
        problems = problems_of(error, NodeTable)
        count = f"{len(problems)} problem" + ("s" if len(problems) > 1 else "")
        raise InputError("\n  ".join([f"{path}: {count}", *map(str, problems)])) from None
