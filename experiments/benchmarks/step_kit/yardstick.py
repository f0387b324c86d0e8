"""What the machine multiplies in the same minutes: products of two square matrices in the work's precision, one a step."""

from __future__ import annotations

import torch

from components.models.dtypes import DTYPES
from experiments.benchmarks.step_kit.turns import Turns
from experiments.benchmarks.step_kit.works import Work

SIDE = 4096
FLOPS = 2.0 * SIDE**3


def run(work: Work, turns: Turns) -> None:
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.randn(SIDE, SIDE, generator=generator).to(DTYPES[work.precision]) for _ in range(2))
    result = torch.empty_like(one)
    for _ in turns:
        torch.mm(one, other, out=result)
        turns.made([])
