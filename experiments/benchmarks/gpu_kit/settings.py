"""What a part is told: the device, the sizes, where to write, and until when."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch

Shapes = Literal["real", "tiny"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """`deadline` is in seconds since the epoch: a part makes what matters most first, and begins nothing it cannot end."""

    device_name: Literal["cuda", "cpu"]
    shapes: Shapes
    scratch: Path
    deadline: float

    @property
    def device(self) -> torch.device:
        return torch.device(self.device_name)

    @property
    def on_gpu(self) -> bool:
        return self.device_name == "cuda"

    @property
    def tiny(self) -> bool:
        return self.shapes == "tiny"

    def seconds_left(self) -> float:
        return self.deadline - time.time()

    def write(self, file: Path) -> None:
        file.write_text(json.dumps(asdict(self) | {"scratch": str(self.scratch)}), encoding="utf-8")

    @classmethod
    def read(cls, file: Path) -> Settings:
        values = json.loads(file.read_text(encoding="utf-8"))
        return cls(**values | {"scratch": Path(values["scratch"])})
