"""Converts LoRA adapters from the original layout to Glm's, and back; what they add to the weights is equal.

The original has q, k and v in one matrix. To Glm: q, k and v share A of query_key_value, and B is split by rows. Back: the
three become one update whose rank is the sum of theirs; their A are stacked, and their B form a block diagonal.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft.utils.other import get_pattern_key
from safetensors.torch import save_file
from torch import Tensor
from transformers import GlmConfig

from components.errors import InputError
from components.models.adapter_patterns import check_patterns
from components.models.chatglm.key_mapping import (
    FUSED,
    IN_LAYER,
    SPLIT,
    TOP,
    QkvRows,
    glm_modules,
    original_module,
)
from components.models.chatglm.weight_files import tensors_of
from components.storage.foreign_files import explain_foreign, read_object
from components.storage.permissions import readable_as_usual

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILES = ("adapter_model.safetensors", "adapter_model.bin")
PREFIX = "base_model.model."
# The modules that users of the original layout name as targets.
TARGETS = {FUSED: SPLIT, **{original: (glm,) for original, glm in IN_LAYER.items() if "layernorm" not in original}}


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraDelta:
    """The update of one module's weight: factor x B x A. The factor is alpha / rank (or alpha / sqrt(rank))."""

    a: Tensor
    b: Tensor
    alpha: float

    @property
    def rank(self) -> int:
        return len(self.a)

    def factor(self, rslora: bool) -> float:
        return self.alpha / (self.rank**0.5 if rslora else self.rank)


def glm_targets(names: tuple[str, ...]) -> tuple[str, ...]:
    """Converts module names of the original layout, whole or by their ends, to Glm's; other names stay unchanged."""
    known = TARGETS | {
        original.rpartition(".")[2]: tuple(glm.rpartition(".")[2] for glm in its)
        for original, its in [*TARGETS.items(), *((top, (glm,)) for top, glm in TOP.items())]
    }
    return tuple(dict.fromkeys(glm for name in names for glm in known.get(name) or _whole_name(name)))


def _whole_name(name: str) -> tuple[str, ...]:
    try:
        return glm_modules(name)
    except ValueError:
        return (name,)


def is_original_adapter(directory: Path) -> bool:
    """Whether an adapter uses the original's module names."""
    return any("transformer." in key for key in read_adapter_weights(directory))


def adapter_to_glm(source: Path, target: Path, config: GlmConfig) -> None:
    """Converts an adapter to Glm's names. Raises InputError if it is not a plain LoRA on a ChatGLM3 of this size."""
    settings, updates = _read(source)
    rows = QkvRows.of(config)
    found: dict[str, LoraDelta] = {}
    for module, update in updates.items():
        names = _translate(source, module, glm_modules)
        try:
            parts = rows.split(update.b) if len(names) > 1 else (update.b,)
        except ValueError as error:
            raise InputError(f"{source}: {module}: {error}") from None
        for name, b in zip(names, parts, strict=True):
            found[name] = LoraDelta(a=update.a, b=b, alpha=update.alpha)
    _write(target, settings, found)


def adapter_to_original(source: Path, target: Path, config: GlmConfig) -> None:
    """Converts an adapter to the original's names. Rows of B are zero for those of q, k and v without an adapter."""
    settings, updates = _read(source)
    rows, rslora = QkvRows.of(config), settings.get("use_rslora", False)
    groups: dict[str, dict[str, LoraDelta]] = {}
    for module, update in updates.items():
        (name,) = _translate(source, module, lambda glm: (original_module(glm),))
        groups.setdefault(name, {})[module] = update
    found = {
        name: _fuse(group, rows, rslora) if name.endswith(FUSED) else next(iter(group.values()))
        for name, group in groups.items()
    }
    _write(target, settings, found)


def _fuse(group: Mapping[str, LoraDelta], rows: QkvRows, rslora: bool) -> LoraDelta:
    """Returns one update for query_key_value; it is exact for any ranks and alphas of the three."""
    heights = dict(zip((part.rpartition(".")[2] for part in SPLIT), (rows.q, rows.kv, rows.kv), strict=True))
    present = {module.rpartition(".")[2]: update for module, update in group.items()}
    first = next(iter(present.values()))
    factor, rank = first.factor(rslora), sum(update.rank for update in present.values())
    b = first.b.new_zeros(sum(heights.values()), rank)
    row, column, parts = 0, 0, []
    for name, height in heights.items():
        if name in present:
            update = present[name]
            b[row : row + height, column : column + update.rank] = update.b * (update.factor(rslora) / factor)
            parts.append(update.a)
            column += update.rank
        row += height
    return LoraDelta(a=torch.cat(parts), b=b, alpha=factor * (rank**0.5 if rslora else rank))


