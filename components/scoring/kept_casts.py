"""16-bit copies of a small model's weights, kept while a text is made of them token by token."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from components.models.load_trained import LoadedModel
from components.models.precision import computing
from components.storage.size import GB

SMALL = GB  # bytes of all copies: about what a process of torch takes without a model


@contextlib.contextmanager
def casts_kept(loaded: LoadedModel) -> Iterator[None]:
    """Inside, a weight is cast once, not for every token, if all copies are small. No gradient can be asked for there.

    Autocast keeps the copy of a weight that may be trained until its outermost context ends, and of no other weight. Each
    copy is half a float32 weight: of a large model they would be half a model more in memory.
    """
    weights = [weight for weight in loaded.model.parameters() if weight.dtype == torch.float32]
    if loaded.precision != "bf16" or sum(weight.nbytes // 2 for weight in weights) > SMALL:
        yield
        return
    frozen = [weight for weight in weights if not weight.requires_grad]
    with torch.no_grad(), computing(loaded.precision, loaded.device):
        try:
            for weight in frozen:
                weight.requires_grad_(True)
            yield
        finally:
            for weight in frozen:
                weight.requires_grad_(False)
