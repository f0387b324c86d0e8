"""A base model that stays in memory and is restored for every trial."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import cast

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from components.experiment.base_precisions import BaseVariant
from components.experiment.spec import FullMethod, LoraMethod
from components.models.adapters import attach_lora, detach_lora
from components.models.modality_towers import train_what_text_reaches


class ReusableBase:
    """Provides one trainable model at a time, without any effect of earlier trials.

    LoRA does not change the base, so removing the adapters restores it. Full fine-tuning changes the weights: a clean copy
    is kept during training (twice the weights' memory), and copied back afterwards.

    One base is in memory at a time. For a trial with another dtype or quantization it is loaded again, mostly from files in
    the machine's page cache: this takes seconds, while two bases might not fit on a GPU.
    """

    def __init__(self, load: Callable[[BaseVariant], PreTrainedModel]) -> None:
        self._load = load
        self._variant: BaseVariant | None = None
        self._base: PreTrainedModel | None = None
        self._with_adapters: PeftModel | None = None
        self._clean: dict[str, Tensor] | None = None

    def load(self, variant: BaseVariant) -> PreTrainedModel:
        """Returns the base itself. All references to another variant must have been dropped before."""
        if self._base is None or self._variant != variant:
            self._base = self._clean = None
            gc.collect()  # the hooks of models make reference cycles
            self._base, self._variant = self._load(variant), variant
            self._base.config.use_cache = False
        return self._base

    def acquire(self, variant: BaseVariant, method: LoraMethod | FullMethod, seed: int) -> nn.Module:
        """Returns a clean model in training mode. Equal arguments return bit-equal models, regardless of earlier trials."""
        self._clean_up(variant)
        base = self.load(variant)
        torch.manual_seed(seed)
        if isinstance(method, LoraMethod):
            self._clean = None
            try:
                self._with_adapters = attach_lora(base, method)
            except BaseException:
                self._base = None  # some of its modules may have adapters already
                raise
            return cast(nn.Module, self._with_adapters.train())
        train_what_text_reaches(base)
        if self._clean is None:
            self._clean = {
                name: weight.detach().clone() for name, weight in base.named_parameters() if weight.requires_grad
            }
        return cast(nn.Module, base.train())

    def _clean_up(self, wanted: BaseVariant) -> None:
        """Restores the base: removes adapters, and copies its weights back unless another variant is wanted."""
        if self._with_adapters is not None:
            self._base, self._with_adapters = detach_lora(self._with_adapters), None
        if self._base is None or self._variant != wanted:
            return
        reset_training_state(self._base)
        if self._clean is not None:
            with torch.no_grad():
                for name, clean in self._clean.items():
                    self._base.get_parameter(name).copy_(clean)


def reset_training_state(base: PreTrainedModel) -> None:
    """Removes gradients, checkpointing and hooks that a trial left on a model."""
    base.zero_grad(set_to_none=True)
    if base.is_activation_checkpointing:
        base.activation_checkpointing_disable()
    if getattr(base, "_require_grads_hook", None) is not None:
        base.disable_input_require_grads()
