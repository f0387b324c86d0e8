"""A base model that stays in memory and is clean again for every trial."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, cast

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from components.experiment.spec import FullMethod, LoraMethod
from components.models.adapters import attach_lora, detach_lora
from components.models.reach import train_reached

Quantize = Literal["nf4", "int8"] | None


class WarmBase:
    """Gives out one trainable model at a time; what was trained before leaves no trace in it.

    LoRA leaves the base alone, so its adapters are taken off. Full fine-tuning changes the weights: a clean copy is kept
    from its first trial on (twice the weights' memory), and copied back.
    """

    def __init__(self, load: Callable[[Quantize], PreTrainedModel]) -> None:
        self._load = load
        self._bases: dict[Quantize, PreTrainedModel] = {}
        self._adapted: PeftModel | None = None
        self._adapted_quantize: Quantize = None
        self._clean: dict[str, Tensor] | None = None
        self._dirty = False

    def load(self, quantize: Quantize) -> PreTrainedModel:
        """The base itself, loaded at first use; one per kind of quantization."""
        if quantize not in self._bases:
            base = self._load(quantize)
            base.config.use_cache = False
            self._bases[quantize] = base
        return self._bases[quantize]

    def begin(self, method: LoraMethod | FullMethod, seed: int) -> nn.Module:
        """A clean model in training mode. Equal methods and seeds give bit-equal models, whatever was trained before."""
        self._clean_up()
        torch.manual_seed(seed)
        if isinstance(method, LoraMethod):
            self._adapted = attach_lora(self.load(method.quantize), method)
            self._adapted_quantize = method.quantize
            return cast(nn.Module, self._adapted.train())
        base = self.load(None)
        train_reached(base)
        if self._clean is None:
            self._clean = {
                name: weight.detach().clone() for name, weight in base.named_parameters() if weight.requires_grad
            }
        self._dirty = True
        return cast(nn.Module, base.train())

    def _clean_up(self) -> None:
        if self._adapted is not None:
            self._bases[self._adapted_quantize] = detach_lora(self._adapted)
            self._adapted = None
        for base in self._bases.values():
            forget_training(base)
        if self._dirty:
            assert self._clean is not None
            with torch.no_grad():
                for name, clean in self._clean.items():
                    self._bases[None].get_parameter(name).copy_(clean)
            self._dirty = False


def forget_training(base: PreTrainedModel) -> None:
    """Takes off what a trial did to a model beside changing its weights."""
    base.zero_grad(set_to_none=True)
    if base.is_activation_checkpointing:
        base.activation_checkpointing_disable()
    if getattr(base, "_require_grads_hook", None) is not None:
        base.disable_input_require_grads()
