"""Searches of a tiny model: the experiment file that the tests share, and the folder to run it in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from tests.support.toy import tiny_model_directory, toy_conversations, write_messages_jsonl

EXPERIMENT = """
name: toy
model: {path: model}
data: {train: data.jsonl, eval_fraction: 0.4, max_tokens: 128}
trial:
  budget: {epochs: 8, evaluations: 4}
  batch: {rows_per_step: 2, rows_per_micro_batch: 2}
  precision: fp32
search:
  trials: 4
  scheduler: {name: none}
  space:
    lora:
      method: {kind: lora, rank: {choice: [2, 4]}}
      optimizer: {learning_rate: {log_uniform: [2.0e-3, 1.0e-2]}}
    full:
      method: {kind: full}
      optimizer: {learning_rate: {log_uniform: [2.0e-3, 1.0e-2]}}
"""


def toy_experiment(changes: str = "") -> str:
    """EXPERIMENT with these changes, both in YAML. A key with null is left out; a space replaces the whole space."""
    return yaml.safe_dump(_changed(yaml.safe_load(EXPERIMENT), yaml.safe_load(changes) or {}), sort_keys=False)


def _changed(old: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    new = dict(old)
    for key, value in changes.items():
        merges = isinstance(value, dict) and isinstance(old.get(key), dict) and key != "space"
        new[key] = _changed(old[key], value) if merges else value
    return {key: value for key, value in new.items() if value is not None}


def toy_search_folder(folder: Path, changes: str = "", *, conversations: int = 60, absolute: bool = False) -> Path:
    """The folder, with toy.yaml and with the model and the conversations that it names.

    Args:
        absolute: toy.yaml names them, and the storage, by absolute paths, for programs that run in another folder.
    """
    tiny_model_directory(folder / "model")
    write_messages_jsonl(folder / "data.jsonl", toy_conversations(conversations))
    text = toy_experiment(changes)
    if absolute:
        paths = {"model": {"path": "model"}, "data": {"train": "data.jsonl"}, "storage": {"path": "runs"}}
        places = {key: {k: str(folder / name) for k, name in one.items()} for key, one in paths.items()}
        text = yaml.safe_dump(_changed(yaml.safe_load(text), places), sort_keys=False)
    (folder / "toy.yaml").write_text(text)
    return folder
