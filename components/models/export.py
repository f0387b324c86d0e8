"""Exports a model as one directory, or an adapter, in the files that other tools load.

The source is a checkpoint, a package, a base model, or peft's adapter directory together with the name of its base.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from components.conversations.chat_formats import load_chat_format
from components.conversations.chat_formats.chat_format import ChatFormat
from components.conversations.chat_formats.chatglm3 import is_chatglm3
from components.conversations.load_format import format_spec_in
from components.conversations.tokenizers.load_tokenizer import load_tokenizer
from components.errors import InputError
from components.experiment.spec import LoraMethod, ModelSpec
from components.models.adapters import load_adapter, load_adapter_state, merge
from components.models.base.load_base import Quantize, config_of, load_base_model, resolve_model
from components.models.base.published_name import PublishedName, published_name
from components.models.base.reference import BaseReference
from components.models.chatglm.adapter_conversion import (
    CONFIG_FILE,
    WEIGHTS_FILES,
    adapter_to_glm,
    adapter_to_original,
    is_original_adapter,
    read_adapter_weights,
)
from components.models.chatglm.detect import is_original
from components.models.chatglm.load_original import load_original
from components.models.chatglm.save import write_original
from components.models.load_causal_lm import check_finite, load_causal_lm
from components.models.load_trained import (
    ADAPTER,
    TOKENIZER,
    WEIGHTS,
    base_of,
    is_trained,
    load_trained,
    needs_no_base,
    read_spec,
    without_flash,
)
from components.storage.foreign_files import explain_foreign, read_object
from components.storage.links_inside import check_regular, copy_own
from components.storage.permissions import readable_as_usual

Layout = Literal["glm", "chatglm", "merged", "adapter"]


@dataclass(frozen=True, kw_only=True)
class ExportableAdapter:
    """A directory of peft, in the names of its model family, and its base model; `published` where the hub has that."""

    directory: Path
    base: ModelSpec
    published: PublishedName | None = None


@dataclass(frozen=True, kw_only=True)
class Exportable:
    """A source of an export: `origin` is the directory of a checkpoint or package, or a base model.

    A full fine-tune has no adapter. `base` is None only for the package of a full fine-tune whose base is not on this
    machine. `dtype` is that of the published base.
    """

    origin: Path | ModelSpec
    base: ModelSpec | None
    config: Any
    chat_format: ChatFormat
    tokenizer: PreTrainedTokenizerBase
    precision: str = "fp32"
    quantize: Quantize = None
    adapter: ExportableAdapter | None = None

    @property
    def dtype(self) -> torch.dtype:
        return self.config.dtype if isinstance(self.config.dtype, torch.dtype) else torch.float32

    @property
    def is_chatglm3(self) -> bool:
        return self.config.model_type == "glm" and is_chatglm3(self.tokenizer)


def open_exportable(source: Path, base: ModelSpec | None, scratch: Path) -> Exportable:
    """Opens a directory for export. An adapter with ChatGLM3's original names is converted to Glm's in `scratch`.

    Raises InputError if it is none of the four sources, or an adapter whose base is not named.
    """
    check_regular(source)
    if is_trained(source):
        return _from_trained(source)
    if not (source / CONFIG_FILE).is_file():
        return _from_base(ModelSpec(path=str(source)))
    if base is None:
        raise InputError(f"{source}: an adapter alone; name the model it belongs to by --base")
    if is_original_adapter(source):
        adapter_to_glm(source, scratch / ADAPTER, config_of(resolve_model(base)))
        return _from_base(base, adapter=scratch / ADAPTER)
    return _from_base(base, adapter=source)


def load_as_trained(source: Exportable) -> PreTrainedModel:
    """Loads a model as it was trained: the adapter beside its base, which is quantized as in training."""
    if isinstance(source.origin, Path):
        return load_trained(source.origin, flash=False).model
    base = load_base_model(source.origin)
    return base if source.adapter is None else _with_adapter(base, source.adapter.directory)


def load_on_published_base(source: Exportable) -> PeftModel:
    """Loads the adapter beside its published base in float32 (4 bytes of memory per parameter).

    This differs from training if the base was quantized; but the exported files are not quantized either.
    """
    if source.adapter is None:
        raise InputError("it was not trained with LoRA, so there is no adapter to load")
    base = load_base_model(without_flash(source.adapter.base).model_copy(update={"dtype": "fp32"}))
    return _with_adapter(base, source.adapter.directory)


def load_merged(source: Exportable) -> PreTrainedModel:
    """Loads one model without adapters, in float32: the adapter is added to the published base."""
    return load_as_trained(source) if source.adapter is None else merge(load_on_published_base(source))


def write_whole(model: PreTrainedModel, source: Exportable, layout: Layout, target: Path, dtype: torch.dtype) -> None:
    """Writes all that AutoModelForCausalLM and AutoTokenizer need: weights, configuration, tokenizer and chat template.

    The layout chatglm has ChatGLM's own files instead, those that the base's directory has. Raises InputError if the model
    does not fit the layout, or if `dtype` cannot hold its weights.
    """
    _check_range(model, dtype)
    if layout in ("glm", "chatglm") and not source.is_chatglm3:
        raise InputError(
            f"layout {layout} is for ChatGLM3, and this is a {model.config.model_type}: take layout merged"
        )
    if layout == "chatglm":
        base = None if source.base is None else resolve_model(source.base)
        write_original(model.state_dict(), model.config, target, base=base, dtype=dtype)
        return
    assert model.generation_config is not None
    model.generation_config.eos_token_id = list(source.chat_format.stop_token_ids)
    model.generation_config.pad_token_id = source.chat_format.pad_token_id
    # A model on a GPU is copied into CPU memory file by file.
    model.to(dtype).save_pretrained(target, max_shard_size="5GB")
    for file in target.glob("*.safetensors"):
        readable_as_usual(file)
    _save_tokenizer(source, target)


def reload_whole(directory: Path) -> PreTrainedModel:
    """Loads what write_whole wrote as other programs do, in float32 for comparison."""
    if is_original(directory):
        original = load_original(directory, dtype=torch.float32, attention="sdpa")
        check_finite(original, directory)
        return original
    return load_causal_lm(directory, dtype=torch.float32).eval()


def write_adapter(
    source: Exportable, target: Path, *, original_names: bool = False, base_name: str | None = None
) -> str:
    """Writes adapter_config.json, which names the base, adapter_model.safetensors and the tokenizer. Returns that name.

    Args:
        original_names: name ChatGLM3's own modules, for programs that use the original code.
        base_name: by default the hub's name of the base with its commit, else its directory here.
    """
    if source.adapter is None:
        raise InputError("layout adapter: it was not trained with LoRA, so there is no adapter; take layout merged")
    if original_names and not source.is_chatglm3:
        raise InputError(f"original names: they are for ChatGLM3, and this is a {source.config.model_type}")
    target.mkdir(parents=True, exist_ok=True)
    if original_names:
        adapter_to_original(source.adapter.directory, target, source.config)
    else:
        directory = source.adapter.directory
        for name in (CONFIG_FILE, next(name for name in WEIGHTS_FILES if (directory / name).is_file())):
            copy_own(directory / name, target / name, of=directory)
        _save_tokenizer(source, target)
    told = None if base_name is None else PublishedName(path=base_name)
    base = told or source.adapter.published or PublishedName(path=source.adapter.base.path)
    _name_base(target / CONFIG_FILE, base)
    return base.path


def _from_trained(source: Path) -> Exportable:
    reference = BaseReference.read(source)
    spec = read_spec(source)
    try:
        base = base_of(reference)
    except InputError:
        if not needs_no_base(source):
            raise
        base = None
    directory = source / WEIGHTS if base is None else resolve_model(base)
    tokenizer = load_tokenizer(source / TOKENIZER if base is None else directory)
    adapter = None
    if isinstance(spec.method, LoraMethod) and base is not None:
        published = published_name(reference.model, directory)
        adapter = ExportableAdapter(directory=source / ADAPTER, base=base, published=published)
    return Exportable(
        origin=source,
        base=base,
        config=config_of(directory),
        chat_format=load_chat_format(tokenizer, format_spec_in(directory, reference.chat_format)),
        tokenizer=tokenizer,
        precision=spec.precision,
        quantize=spec.method.quantize if isinstance(spec.method, LoraMethod) else None,
        adapter=adapter,
    )


def _from_base(base: ModelSpec, *, adapter: Path | None = None) -> Exportable:
    directory = resolve_model(base)
    tokenizer = load_tokenizer(directory)
    exportable = None
    if adapter is not None:
        exportable = ExportableAdapter(directory=adapter, base=base, published=published_name(base, directory))
    return Exportable(
        origin=base,
        base=base,
        config=config_of(directory),
        chat_format=load_chat_format(tokenizer, format_spec_in(directory, "auto")),
        tokenizer=tokenizer,
        adapter=exportable,
    )


def _with_adapter(base: PreTrainedModel, directory: Path) -> PeftModel:
    with_adapter = load_adapter(base, directory)
    with explain_foreign(directory):
        try:
            # peft would only warn about missing adapters.
            load_adapter_state(with_adapter, read_adapter_weights(directory))
        except ValueError as error:
            raise InputError(f"{directory}: {error}") from None
    return with_adapter


def _check_range(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Raises InputError if weights exceed the range of a dtype: float16 ends at 65,504 and would store infinity."""
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and float(parameter.detach().abs().max()) > torch.finfo(dtype).max:
            raise InputError(f"{name} has weights beyond what {dtype} can hold; take --dtype bf16 or fp32")


def _save_tokenizer(source: Exportable, target: Path) -> None:
    """Saves the tokenizer with the chat template of training, instead of its base's."""
    source.tokenizer.chat_template = source.chat_format.template
    source.tokenizer.save_pretrained(target)


def _name_base(config_file: Path, base: PublishedName) -> None:
    config = read_object(config_file)
    config.update(base_model_name_or_path=base.path, revision=base.revision)
    config_file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
