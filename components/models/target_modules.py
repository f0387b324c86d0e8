"""Finds the modules of a model that get adapters: every name in method.target_modules is found, or is an error."""

from __future__ import annotations

import copy
import difflib
from collections import Counter
from collections.abc import Container, Iterable, Sequence

from peft import LoraConfig, PeftModel
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers, get_model_conversion_mapping
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from components.errors import InputError
from components.experiment.spec import LoraMethod
from components.models.chatglm.adapter_conversion import glm_targets
from components.models.linear_layers import all_linear, reader_of
from components.models.modality_towers import unreached_modules

ADAPTABLE = (nn.Linear, Conv1D, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.MultiheadAttention)
OF_PATTERNS = set("*?[](){}|^$+\\")
MAX_NEAREST = 3


def lora_config(base: PreTrainedModel, method: LoraMethod) -> LoraConfig:
    """Returns peft's configuration. Modules that no text reaches are excluded.

    Raises InputError with all names that are not modules of this model, or that cannot be adapted.
    """
    if method.dora and method.quantize == "int8":
        raise InputError(
            "method.dora: true cannot be computed on a base of method.quantize: int8 (peft cannot copy its layers); set"
            " quantize: nf4, or dora: false"
        )
    config = _as_written(base, method)
    if not isinstance(method.target_modules, str):
        _check_names(base, method.target_modules, config)
        return config
    layers = all_linear(base, config, quantized=method.quantize is not None)
    config.exclude_modules = [*(config.exclude_modules or ()), *layers.excluded] or None
    config.target_parameters = list(layers.parameters) or None
    return config


def describe_left_out(base: PreTrainedModel, method: LoraMethod) -> str:
    """Describes the linear layers that `all-linear` leaves out: `router (a Llama4Router is no linear layer)`."""
    if not isinstance(method.target_modules, str):
        return ""
    layers = all_linear(base, _as_written(base, method), quantized=method.quantize is not None)
    names: dict[str, list[str]] = {}
    for name, reason in sorted(layers.left_out.items()):
        names.setdefault(reason, []).append(name)
    return "; ".join(f"{', '.join(of_reason)} ({reason})" for reason, of_reason in names.items())


def _as_written(base: PreTrainedModel, method: LoraMethod) -> LoraConfig:
    return LoraConfig(
        r=method.rank,
        lora_alpha=method.alpha,
        lora_dropout=method.dropout,
        target_modules=_target_names(base, method),
        exclude_modules=unreached_modules(base) or None,
        use_rslora=method.rslora,
        use_dora=method.dora,
        task_type="CAUSAL_LM",
    )


def describe_adapters(model: PeftModel) -> str:
    """Describes the adapters: `28 x q_proj, 28 x v_proj`. A layer's experts are one parameter: `28 x experts.down_proj`."""
    lora = model.base_model
    counted = Counter(_leaf(name) for name in lora.targeted_module_names)
    counted.update(".".join(name.split(".")[-2:]) for name in lora.targeted_parameter_names)
    return ", ".join(f"{count} x {name}" for name, count in sorted(counted.items()))


def _linear_layers(base: PreTrainedModel, excluded: Container[str]) -> str:
    names = {name for name, module in base.named_modules() if isinstance(module, nn.Linear | Conv1D)}
    return ", ".join(sorted({_leaf(name) for name in names if name not in excluded}))


def _target_names(base: PreTrainedModel, method: LoraMethod) -> str | list[str]:
    """Returns names of this family's modules; ChatGLM3's original names (query_key_value, dense, ...) are converted."""
    if isinstance(method.target_modules, str):
        return method.target_modules
    return list(_family_names(base, method.target_modules))


def _family_names(base: PreTrainedModel, names: tuple[str, ...]) -> tuple[str, ...]:
    return glm_targets(names) if base.config.model_type == "glm" else names


def _check_names(base: PreTrainedModel, names: tuple[str, ...], config: LoraConfig) -> None:
    with_parameters = copy.deepcopy(config)
    try:
        # Experts were modules in earlier versions and are parameters with other names now; peft converts the names.
        convert_peft_config_for_transformers(with_parameters, base, get_model_conversion_mapping(base))
    except ValueError as error:
        raise InputError(f"method.target_modules={list(names)}: {error}") from None
    modules = {name: module for name, module in base.named_modules() if name}
    excluded = set(config.exclude_modules or ())
    problems: list[str] = []
    for name in names:
        for own in _family_names(base, (name,)):
            if own in (with_parameters.target_modules or ()):
                problems += _problem(own, name, modules, excluded) or _bypassing(base, own, name, modules)
    if problems:
        here = _linear_layers(base, excluded)
        raise InputError(f"method.target_modules={list(names)}: {'; '.join(problems)}; linear layers here: {here}")


def _problem(own: str, written: str, modules: dict[str, nn.Module], excluded: set[str]) -> list[str]:
    matched = _matching_modules(own, modules)
    reached = [name for name in matched if name not in excluded]
    if matched and not reached:
        return [f"{written} is only where no text comes ({matched[0]})"]
    for name in reached:
        if not isinstance(modules[name], ADAPTABLE):
            inside = sorted(
                {_leaf(each) for each, child in modules[name].named_modules() if isinstance(child, ADAPTABLE)}
            )
            way_out = f"; name what is inside: {', '.join(inside)}" if inside else ""
            return [f"{written} is a {type(modules[name]).__name__}, which has no adapters{way_out}"]
    if reached:
        return []
    if OF_PATTERNS & set(written):
        return [f"{written} is no module here: names are compared from their ends, and are no patterns"]
    known = [name for name, module in modules.items() if isinstance(module, ADAPTABLE) and name not in excluded]
    nearest = _nearest(written, known)
    return [f"{written} is no module here{f' (did you mean {nearest}?)' if nearest else ''}"]


def _bypassing(base: PreTrainedModel, own: str, written: str, modules: Iterable[str]) -> list[str]:
    readers = dict.fromkeys(filter(None, (reader_of(base, name) for name in _matching_modules(own, modules))))
    return [f"{written}: a {reader} reads its weight itself, so an adapter would learn nothing" for reader in readers]


def _matching_modules(name: str, modules: Iterable[str]) -> list[str]:
    """Returns the modules with this name by peft's own rule."""
    alone = LoraConfig(target_modules=[name])
    return [module for module in modules if check_target_module_exists(alone, module)]


def _nearest(name: str, modules: Sequence[str]) -> str:
    """Suggests names: for a name with dots whole names with its end, else ends with as many parts."""
    parts = name.count(".") + 1
    whole = [module for module in modules if parts > 1 and _leaf(module) == _leaf(name)]
    ends = whole or list(dict.fromkeys(".".join(module.split(".")[-parts:]) for module in modules))
    return ", ".join(difflib.get_close_matches(name, ends, n=MAX_NEAREST, cutoff=0.5))


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]
