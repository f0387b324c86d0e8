"""One frozen base that the adapters of several trials share: one trial's model computes alone, or all of them together.

Every trial has a PeftModel of its own, with the one adapter that it would have alone, so its weights, names and files are
those of a trial alone. Its layers are kept outside of the base, and stand in it only inside `alone`. Inside `together` stand
layers that compute the base's product once, for the tokens of all trials.

B rows, T tokens in a row.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from peft.tuners.lora.layer import ParamWrapper
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from components.errors import InputError
from components.experiment.spec import NOT_BY_TOKENS, LoraMethod
from components.models.adapters import attach_lora, detach_lora, forget_adapters
from components.models.lean_lora import AdapterPart, Drawing, LeanLoraLinear, Place, adapted_linear
from components.models.meta_tensors import empty_model
from components.models.precision import computed_in
from components.models.standing_layers import put_in, standing

ADAPTER = "default"  # the name that peft gives to a model's only adapter
# Frequencies that depend on the longest row of a batch, and so on other trials' rows.
ROTARY_BY_LENGTH = ("dynamic", "longrope")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialPart:
    """The tokens of a batch that belong to one trial, and its random numbers."""

    model: nn.Module
    place: Place
    drawing: Drawing = contextlib.nullcontext


class SharedBase:
    """Outside of `alone` and `together` the base is as it was loaded."""

    def __init__(self, base: PreTrainedModel) -> None:
        """Raises InputError if what the base computes for a row depends on the rows beside it, or on other draws."""
        if reason := why_rows_depend(base):
            raise InputError(f"several trials cannot be trained in one pass: {reason}; train one trial at a time")
        self.base = base
        self._layers: dict[nn.Module, dict[str, LeanLoraLinear]] = {}

    @property
    def models(self) -> tuple[nn.Module, ...]:
        return tuple(self._layers)

    def add(self, method: LoraMethod, seed: int) -> nn.Module:
        """Returns a new trial's model in training mode, with the weights that it would begin with alone.

        Raises InputError if no such adapters can be trained beside others.
        """
        torch.manual_seed(seed)
        plain = {name: module for name, module in self.base.named_modules() if isinstance(module, nn.Linear)}
        try:
            model = attach_lora(self.base, method)
        except InputError:  # some layers may have adapters already
            put_in(self.base, plain)
            forget_adapters(self.base)
            raise
        model.train()
        try:
            layers = {name: layer for name, layer in self.base.named_modules() if isinstance(layer, BaseTunerLayer)}
            if reason := _why_apart(layers, method):
                raise InputError(f"{reason}, or train one trial at a time")
        except InputError:
            detach_lora(model)
            raise
        self._layers[model] = cast(dict[str, LeanLoraLinear], layers)
        put_in(self.base, {name: layer.get_base_layer() for name, layer in self._layers[model].items()})
        forget_adapters(self.base)
        return cast(nn.Module, model)

    def remove(self, model: nn.Module) -> None:
        """Forgets a trial's model. What others compute does not change."""
        del self._layers[model]

    @contextlib.contextmanager
    def alone(self, model: nn.Module) -> Iterator[None]:
        """Inside, the base has this trial's adapter, and computes as if there were no other trial."""
        with standing(self.base, self._layers[model]):
            yield

    @contextlib.contextmanager
    def together(self, parts: Sequence[TrialPart], shape_BT: tuple[int, int]) -> Iterator[None]:
        """For a forward pass together with its backward pass: each trial's adapter adapts its own tokens.

        Modules get inputs of all tokens, as [B, T, inputs] or [B x T, inputs].
        """
        adapters: dict[str, list[AdapterPart]] = {}
        for part in parts:
            for name, layer in self._layers[part.model].items():
                adapters.setdefault(name, []).append(layer.part(ADAPTER, part.place, part.drawing))
        joint = {
            name: _JointLinear(name, cast(nn.Linear, self.base.get_submodule(name)), of_layer, shape_BT)
            for name, of_layer in adapters.items()
        }
        with standing(self.base, joint):
            yield


class _JointLinear(nn.Module):
    """A linear layer of the base, with the adapters of several trials."""

    def __init__(self, name: str, layer: nn.Linear, parts: Sequence[AdapterPart], shape_BT: tuple[int, int]) -> None:
        super().__init__()
        self.name, self.base_layer, self.parts, self.shape_BT = name, layer, parts, shape_BT

    @property
    def weight(self) -> Tensor:  # some classes look at its dtype
        return self.base_layer.weight

    @property
    def bias(self) -> Tensor | None:
        return self.base_layer.bias

    def forward(self, x: Tensor) -> Tensor:
        rows, tokens = self.shape_BT
        if x.numel() != rows * tokens * x.shape[-1]:
            raise ValueError(
                f"{self.name} computes {x.numel() // x.shape[-1]} of {rows} x {tokens} tokens: whose they are is not known"
            )
        x_BTI = x.to(computed_in(x)).reshape(rows, tokens, x.shape[-1])
        found_BTO = adapted_linear(x_BTI, self.base_layer, self.parts)
        return found_BTO.view(*x.shape[:-1], self.base_layer.out_features)


def why_not_shared(config: PreTrainedConfig, method: LoraMethod) -> str:
    """Returns why no such trials of this model can be trained together; empty if they can. Found without its weights."""
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            SharedBase(empty_model(config, dtype=torch.float32, attention="eager")).add(method, seed=0)
    except InputError as error:
        return str(error)
    return ""


def why_rows_depend(base: PreTrainedModel) -> str:
    """Returns why a row's numbers would be others beside another trial's rows; empty if they are the same."""
    config: dict[str, Any] = base.config.get_text_config().to_dict()
    for name, value in config.items():
        if ("drop" in name or "jitter" in name) and isinstance(value, float) and value > 0:
            return f"the model itself has {name}={value:g}, whose random numbers all rows share"
    for name, module in base.named_modules():
        if isinstance(module, nn.Dropout) and module.p > 0:
            return f"the model itself has a dropout of {module.p:g} ({name}), whose random numbers all rows share"
    if kind := rotates_by_length(base.config):
        return f"the model's rope_type={kind} depends on the longest row of a batch"
    return ""


def rotates_by_length(config: PreTrainedConfig) -> str:
    """Returns the kind of rotary embedding if its frequencies depend on the longest row of a batch; else it is empty."""
    values: dict[str, Any] = config.get_text_config().to_dict()
    rotary = values.get("rope_parameters") or values.get("rope_scaling") or {}
    kinds = (rotary, *(part for part in rotary.values() if isinstance(part, dict)))
    return next((kind["rope_type"] for kind in kinds if kind.get("rope_type") in ROTARY_BY_LENGTH), "")


def _why_apart(layers: Mapping[str, BaseTunerLayer], method: LoraMethod) -> str:
    if method.dora:
        return NOT_BY_TOKENS
    for name, layer in layers.items():
        if not (isinstance(layer, LeanLoraLinear) and layer.is_plain(ADAPTER)):
            whole = isinstance(layer, ParamWrapper)  # experts
            kind = "adapted as a whole parameter" if whole else f"a {type(layer.get_base_layer()).__name__}"
            return (
                f"method.target_modules: {name} is {kind}, and only plain linear layers take several trials' adapters: name"
                " such layers"
            )
    return ""