def _read(directory: Path) -> tuple[dict[str, Any], dict[str, LoraDelta]]:
    """Returns (adapter_config.json, the update of each module)."""
    settings = read_object(directory / CONFIG_FILE)
    if settings.get("peft_type") != "LORA" or settings.get("use_dora"):
        kind = "DORA" if settings.get("use_dora") else settings.get("peft_type")
        raise InputError(f"{directory}: an adapter of kind {kind}; only plain LoRA goes from one layout to the other")
    weights = read_adapter_weights(directory)
    names = [key.removesuffix(".lora_A.weight").removeprefix(PREFIX) for key in weights if ".lora_A." in key]
    check_patterns(settings, names, directory / CONFIG_FILE)
    with explain_foreign(directory, "no LoRA adapter"):
        updates = _updates(settings, weights)
    if weights or not updates:
        odd = ", ".join(sorted(weights)[:3]) or "no lora_A at all"
        raise InputError(f"{directory}: no plain LoRA of linear layers: it holds {odd}")
    return settings, updates


def _updates(settings: Mapping[str, Any], weights: dict[str, Tensor]) -> dict[str, LoraDelta]:
    """Takes the update of each module out of `weights`."""
    alphas = settings.get("alpha_pattern") or {}
    updates = {}
    for key in [key for key in weights if key.endswith(".lora_A.weight")]:
        module = key.removesuffix(".lora_A.weight").removeprefix(PREFIX)
        alpha = float(alphas.get(get_pattern_key(alphas.keys(), module), settings["lora_alpha"]))
        if not math.isfinite(alpha):
            raise ValueError(f"lora_alpha of {module} is {alpha}, and must be a number")
        b = weights.pop(f"{PREFIX}{module}.lora_B.weight")
        updates[module] = LoraDelta(a=weights.pop(key), b=b, alpha=alpha)
    return updates


def read_adapter_weights(directory: Path) -> dict[str, Tensor]:
    for name in WEIGHTS_FILES:
        if (directory / name).is_file():
            with explain_foreign(directory / name):
                return {key: tensor.read() for key, tensor in tensors_of(directory / name)}
    raise InputError(f"{directory}: no adapter; it has neither {' nor '.join(WEIGHTS_FILES)}")


def _translate(source: Path, module: str, translate: Any) -> tuple[str, ...]:
    try:
        names: tuple[str, ...] = translate(module)
    except ValueError as error:
        raise InputError(f"{source}: {error}") from None
    return names


def _write(target: Path, settings: Mapping[str, Any], updates: Mapping[str, LoraDelta]) -> None:
    """Writes an adapter as peft reads it, with the source's settings of training (dropout, its base)."""
    ranks = {module: update.rank for module, update in updates.items()}
    alphas = {module: _integer_if_whole(update.alpha) for module, update in updates.items()}
    rank, alpha = _most_frequent(ranks.values()), _most_frequent(alphas.values())
    written = {
        **settings,
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": _leaves(updates) if settings.get("layers_to_transform") is None else sorted(updates),
        "layers_to_transform": None,
        "layers_pattern": None,
        "rank_pattern": _pattern(ranks, rank),
        "alpha_pattern": _pattern(alphas, alpha),
        "task_type": "CAUSAL_LM",
        "inference_mode": True,
        "auto_mapping": None,
    }
    target.mkdir(parents=True, exist_ok=True)
    (target / CONFIG_FILE).write_text(json.dumps(written, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    tensors = {}
    for module, update in updates.items():
        tensors[f"{PREFIX}{module}.lora_A.weight"] = update.a.clone()  # q, k and v may share it
        tensors[f"{PREFIX}{module}.lora_B.weight"] = update.b.contiguous()
    save_file(tensors, target / WEIGHTS_FILES[0], {"format": "pt"})
    readable_as_usual(target / WEIGHTS_FILES[0])


def _leaves(modules: Mapping[str, Any]) -> list[str]:
    return sorted({module.rpartition(".")[2] for module in modules})


def _most_frequent(values: Any) -> Any:
    """Returns the most frequent value."""
    given = list(values)
    return max(given, key=given.count)


def _pattern(values: Mapping[str, Any], default: Any) -> dict[str, Any]:
    """Returns peft's per-module settings: by a module's last name if all layers agree, else one by one."""
    return dict(_exceptions(values, default))


def _exceptions(values: Mapping[str, Any], default: Any) -> Iterator[tuple[str, Any]]:
    for leaf in _leaves(values):
        mine = {module: value for module, value in values.items() if module.rpartition(".")[2] == leaf}
        if len(set(mine.values())) == 1:
            value = next(iter(mine.values()))
            yield from [(leaf, value)] if value != default else []
        else:
            yield from ((module, value) for module, value in mine.items() if value != default)


def _integer_if_whole(alpha: float) -> float:
    return int(alpha) if alpha == int(alpha) else alpha
