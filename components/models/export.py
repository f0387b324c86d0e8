"""What leaves the house: a model in one directory, or an adapter, as others' tools load them.

What is exported is a checkpoint, a package, a base model, or an adapter directory of peft's with its base named beside it.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from components.conversations.chat_format import ChatFormat
from components.conversations.formats import load_chat_format
from components.conversations.formats.chatglm3 import is_chatglm3
from components.conversations.tokenizers import load_tokenizer
from components.experiment.spec import LoraMethod, ModelSpec, TrialSpec
from components.models.adapters import load_adapter
from components.models.chatglm.config import glm_config
from components.models.chatglm.lora import CONFIG_FILE, adapter_to_glm, adapter_to_original, is_original_adapter
from components.models.chatglm.write import write_original
from components.models.load import config_of, load_base_model, resolve_model
from components.models.reference import BaseReference
from components.models.trained import ADAPTER, SPEC_FILE, base_of, is_trained, load_trained

Layout = Literal["glm", "chatglm", "merged", "adapter"]
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True, kw_only=True)
class Exportable:
    """`trained` is a checkpoint or package, `adapter` a directory of peft's in Glm's (or any other family's) own names.

    A full fine-tune has no adapter, a base model neither. `dtype` is that of the published base.
    """

    base: ModelSpec
    chat_format: ChatFormat
    tokenizer: PreTrainedTokenizerBase
    dtype: torch.dtype
    is_chatglm: bool
    trained: Path | None = None
    adapter: Path | None = None


def exportable(source: Path, base: ModelSpec | None, scratch: Path) -> Exportable:
    """What a directory is, as something to export. An adapter in ChatGLM3's original names is turned into Glm's in `scratch`.

    Raises ValueError if it is none of the four, or an adapter whose base is not named.
    """
    if is_trained(source):
        reference = BaseReference.read(source)
        spec = TrialSpec.model_validate_json((source / SPEC_FILE).read_text(encoding="utf-8"))
        adapter = source / ADAPTER if isinstance(spec.method, LoraMethod) else None
        return _of_base(base_of(reference), reference.chat_format, trained=source, adapter=adapter)
    if not (source / CONFIG_FILE).is_file():
        return _of_base(ModelSpec(path=str(source)), "auto")
    if base is None:
        raise ValueError(f"{source}: an adapter alone; name the model it belongs to by --base")
    if is_original_adapter(source):
        adapter_to_glm(source, scratch / ADAPTER, glm_config(resolve_model(base)))
        return _of_base(base, "auto", adapter=scratch / ADAPTER)
    return _of_base(base, "auto", adapter=source)


def adapted(source: Exportable) -> PreTrainedModel:
    """As it was trained: the adapter beside its base, which is quantized if it was."""
    if source.trained is not None:
        return load_trained(source.trained).model
    base = load_base_model(source.base)
    return cast(PreTrainedModel, base if source.adapter is None else load_adapter(base, source.adapter))


def merged(source: Exportable) -> PreTrainedModel:
    """One model without adapters, in float32 (4 bytes a parameter of memory).

    An adapter is added to the base as it was published, also where it was trained on a quantized one: what is written out
    is not quantized either.
    """
    if source.adapter is None:
        return adapted(source)
    base = load_base_model(source.base.model_copy(update={"dtype": "fp32"}))
    whole = cast(PeftModel, load_adapter(base, source.adapter)).merge_and_unload(safe_merge=True)
    return cast(PreTrainedModel, whole)


def write_whole(model: PreTrainedModel, source: Exportable, layout: Layout, target: Path, dtype: torch.dtype) -> None:
    """Weights, configuration, tokenizer and chat template: all that AutoModelForCausalLM and AutoTokenizer ask for.

    In the chatglm layout its own files instead, as far as the base's directory has them. Raises ValueError if it is none.
    """
    if layout in ("glm", "chatglm") and not source.is_chatglm:
        raise ValueError(
            f"--layout {layout} is for ChatGLM3, and this is a {model.config.model_type}: take --layout merged"
        )
    if layout == "chatglm":
        write_original(model.state_dict(), model.config, target, base=resolve_model(source.base), dtype=dtype)
        return
    settings = model.generation_config
    settings.eos_token_id = list(source.chat_format.stop_token_ids)
    settings.pad_token_id = source.chat_format.pad_token_id
    model.to(dtype).save_pretrained(target)
    _save_tokenizer(source, target)
    for file in target.glob("*.safetensors"):
        file.chmod(0o644)  # safetensors keeps it for its writer


def write_adapter(source: Exportable, target: Path, *, original_names: bool = False) -> None:
    """adapter_config.json, which names the base, and adapter_model.safetensors; the tokenizer too.

    Args:
        original_names: of ChatGLM3's own modules, for those who load it onto the original code.
    """
    if source.adapter is None:
        raise ValueError("--layout adapter: it was not trained with LoRA, so there is no adapter; take --layout merged")
    if original_names and not source.is_chatglm:
        raise ValueError("--original-names is for ChatGLM3, and this is another model")
    target.mkdir(parents=True, exist_ok=True)
    if original_names:
        adapter_to_original(source.adapter, target, config_of(resolve_model(source.base)))
    else:
        for file in source.adapter.iterdir():
            shutil.copy(file, target / file.name)
            (target / file.name).chmod(0o644)
        _save_tokenizer(source, target)
    _name_base(target / CONFIG_FILE, source.base.path)


def _of_base(
    base: ModelSpec, chat_format: str, *, trained: Path | None = None, adapter: Path | None = None
) -> Exportable:
    directory = resolve_model(base)
    tokenizer, config = load_tokenizer(directory), config_of(directory)
    dtype = config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32
    return Exportable(
        base=base,
        chat_format=load_chat_format(tokenizer, chat_format),
        tokenizer=tokenizer,
        dtype=dtype,
        is_chatglm=config.model_type == "glm" and is_chatglm3(tokenizer),
        trained=trained,
        adapter=adapter,
    )


def _save_tokenizer(source: Exportable, target: Path) -> None:
    """With the chat template that the model was trained in, whatever its base had."""
    source.tokenizer.chat_template = source.chat_format.template
    source.tokenizer.save_pretrained(target)


def _name_base(config_file: Path, base: str) -> None:
    config = json.loads(config_file.read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = base
    config_file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
