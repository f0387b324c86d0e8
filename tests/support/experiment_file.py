"""An experiment file whose model and data need not exist, and the problems that loading it reports."""

from __future__ import annotations

from pathlib import Path

import pytest

from components.experiment.experiment_errors import ExperimentError
from components.experiment.load_experiment import load_experiment

EXPERIMENT = """
name: toy
model: {path: somewhere}
data: {train: a.jsonl}
search:
  trials: 7
  space:
    lora:
      method: {kind: lora, rank: {choice: [4, 8]}, dropout: {uniform: [0, 0.1]}}
      optimizer: {learning_rate: {log_uniform: [1e-4, 2e-3]}}
    full:
      method: {kind: full}
      optimizer: {learning_rate: {log_uniform: [1e-5, 2e-4]}}
"""


def problems(path: Path, *overrides: str) -> list[str]:
    """All problems of the file with these overrides, as a user reads them."""
    with pytest.raises(ExperimentError) as caught:
        load_experiment(path, overrides)
    return [str(problem) for problem in caught.value.problems]
