"""Checks whether a model's logits are head(decoder(inputs)), with nothing else done to them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from components.data.model_inputs import Inputs

aten = torch.ops.aten
# Operations that keep values. A conversion only rounds, and losses are computed from float32 logits in any case.
HARMLESS = {aten._unsafe_view.default, aten.clone.default, aten._to_copy.default, aten.detach.default}
# Changed inputs change the decoder's output by a larger share than SAME. Rounding can, too, on a device whose passes differ
# in the last bit (in bf16 that alone is 0.1 of SmolLM2's output), so it is measured, and may be so many times what it was.
SAME, ROUNDING = 0.05, 3.0


@torch.no_grad()
def why_whole_logits(model: nn.Module, inputs: Inputs) -> str:
    """Returns, in a clause, why the model's logits are not head(decoder(inputs)); empty if they are.

    The operations between the decoder's output and the model's are recorded and compared with those of the head alone.
    Values are not compared: a soft cap of small logits changes less than rounding does, and a GPU may return other bits the
    second time. Every operation that is not known to be harmless counts. Tensors may be fake.
    """
    decoder, head = decoder_and_head(model)
    if decoder is None or head is None or decoder is model:
        return "it does not say what its decoder and its head are"
    was_training = model.training
    model.eval()
    try:
        return _find_reason(model, decoder, head, inputs)
    finally:
        model.train(was_training)


def _find_reason(model: nn.Module, decoder: nn.Module, head: nn.Module, inputs: Inputs) -> str:
    given: dict[str, Any] = {}
    operations = _Operations(head)

    def record_decoding(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], answer: Any) -> None:
        given.update(args=args, kwargs=kwargs, hidden=getattr(answer, "last_hidden_state", None))
        model.train()  # so that dropout of hidden states or logits is seen
        operations.recording = True

    hook = decoder.register_forward_hook(record_decoding, with_kwargs=True)
    with operations:
        logits = model(**inputs, use_cache=False).logits
        whole = operations.take()
        hook.remove()
        if given.get("hidden") is None:
            return "its decoder gives no hidden states"
        from_head = head(given["hidden"])
        alone = operations.take()
    model.eval()
    known = {name for name, _ in alone}
    if extra := [name for name, _ in whole if name not in known]:
        return f"it does more to its logits than its head says: {', '.join(dict.fromkeys(extra))}"
    if whole != alone or logits.shape != from_head.shape:
        return "its logits come from other operations, weights or positions than its head's"
    if not (_is_given_all(given, inputs) or _decodes_alike(decoder, inputs, given["hidden"])):
        return "it gives its decoder other inputs than those it is given"
    return ""


def decoder_and_head(model: nn.Module) -> tuple[Any, Any]:
    """Returns the decoder and the head of a causal LM, with or without adapters."""
    adapted: Any = model
    base = adapted.get_base_model() if hasattr(model, "get_base_model") else adapted
    return base.get_decoder(), base.get_output_embeddings()


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records operations that are not harmless, as (operation, whether it uses the head's own weights)."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.recording = False
        self._made: list[tuple[str, bool]] = []
        self._weights: dict[int, Tensor] = {_storage(weight): weight for weight in head.parameters()}

    def take(self) -> list[tuple[str, bool]]:
        """Returns what was recorded since the last call."""
        made, self._made = self._made, []
        return made

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if self.recording:
            self._record(func, args, result)
        return result

    def _record(self, func: Any, args: Any, result: Any) -> None:
        takes_weights = any(isinstance(leaf, Tensor) and _storage(leaf) in self._weights for leaf in tree_leaves(args))
        if func is aten._to_copy.default and takes_weights:
            self._weights[_storage(result)] = result  # autocast's copy of a weight is the weight
        makes_nothing = not func._schema.is_mutable and not any(
            isinstance(made, Tensor) for made in tree_leaves(result)
        )
        if not (makes_nothing or func.is_view or func in HARMLESS or _changes_nothing(func, args)):
            self._made.append((func._overloadpacket.__name__, takes_weights))


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _changes_nothing(func: Any, args: Any) -> bool:
    """Whether it scales by exactly 1, as some configurations say."""
    return func in (aten.mul.Tensor, aten.div.Tensor) and not isinstance(args[1], Tensor) and args[1] == 1


def _is_given_all(given: dict[str, Any], inputs: Inputs) -> bool:
    """Whether the decoder was given exactly these tensor objects."""
    tensors = [leaf for leaf in tree_leaves((given["args"], given["kwargs"])) if isinstance(leaf, Tensor)]
    wanted = [tensor for tensor in inputs.values() if tensor is not None]
    return {id(tensor) for tensor in tensors} == {id(tensor) for tensor in wanted}


def _decodes_alike(decoder: nn.Module, inputs: Inputs, hidden: Tensor) -> bool:
    """Whether the decoder called directly returns what it did within the model (fake tensors have no values to compare)."""
    directly = decoder(**inputs, use_cache=False).last_hidden_state
    if isinstance(hidden, FakeTensor):
        return bool(directly.shape == hidden.shape)
    again = decoder(**inputs, use_cache=False).last_hidden_state  # on every worker: a sharded model is gathered for it
    rounding = ROUNDING * (directly - again).float().norm()
    return bool((directly - hidden).float().norm() <= SAME * hidden.float().norm() + rounding)
