"""Loads the results of a trial: a checkpoint, or the package of a registered version. Both have the same files.

base.json                    which base model and chat format
spec.json                    the TrialSpec it was trained by
adapter/ or weights/         as in components/training/checkpoint.py; a package's weights/ has the config beside it
tokenizer/                   packages only; a checkpoint uses its base model's
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from components.conversations.chat_formats import load_chat_format
from components.conversations.chat_formats.chat_format import ChatFormat
from components.conversations.chat_formats.named_templates import templates_in_use
from components.conversations.load_format import format_spec_in
from components.conversations.tokenizers.load_tokenizer import load_tokenizer
from components.errors import InputError
from components.experiment.spec import FLASH_ATTENTION, ChatFormatSpec, LoraMethod, ModelSpec, TrialSpec
from components.models.adapters import load_adapter, load_adapter_state
from components.models.attention_backend import attention_of, usable_attention
from components.models.base.load_base import config_of, load_base_model, resolve_model, save_config
from components.models.base.reference import BASE_FILE, BaseReference
from components.models.chatglm.adapter_conversion import CONFIG_FILE
from components.models.digest import model_digest
from components.models.dtypes import torch_dtype
from components.models.load_causal_lm import check_same_weights, load_causal_lm
from components.models.quantization_backend import check_loadable
from components.models.sharded_safetensors import StoredTensors, write_model
from components.models.token_id_check import check_token_ids, required_tokens, rows_of
from components.storage.foreign_files import explain_foreign, read_description
from components.storage.links_inside import check_own, check_regular, copy_own

ADAPTER, WEIGHTS, TOKENIZER, SPEC_FILE = "adapter", "weights", "tokenizer", "spec.json"
WEIGHTS_FILE, ADAPTER_FILE = "model.safetensors", "adapter_model.safetensors"
BASE_OVERRIDE = "TURNWISE_BASE_MODEL"


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A model for generation and scoring: in eval mode, on its device."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    chat_format: ChatFormat
    device: torch.device
    attention: str
    precision: str = "fp32"
    reference: BaseReference | None = None

    def __post_init__(self) -> None:
        """Raises InputError if the model has no row for a token that its chat format always needs."""
        self.check_token_ids(required_tokens(self.chat_format))

    def check_token_ids(self, used: Mapping[int, str]) -> None:
        """Raises InputError if the model has no row for one of the ids. `used` describes each of them."""
        name = self.model.name_or_path if self.reference is None else self.reference.model.path
        check_token_ids(rows_of(self.model), used, self.tokenizer, name=name)


def is_trained(directory: Path) -> bool:
    """Whether a directory is a checkpoint or a package, not a plain model."""
    return (directory / BASE_FILE).exists()


def read_spec(directory: Path) -> TrialSpec:
    """Returns how a checkpoint or package was trained. Raises InputError if that cannot be read."""
    with explain_foreign(directory / SPEC_FILE):
        return TrialSpec.model_validate_json(read_description(directory / SPEC_FILE))


def load_base(
    model: ModelSpec,
    chat_format: ChatFormatSpec | str = "auto",
    *,
    device: torch.device | None = None,
    in_memory: PreTrainedModel | None = None,
) -> LoadedModel:
    """Loads a base model without training. Raises InputError if there is none, or no chat format fits it.

    Args:
        in_memory: the same model, which was loaded before.
    """
    device = device or default_device()
    directory = resolve_model(model)
    tokenizer = load_tokenizer(directory)
    loaded = load_base_model(model, device=device) if in_memory is None else in_memory
    return LoadedModel(
        model=loaded.eval(),
        tokenizer=tokenizer,
        chat_format=load_chat_format(tokenizer, format_spec_in(directory, chat_format)),
        device=device,
        attention=attention_of(loaded),
    )


LoadBase = Callable[..., PreTrainedModel]  # with the arguments of load_base_model


def load_trained(
    directory: Path,
    *,
    device: torch.device | None = None,
    flash: bool = True,
    load_base_of_adapter: LoadBase = load_base_model,
) -> LoadedModel:
    """Loads a checkpoint or package.

    Raises InputError if its base model cannot be found or has another digest, if its weights are incomplete, or if it needs
    bitsandbytes and this Python cannot use it.

    Args:
        flash: without it, another takes flash attention's place, which computes on every device and in float32, too.
        load_base_of_adapter: may return a base that is in memory; the adapter is put on it.
    """
    device = device or default_device()
    check_regular(directory)
    reference = BaseReference.read(directory)
    named = reference.model if flash else without_flash(reference.model)
    spec = read_spec(directory)
    check_loadable(spec.method, directory)
    base = None if needs_no_base(directory) else _find_base(reference)
    own_tokenizer = directory / TOKENIZER
    tokenizer = load_tokenizer(own_tokenizer if base is None or own_tokenizer.is_dir() else base)
    model = _load_model(directory, base, named, spec, device, load_base_of_adapter).eval()
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        chat_format=load_chat_format(tokenizer, format_spec_in(base or directory / WEIGHTS, reference.chat_format)),
        device=device,
        attention=attention_of(model),
        precision=spec.precision,
        reference=reference,
    )


def without_flash(model: ModelSpec) -> ModelSpec:
    return model.model_copy(update={"attention": "auto"}) if model.attention == FLASH_ATTENTION else model


def base_of(reference: BaseReference) -> ModelSpec:
    """Returns the base model of a reference by its directory on this machine. Raises InputError if it is not found."""
    return _with_directory(_find_base(reference), reference.model)


def load_base_of(directory: Path, *, device: torch.device | None = None) -> LoadedModel:
    """Loads the base model of a checkpoint or package, found as in load_trained, with the same precision for scoring."""
    reference = BaseReference.read(directory)
    spec = read_spec(directory)
    base = load_base(base_of(reference), reference.chat_format, device=device)
    return replace(base, precision=spec.precision)


def package(checkpoint: Path, directory: Path) -> None:
    """Writes a package: a checkpoint without its optimizer, and all that it needs beside its base (full needs no base).

    The files of several workers are joined, a few weights in memory at a time: a package loads by from_pretrained.
    """
    directory.mkdir(parents=True)
    for name in (BASE_FILE, SPEC_FILE):
        copy_own(checkpoint / name, directory / name, of=checkpoint)
    reference = BaseReference.read(checkpoint)
    base = _find_base(reference)
    save_tokenizer(base, reference.chat_format, directory / TOKENIZER)
    if (checkpoint / ADAPTER).is_dir():
        (directory / ADAPTER).mkdir()
        for name in (CONFIG_FILE, ADAPTER_FILE):
            copy_own(checkpoint / ADAPTER / name, directory / ADAPTER / name, of=checkpoint)
        return
    (directory / WEIGHTS).mkdir()
    if (checkpoint / WEIGHTS / WEIGHTS_FILE).is_file():
        copy_own(checkpoint / WEIGHTS / WEIGHTS_FILE, directory / WEIGHTS / WEIGHTS_FILE, of=checkpoint)
    else:
        stored = weights_of(checkpoint)
        write_model(((name, stored.whole(name)) for name in stored.names), directory / WEIGHTS)
    save_config(base, directory / WEIGHTS)


def save_tokenizer(base: Path, spec: ChatFormatSpec, target: Path) -> None:
    """Saves a base model's tokenizer with the chat template of training: its date and its arguments are in it."""
    tokenizer = load_tokenizer(base)
    tokenizer.chat_template = templates_in_use(load_chat_format(tokenizer, format_spec_in(base, spec)).template, spec)
    tokenizer.save_pretrained(target)


