"""Loading what a trial has left: a checkpoint, or the package of a registered version. Both have the same files.

base.json                    which base model and chat format
spec.json                    the TrialSpec it was trained by
adapter/ or weights/         as in components/training/checkpoint.py; a package's weights/ has the config beside it
tokenizer/                   packages only; a checkpoint uses its base model's
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from components.conversations.chat_format import ChatFormat
from components.conversations.formats import load_chat_format
from components.conversations.tokenizers import load_tokenizer
from components.experiment.spec import LoraMethod, ModelSpec, TrialSpec
from components.models.adapters import load_adapter
from components.models.digest import model_digest
from components.models.load import DTYPES, load_base_model, resolve_model, save_config
from components.models.reference import BASE_FILE, BaseReference

ADAPTER, WEIGHTS, TOKENIZER, SPEC_FILE = "adapter", "weights", "tokenizer", "spec.json"
WEIGHTS_FILE = "model.safetensors"
BASE_OVERRIDE = "TURNWISE_BASE_MODEL"


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """Ready to talk or to be scored: in eval mode, on its device."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    chat_format: ChatFormat
    device: torch.device
    attention: str
    precision: str = "fp32"
    reference: BaseReference | None = None


def is_trained(directory: Path) -> bool:
    """Whether a directory is a checkpoint or a package, not a plain model."""
    return (directory / BASE_FILE).exists()


def load_base(model: ModelSpec, chat_format: str = "auto", *, device: torch.device | None = None) -> LoadedModel:
    """A base model as it is. Raises ValueError if there is none, or no chat format fits it."""
    device = device or default_device()
    directory = resolve_model(model)
    tokenizer = load_tokenizer(directory)
    loaded = load_base_model(model, device=device)
    return LoadedModel(
        model=loaded.eval(),
        tokenizer=tokenizer,
        chat_format=load_chat_format(tokenizer, chat_format),
        device=device,
        attention=model.attention,
    )


def load_trained(directory: Path, *, device: torch.device | None = None) -> LoadedModel:
    """A checkpoint or package. Raises ValueError if its base model is not to be had, or is another one by its digest."""
    device = device or default_device()
    reference = BaseReference.read(directory)
    spec = TrialSpec.model_validate_json((directory / SPEC_FILE).read_text(encoding="utf-8"))
    own_tokenizer = directory / TOKENIZER
    tokenizer = load_tokenizer(own_tokenizer if own_tokenizer.is_dir() else resolve_model(reference.model))
    return LoadedModel(
        model=_weights(directory, reference, spec, device).eval(),
        tokenizer=tokenizer,
        chat_format=load_chat_format(tokenizer, reference.chat_format),
        device=device,
        attention=reference.model.attention,
        precision=spec.precision,
        reference=reference,
    )


def package(checkpoint: Path, directory: Path) -> None:
    """A checkpoint's files without its optimizer, and all that it needs beside its base model (none, if full)."""
    directory.mkdir(parents=True)
    for name in (BASE_FILE, SPEC_FILE):
        shutil.copy(checkpoint / name, directory)
    base = resolve_model(BaseReference.read(checkpoint).model)
    load_tokenizer(base).save_pretrained(directory / TOKENIZER)
    if (checkpoint / ADAPTER).is_dir():
        shutil.copytree(checkpoint / ADAPTER, directory / ADAPTER)
        return
    shutil.copytree(checkpoint / WEIGHTS, directory / WEIGHTS)
    save_config(base, directory / WEIGHTS)


def default_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _weights(directory: Path, reference: BaseReference, spec: TrialSpec, device: torch.device) -> PreTrainedModel:
    if (directory / WEIGHTS / "config.json").exists():
        return cast(
            PreTrainedModel,
            AutoModelForCausalLM.from_pretrained(
                str(directory / WEIGHTS),
                dtype=DTYPES[reference.model.dtype],
                attn_implementation=reference.model.attention,
                trust_remote_code=False,
            ).to(device),
        )
    quantize = spec.method.quantize if isinstance(spec.method, LoraMethod) else None
    base = load_base_model(base_of(reference), device=device, quantize=quantize)
    if isinstance(spec.method, LoraMethod):
        return cast(PreTrainedModel, load_adapter(base, directory / ADAPTER))
    tensors = load_file(directory / WEIGHTS / WEIGHTS_FILE)
    with torch.no_grad():
        for name, parameter in base.named_parameters():
            parameter.copy_(tensors[name])
    return base


def base_of(reference: BaseReference) -> ModelSpec:
    """Where the base lies on this machine, proven by its digest."""
    model = reference.model
    if override := os.environ.get(BASE_OVERRIDE):
        model = model.model_copy(update={"path": override, "revision": None})
    found = model_digest(resolve_model(model))
    if found != reference.digest:
        raise ValueError(
            f"the base model at {model.path} is another one: its digest is {found}, trained was on {reference.digest};"
            f" set {BASE_OVERRIDE} to a directory with the right one"
        )
    return model
