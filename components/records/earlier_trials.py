"""What a search knows of a trial of an earlier one that it starts from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from components.records.objectives import Measured


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlierTrial:
    """`varied`: dotted path -> value, as the present space has it. `impossible`: it ended because of its configuration."""

    branch: str
    varied: Mapping[str, Any]
    measured: Measured
    impossible: bool = False
