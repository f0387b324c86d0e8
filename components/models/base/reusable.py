"""A base model that stays in memory and is clean again for every trial."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import cast

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from components.experiment.base_variants import BaseVariant
from components.experiment.spec import FullMethod, LoraMethod
from components.models.adapters import attach_lora, detach_lora
from components.models.modality_towers import train_what_text_reaches


class ReusableBase:
    """Gives out one trainable model at a time; what was trained before leaves no trace in it.

    LoRA leaves the base alone, so its adapters are taken off. Full fine-tuning changes the weights: while it trains there
    is a clean copy (twice the weights' memory), which is copied back.

    One base is in memory at a time. A trial that wants it in another dtype, or quantized otherwise, has it loaded anew,
    mostly from files that the machine still has in its page cache: seconds, where two bases might not fit on a card.
    """

    def __init__(self, load: Callable[[BaseVariant], PreTrainedModel]) -> None:
        self._load = load
        self._kind: BaseVariant | None = None
        self._base: PreTrainedModel | None = None
        self._adapted: PeftModel | None = None
        self._clean: dict[str, Tensor] | None = None

    def load(self, kind: BaseVariant) -> PreTrainedModel:
        """The base itself. Who holds another kind of it must have let go before."""
        if self._base is None or self._kind != kind:
            self._base = self._clean = None
            gc.collect()  # models refer to themselves, by their hooks
            self._base, self._kind = self._load(kind), kind
            self._base.config.use_cache = False
        return self._base

    def acquire(self, kind: BaseVariant, method: LoraMethod | FullMethod, seed: int) -> nn.Module:
        """A clean model in training mode. Equal arguments give bit-equal models, whatever was trained before."""
        self._clean_up(kind)
        base = self.load(kind)
        torch.manual_seed(seed)
        if isinstance(method, LoraMethod):
            self._clean = None
            self._adapted = attach_lora(base, method)
            return cast(nn.Module, self._adapted.train())
        train_what_text_reaches(base)
        if self._clean is None:
            self._clean = {
                name: weight.detach().clone() for name, weight in base.named_parameters() if weight.requires_grad
            }
        return cast(nn.Module, base.train())

    def _clean_up(self, wanted: BaseVariant) -> None:
        """The base without adapters and with its own weights again; it need not be clean if another one is wanted."""
        if self._adapted is not None:
            self._base, self._adapted = detach_lora(self._adapted), None
        if self._base is None or self._kind != wanted:
            return
        reset_training_state(self._base)
        if self._clean is not None:
            with torch.no_grad():
                for name, clean in self._clean.items():
                    self._base.get_parameter(name).copy_(clean)


def reset_training_state(base: PreTrainedModel) -> None:
    """Takes off what a trial did to a model beside changing its weights."""
    base.zero_grad(set_to_none=True)
    if base.is_activation_checkpointing:
        base.activation_checkpointing_disable()
    if getattr(base, "_require_grads_hook", None) is not None:
        base.disable_input_require_grads()
