"""LoRA by peft: on a base that other trials will use again."""

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
from components.models.causal_lm import check_same_weights
from components.models.target_modules import lora_config


def attach_lora(base: PreTrainedModel, method: LoraMethod) -> PeftModel:
    """Adapters on a frozen base, float32 and trainable; at first they change nothing. Seed torch before, for their A.

    Raises InputError if a name of target_modules is no module of this model, or peft cannot adapt one so.
    """
    base.requires_grad_(False)
    config = lora_config(base, method)
    try:
        return cast(PeftModel, get_peft_model(base, config, autocast_adapter_dtype=True))
    except ValueError as error:
        if "ParamWrapper does not work with" in str(error):
            setting = "dora: true" if method.dora else f"dropout: {method.dropout:g}"
            raise InputError(
                f"method.{setting}: this model's experts are adapted as whole parameters, for which peft knows neither"
                " dropout nor DoRA; set dropout: 0.0 and dora: false, or name target_modules that are no experts"
            ) from None
        written = method.target_modules if isinstance(method.target_modules, str) else list(method.target_modules)
        raise InputError(f"method.target_modules={written}: {error}") from None


def detach_lora(model: PeftModel) -> PreTrainedModel:
    """The base as it was, bit by bit."""
    base = cast(PreTrainedModel, model.unload())
    for leftover in ("peft_config", "_hf_peft_config_loaded"):
        if leftover in vars(base):
            delattr(base, leftover)
    return base


def merge(model: PeftModel) -> PreTrainedModel:
    """The base with the adapters added to its weights, which are changed in place.

    A matrix that several modules share is first copied for each of those with an adapter: what was learned for the head
    would change the embeddings too. Such a model is no longer tied, and says so in its config.
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
    """adapter_config.json and adapter_model.safetensors, without peft's model card."""
    model.save_pretrained(str(directory), safe_serialization=True, save_embedding_layers=False)
    (directory / "README.md").unlink(missing_ok=True)


def load_adapter(base: PreTrainedModel, directory: Path) -> PeftModel:
    """A saved adapter on a base, for use, not for training. Raises InputError if it is one of a model of other sizes."""
    try:
        return cast(PeftModel, PeftModel.from_pretrained(base, str(directory), is_trainable=False))
    except RuntimeError as error:
        if "size mismatch" not in str(error):
            raise
        reason = next(line.strip() for line in str(error).splitlines() if "size mismatch" in line)
        raise InputError(f"{directory}: an adapter of another model: {reason}") from None


def adapter_state(model: PeftModel) -> dict[str, Tensor]:
    # Else peft compares vocabulary sizes with whatever lies where the base was loaded from, on the hub maybe.
    return dict(get_peft_model_state_dict(model, save_embedding_layers=False))


def load_adapter_state(model: PeftModel, tensors: Mapping[str, Tensor]) -> None:
    """Into a model with adapters of the same shape. Raises InputError if names or shapes differ."""
    wanted, found = ({name: tensor.shape for name, tensor in side.items()} for side in (adapter_state(model), tensors))
    check_same_weights("the adapter is another one", found, wanted)
    set_peft_model_state_dict(model, dict(tensors))
