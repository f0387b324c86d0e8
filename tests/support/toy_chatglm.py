"""ChatGLM3 for tests: the model whose numbers the original code was asked for, and where the real tokenizer.model lies."""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

DATA = Path(__file__).parents[1] / "data"
# Part of the weights' release, so not of this repository; these tests run where its place is given.
REAL_TOKENIZER = Path(os.environ.get("CHATGLM3_TOKENIZER", "../shared/chatglm3/tokenizer.model"))
needs_the_real_tokenizer = pytest.mark.skipif(
    not REAL_TOKENIZER.is_file(), reason="set CHATGLM3_TOKENIZER to ChatGLM3's own tokenizer.model"
)
FREQUENCIES = "transformer.rotary_pos_emb.inv_freq"

SHAPES = {  # (rows, columns) of the original's linear modules at the tiny size
    "self_attention.query_key_value": (128, 64),
    "self_attention.dense": (64, 64),
    "mlp.dense_h_to_4h": (256, 64),
    "mlp.dense_4h_to_h": (64, 128),
}


@cache
def parity() -> dict[str, Any]:
    """Made by the original code (THUDM/chatglm3-6b @456aa87, transformers 4.30.2, fp32) of the weights below."""
    found: dict[str, Any] = json.loads((DATA / "chatglm3_parity.json").read_text(encoding="utf-8"))
    return found


def formula_weights() -> dict[str, Tensor]:
    """The weights of that model: parity()["weights"]["rule"], in float32."""
    weights, phase = parity()["weights"], parity()["weights"]["phase"]
    tensors = {}
    for i, key in enumerate(sorted([*weights["shapes"], FREQUENCIES])):
        if key == FREQUENCIES:
            continue
        shape = weights["shapes"][key]
        count = torch.Size(shape).numel()
        wave = torch.sin(torch.arange(count, dtype=torch.float64) * phase + i).reshape(shape)
        if "layernorm" in key:
            wave = 1 + 0.2 * wave
        elif key.endswith("bias"):
            wave = 0.3 * wave
        elif "word_embeddings" not in key:
            wave = 1.5 * wave / shape[1] ** 0.5
        tensors[key] = wave.float()
    return tensors


def formula_directory(directory: Path, *, suffix: str = ".safetensors", **changes: Any) -> Path:
    """That model as an original directory of two shards. `changes` go into config.json; None takes a key out."""
    directory.mkdir(parents=True, exist_ok=True)
    config = {**parity()["config"], **changes}
    config = {key: value for key, value in config.items() if not (key in changes and value is None)}
    (directory / "config.json").write_text(json.dumps(config))
    tensors = formula_weights()
    tensors[FREQUENCIES] = (1 / 10000 ** (torch.arange(0, 8, 2) / 8)).half()
    whole = "model.safetensors" if suffix == ".safetensors" else "pytorch_model.bin"
    keys = sorted(tensors)
    halves = {f"part-1{suffix}": keys[: len(keys) // 2], f"part-2{suffix}": keys[len(keys) // 2 :]}
    for name, mine in halves.items():
        part = {key: tensors[key] for key in mine}
        save_file(part, directory / name) if suffix == ".safetensors" else torch.save(part, directory / name)
    weight_map = {key: name for name, mine in halves.items() for key in mine}
    (directory / f"{whole}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return directory


def original_adapter(directory, *, rank=4, alpha=8, suffix=".safetensors", modules=tuple(SHAPES), **settings):
    """As chatglm3-base-tuning and the official finetune demo leave them, with random weights."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for layer in range(2):
        for name in modules:
            rows, columns = SHAPES[name]
            key = f"base_model.model.transformer.encoder.layers.{layer}.{name}"
            tensors[f"{key}.lora_A.weight"] = torch.randn(rank, columns, generator=generator) * 0.1
            tensors[f"{key}.lora_B.weight"] = torch.randn(rows, rank, generator=generator) * 0.1
    directory.mkdir()
    if suffix == ".bin":
        torch.save(tensors, directory / "adapter_model.bin")
    else:
        save_file(tensors, directory / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.1,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "target_modules": sorted(name.rpartition(".")[2] for name in modules),
        "task_type": "CAUSAL_LM",
        **settings,
    }
    (directory / "adapter_config.json").write_text(json.dumps(config))
    return tensors