def weights_of(checkpoint: Path) -> StoredTensors:
    """Opens the weights of a full fine-tune, written by one worker or by several.

    Raises InputError if some are missing, or if a file is a link out of the checkpoint.
    """
    files = sorted((checkpoint / WEIGHTS).glob("*.safetensors"))
    for file in files:
        check_own(file, of=checkpoint)
    with explain_foreign(checkpoint / WEIGHTS):
        return StoredTensors(files)


def check_stored(stored: StoredTensors, parameters: Mapping[str, nn.Parameter], source: Path) -> None:
    """Raises InputError if stored weights have other names or shapes than a model's parameters."""
    shapes = {name: stored.shape(name) for name in stored.names}
    wanted = {name: list(parameter.shape) for name, parameter in parameters.items()}
    check_same_weights(f"{source}: weights of another model, or not all of them", shapes, wanted)


def default_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def needs_no_base(directory: Path) -> bool:
    """Whether it is the package of a full fine-tune: it has all its weights and their configuration."""
    return (directory / WEIGHTS / "config.json").exists()


def _load_model(
    directory: Path,
    base: Path | None,
    named: ModelSpec,
    spec: TrialSpec,
    device: torch.device,
    load_base_of_adapter: LoadBase,
) -> PreTrainedModel:
    with explain_foreign(directory, "its weights cannot be read", "a file is cut short, or none"):
        if base is None:
            return _load_package(directory, named, device)
        found = _with_directory(base, named)
        if isinstance(spec.method, LoraMethod):
            model = load_base_of_adapter(found, device=device, quantize=spec.method.quantize)
            return _load_with_adapter(model, directory)
        return _load_with_weights(load_base_model(found, device=device), directory)


def _load_with_adapter(base: PreTrainedModel, directory: Path) -> PreTrainedModel:
    model = load_adapter(base, directory / ADAPTER)
    try:
        # peft would only warn about missing adapters.
        load_adapter_state(model, load_file(directory / ADAPTER / ADAPTER_FILE))
    except ValueError as error:
        raise InputError(f"{directory / ADAPTER}: {error}") from None
    return cast(PreTrainedModel, model)


def _load_package(directory: Path, named: ModelSpec, device: torch.device) -> PreTrainedModel:
    """Loads the package of a full fine-tune, which needs no base model."""
    return load_causal_lm(
        directory / WEIGHTS,
        device=device,
        dtype=torch_dtype(named.dtype),
        attn_implementation=usable_attention(named.attention, config_of(directory / WEIGHTS)),
    )


def _load_with_weights(base: PreTrainedModel, directory: Path) -> PreTrainedModel:
    """Loads a checkpoint of a full fine-tune by replacing each weight of its base model."""
    stored = weights_of(directory)
    parameters: dict[str, nn.Parameter] = dict(base.named_parameters())
    check_stored(stored, parameters, directory / WEIGHTS)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(stored.whole(name))
    return base


def _find_base(reference: BaseReference) -> Path:
    """Returns the directory of the base model on this machine; its digest is checked."""
    override = os.environ.get(BASE_OVERRIDE)
    named = reference.model.model_copy(update={"path": override, "revision": None}) if override else reference.model
    way_out = f"set {BASE_OVERRIDE} to a directory with the model of digest {reference.digest}"
    try:
        directory = resolve_model(named)
    except ValueError as error:
        raise InputError(f"the base model this was trained on is not here: {error}; {way_out}") from None
    found = model_digest(directory)
    if found != reference.digest:
        raise InputError(f"the base model at {directory} is another one: its digest is {found}; {way_out}")
    return directory


def _with_directory(directory: Path, named: ModelSpec) -> ModelSpec:
    return named.model_copy(update={"path": str(directory), "revision": None})
