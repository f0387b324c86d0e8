"""One base in memory for any number of trained adapters, which take turns on it.

Every adapter has a PeftModel of its own, as if it had the base for itself. Its layers are kept outside of the base, and stand
in it only inside `in_use`; so adapters know nothing of each other, whatever they adapt, and one switch costs some
milliseconds. A model without adapters is a base that is used as it is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import cast

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel

from components.models.adapters import forget_adapters
from components.models.standing_layers import put_in, standing


class BaseInMemory:
    """Outside of `in_use` the base is as it was loaded. Its calls belong to one thread at a time."""

    def __init__(self, base: PreTrainedModel) -> None:
        self.base = base
        self._layers: dict[nn.Module, dict[str, nn.Module]] = {}

    def take_out(self, model: PeftModel) -> None:
        """Takes the layers of an adapter that was just loaded out of the base, and keeps them for `in_use`."""
        self._layers[model] = self.restore()

    def restore(self) -> dict[str, nn.Module]:
        """Takes all layers with adapters out of the base, also where loading one failed midway. Returns them by name."""
        layers: dict[str, nn.Module] = {}
        for name, module in self.base.named_modules():
            # What stands below an adapter, its layer or another adapter, goes with it.
            within = any(name.startswith(f"{outer}.") for outer in layers)
            if isinstance(module, BaseTunerLayer) and not within:
                layers[name] = module
        put_in(self.base, {name: cast(BaseTunerLayer, layer).get_base_layer() for name, layer in layers.items()})
        forget_adapters(self.base)
        return layers

    def forget(self, model: nn.Module) -> None:
        """Forgets an adapter. What others compute does not change."""
        self._layers.pop(model, None)

    @contextlib.contextmanager
    def in_use(self, model: nn.Module) -> Iterator[None]:
        """Inside, the base has this model's adapter; the base itself has none."""
        with standing(self.base, self._layers.get(model, {})):
            yield
