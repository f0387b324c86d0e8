"""LoRA adapters by peft, on a base model that later trials use again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from peft import (
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from components.errors import InputError
from components.experiment.spec import LoraMethod
from components.models.adapter_patterns import check_adapter_config
from components.models.chatglm.adapter_conversion import read_adapter_weights
from components.models.lean_lora import make_lean
from components.models.load_causal_lm import check_same_weights
from components.models.target_modules import lora_config
from components.storage.foreign_files import explain_foreign


def attach_lora(base: PreTrainedModel, method: LoraMethod) -> PeftModel:
    """Adds trainable float32 adapters to a frozen base; at first they change nothing. Seed torch before, for their A.

    It computes under training's own autocast (components/models/precision.py), or with a float32 base.

    Raises InputError if a name of target_modules is not a module of this model, or if peft cannot adapt it.
    """
    base.requires_grad_(False)
    config = lora_config(base, method)
    try:
        adapted = cast(PeftModel, get_peft_model(base, config, autocast_adapter_dtype=True))
    except ValueError as error:
        if "ParamWrapper does not work with" in str(error):
            setting = "dora: true" if method.dora else f"dropout: {method.dropout:g}"
            raise InputError(
                f"method.{setting}: this model's experts are adapted as whole parameters, for which peft knows neither"
                " dropout nor DoRA; set dropout: 0.0 and dora: false, or name target_modules that are no experts"
            ) from None
        written = method.target_modules if isinstance(method.target_modules, str) else list(method.target_modules)
        raise InputError(f"method.target_modules={written}: {error}") from None
    if not (method.dropout or method.dora):
        _leave_inputs_as_they_are(adapted)
    if not method.dora:
        make_lean(adapted)
    return adapted


def _leave_inputs_as_they_are(model: PeftModel) -> None:
    """Stops peft from copying the input of every adapter to the adapter's float32.

    In training autocast makes 16 bits of that copy at once, so the losses are the same bits, and each layer would keep a
    copy of its own where q, k and v share one input. Adapters with dropout or DoRA compute with the copy itself.
    """
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            module.cast_input_dtype_enabled = False


def detach_lora(model: PeftModel) -> PreTrainedModel:
    """Removes the adapters. Returns the base, bit-equal to what it was before."""
    base = cast(PreTrainedModel, model.unload())
    forget_adapters(base)
    return base


def forget_adapters(base: PreTrainedModel) -> None:
    """Removes what else peft leaves on a base: with it, its next adapter would be taken for a second one."""
    for leftover in ("peft_config", "_hf_peft_config_loaded"):
        if leftover in vars(base):
            delattr(base, leftover)


def merge(model: PeftModel) -> PreTrainedModel:
    """Adds the adapters to the base's weights in place, and returns the base.

    A matrix that several modules share is first copied for each module with an adapter: an adapter of the head would
    otherwise change the embeddings too. Such a model is no longer tied, and its config says so.
    """
    _untie_adapted(model)
    whole = cast(PreTrainedModel, model.merge_and_unload(safe_merge=True))
    tied = {target: source for target, source in whole.all_tied_weights_keys.items() if _is_same(whole, target, source)}
    if tied != whole.all_tied_weights_keys:
        whole.all_tied_weights_keys = tied
        for config in (whole.config, whole.config.get_text_config()):
            config.tie_word_embeddings = False
    return whole


def _untie_adapted(model: PeftModel) -> None:
    uses = Counter(id(parameter) for module in model.modules() for parameter in module.parameters(recurse=False))
    for layer in model.modules():
        if not isinstance(layer, BaseTunerLayer):
            continue
        module = layer.get_base_layer()
        for name, parameter in list(module.named_parameters(recurse=False)):
            if uses[id(parameter)] > 1:
                setattr(module, name, nn.Parameter(parameter.detach().clone(), requires_grad=False))


def _is_same(model: PreTrainedModel, one: str, other: str) -> bool:
    return model.get_parameter(one) is model.get_parameter(other)


def save_adapter(model: PeftModel, directory: Path) -> None:
    """Writes adapter_config.json and adapter_model.safetensors, without peft's model card."""
    model.save_pretrained(str(directory), safe_serialization=True, save_embedding_layers=False)
    (directory / "README.md").unlink(missing_ok=True)


def load_adapter(base: PreTrainedModel, directory: Path) -> PeftModel:
    """Loads a saved adapter on a base, for inference. Raises InputError if it is none, or of a model of other sizes."""
    check_adapter_config(directory, (name for name, _ in base.named_modules()), read_adapter_weights(directory))
    with explain_foreign(directory, "the adapter cannot be put on its base"):
        try:
            adapted = cast(PeftModel, PeftModel.from_pretrained(base, str(directory), is_trainable=False))
        except RuntimeError as error:
            if "size mismatch" not in str(error):
                raise
            reason = next(line.strip() for line in str(error).splitlines() if "size mismatch" in line)
            raise InputError(f"{directory}: an adapter of another model: {reason}") from None
    make_lean(adapted)  # the loss that it had in training, to the last bit
    return adapted


def adapter_state(model: PeftModel) -> dict[str, Tensor]:
    # By default peft compares vocabulary sizes with the files from which the base was loaded, perhaps on the hub.
    return dict(get_peft_model_state_dict(model, save_embedding_layers=False))


def load_adapter_state(model: PeftModel, tensors: Mapping[str, Tensor]) -> None:
    """Loads tensors into a model with adapters of the same shapes. Raises InputError if names or shapes differ."""
    wanted, found = ({name: tensor.shape for name, tensor in side.items()} for side in (adapter_state(model), tensors))
    check_same_weights("the adapter is another one", found, wanted)
    set_peft_model_state_dict(model, dict(tensors))
