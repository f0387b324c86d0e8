"""A dry run: one step of a trial on tensors without values, which tells its memory and its operations.

The trial's own code runs (adapters, attention, checkpointing, the loss with its chunks, the backward pass) under torch's
FakeTensorMode, and a tracker counts every tensor from its allocation until it is freed. So nothing here depends on an
architecture, and what changes in the training loop changes in the plan.

A dry run does not see the workspace of a kernel and what an allocator keeps: components/planning/memory.py adds those.
It runs CPU kernels; CUDA's save the same tensors (attention: q, k, v, output, log-sum-exp).
"""

from __future__ import annotations

import contextlib
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from transformers import PreTrainedConfig

from components.data.batch import Batch
from components.errors import InputError
from components.experiment.spec import FullMethod, ModelSpec, TrialSpec
from components.models.meta_tensors import replace_tensors
from components.models.skeleton import decoder_layers
from components.planning.meta_model import PackedLinear, meta_attention, meta_model
from components.training.data_parallel import set_gradient_checkpointing
from components.training.lm_head_check import decoder_and_head
from components.training.loss import ScoredModel

aten = torch.ops.aten
FLASH = 1  # torch's number for attention that never stores the scores
# torch counts the operations of CUDA's attention, which has the arguments of the CPU's, but not of the CPU's.
COUNTED_AS = {
    aten._scaled_dot_product_flash_attention_for_cpu: aten._scaled_dot_product_flash_attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: aten._scaled_dot_product_flash_attention_backward,
}
Kind = Literal["weights", "gradients", "weight casts", "activations", "logits"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """The largest one of a trial on one worker.

    `accumulates`: a step has several, so gradients are kept beside the next. `trees`: it needs masks.
    `packed`: conversations share rows. Where nothing else keeps them apart, they need masks. `longest`: tokens of the
    longest of them.
    """

    rows: int
    tokens: int
    targets: int
    accumulates: bool = False
    trees: bool = False
    packed: bool = False
    longest: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    """Bytes of each kind at the moment when most memory is in use."""

    bytes: dict[Kind, int]

    @property
    def total(self) -> int:
        return sum(self.bytes.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class DryRun:
    """Sizes in bytes, work in floating-point operations of one micro-batch, and of one batch of an evaluation.

    trained_bytes: of the parameters that are trained. layer_parameters: of the largest block, which a sharded model
    gathers; root_parameters: of all that is in no block (embeddings, head). `training` and `evaluation` hold the weights
    too, `training` the gradients, but neither has an optimizer or a clean copy. `proof` is an evaluation of a model that is
    not trained: autocast keeps no copies of its weights. whole_logits: why logits are computed at all positions; empty where
    they are at scored ones only.
    """

    parameters: int
    trained_parameters: int
    trained_tensors: int
    trained_bytes: int
    weight_bytes: int
    layer_parameters: int
    root_parameters: int
    training: Peak
    evaluation: Peak
    proof: Peak
    training_flops: int
    evaluation_flops: int
    whole_logits: str = ""


def dry_run_step(
    config: PreTrainedConfig,
    model: ModelSpec,
    spec: TrialSpec,
    batch: MicroBatch,
    *,
    evaluated: MicroBatch | None = None,
    synced: bool = False,
) -> DryRun:
    """Takes seconds, and almost no memory.

    Args:
        evaluated: the largest batch of an evaluation; by default as large as one of training.
        synced: the gradients of a step's last micro-batch go into existing buckets, as with
            DistributedDataParallel; the buckets themselves are not counted.

    Raises:
        InputError: the model's own code reads values of a tensor, so no dry run is possible.
    """
    attention = meta_attention(model.attention, config)
    trained = meta_model(config, spec.method, dtype=model.dtype_of(spec), attention=attention)
    set_gradient_checkpointing(trained, spec)
    try:
        with FakeTensorMode():
            replace_tensors(trained, lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu"))
            return _run_step(trained, spec, batch, evaluated or batch, synced, attention)
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        raise InputError(
            f"model.path={model.path}: its code reads values of its tensors ({error}), so no dry run is possible without"
            " weights"
        ) from None


def _run_step(
    trained: nn.Module,
    spec: TrialSpec,
    batch: MicroBatch,
    evaluated: MicroBatch,
    synced: bool,
    attention: str,
) -> DryRun:
    tracker = MemTracker(evaluated)
    with tracker:
        for tensor, size in _weights(trained):
            tracker.enter(tensor, "weights", size)
        weight_bytes = tracker.held("weights")
        tracker.vocabulary = int(decoder_and_head(trained)[1].weight.shape[0])
        scored = ScoredModel(trained, precision=spec.precision, attention=attention, device=torch.device("cpu"))
        scored.look_at_head()
        scored.eval()
        evaluation, evaluation_flops = _evaluate(scored, evaluated, tracker)
        proof = evaluation
        if isinstance(spec.method, FullMethod):  # adapters are small, and the rest is not trained in any case
            with _frozen(trained):
                proof, _ = _evaluate(scored, evaluated, tracker)
        scored.train()
        tracker.batch, fake = batch, _fake_batch(batch)

        def backward() -> None:
            tracker.begin()
            with scored.accumulating() if batch.accumulates else contextlib.nullcontext(), scored.attending(fake):
                if batch.accumulates:
                    with _each_gradient(trained, tracker.mark_gradient):
                        scored(fake).backward()
                    tracker.flops = 0
                with _each_gradient(trained, _into_bucket if synced else tracker.mark_gradient):
                    scored(fake).backward()

        # In float32 a GPU has masks all the same, and nobody knows here which device it will be.
        scored.keeps_apart = scored.may_keep_apart and spec.precision == "bf16" and batch.packed
        if not (scored.keeps_apart and _succeeds(backward)):
            scored.keeps_apart = False
            backward()
    layers = max((_parameters(layer) for layer in decoder_layers(trained)), default=0)
    trained_ones = [parameter for parameter in trained.parameters() if parameter.requires_grad]
    return DryRun(
        parameters=_parameters(trained),
        trained_parameters=sum(parameter.numel() for parameter in trained_ones),
        trained_tensors=len(trained_ones),
        trained_bytes=sum(parameter.nbytes for parameter in trained_ones),
        weight_bytes=weight_bytes,
        layer_parameters=layers,
        root_parameters=_parameters(trained) - sum(_parameters(layer) for layer in decoder_layers(trained)),
        training=tracker.peak,
        evaluation=evaluation,
        proof=proof,
        training_flops=tracker.flops,
        evaluation_flops=evaluation_flops,
        whole_logits=scored.whole_logits or "",
    )


def _succeeds(passes: Callable[[], None]) -> bool:
    """A class of models may raise anything where it expects a mask."""
    try:
        passes()
    except (DataDependentOutputException, DynamicOutputShapeException):
        raise
    except Exception:  # noqa: BLE001
        return False
    return True


def _evaluate(scored: ScoredModel, batch: MicroBatch, tracker: MemTracker) -> tuple[Peak, int]:
    """Returns the peak and the operations."""
    tracker.begin()
    with torch.no_grad():
        scored.losses(_fake_batch(batch))
    return tracker.peak, tracker.flops


class MemTracker(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts every live storage by kind, the peak since `begin`, and the operations since then."""

    def __init__(self, batch: MicroBatch) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.batch = batch
        self.vocabulary = 0
        self._kinds: dict[int, tuple[Kind, int]] = {}
        self._held: Counter[Kind] = Counter()
        self.begin()

    def begin(self) -> None:
        self.flops = 0
        self._most, self.peak = 0, Peak(bytes={})
        self._update_peak()

    def enter(self, tensor: Tensor, kind: Kind, size: int | None = None) -> None:
        """Counts a tensor from now until it is freed. A tensor that is counted already keeps its kind."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._kinds:
            return
        self._kinds[key] = kind, storage.nbytes() if size is None else size
        self._held[kind] += self._kinds[key][1]
        weakref.finalize(storage, self._forget, key)
        self._update_peak()

    def held(self, kind: Kind) -> int:
        return self._held[kind]

    def mark_gradient(self, parameter: Tensor) -> None:
        """Counts the parameter's gradient as one, whatever kind it was counted as before."""
        assert parameter.grad is not None
        key = parameter.grad.untyped_storage()._cdata
        kind, size = self._kinds[key]
        self._held[kind] -= size
        self._held["gradients"] += size
        self._kinds[key] = "gradients", size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = self._without_values(func, args)
        if result is None:
            result = func(*args, **kwargs)
        self.flops += _operations(func, args, kwargs, result)
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        for tensor in made:
            if tensor.untyped_storage()._cdata not in self._kinds:
                self.enter(tensor, self._kind_of(func, args, tensor))
        return result

    def _without_values(self, func: Any, args: Any) -> Any:
        """The result of an operation that would need the values of its tensors; None for all other operations."""
        if func is aten.nonzero.default and args[0].shape == (self.batch.rows, self.batch.tokens):
            return torch.empty((self.batch.targets, 2), dtype=torch.int64)  # the scored positions
        if func is aten._fused_sdp_choice.default:
            return FLASH
        if func is aten._grouped_mm.default:  # experts; torch's own rule for tensors without values supports bf16 only
            left, right, ends = args[:3]
            shape = (len(ends), left.shape[0], right.shape[1]) if right.dim() == 2 else (left.shape[0], right.shape[2])
            self.flops += 2 * left.numel() * right.shape[-1]
            return torch.empty(shape, dtype=left.dtype)
        return None

    def _kind_of(self, func: Any, args: Any, made: Tensor) -> Kind:
        if func is aten._to_copy.default and self._is_weight(args[0]):
            return "weight casts"
        if made.dim() > 1 and made.shape[-1] == self.vocabulary:
            return "logits"
        return "activations"

    def _is_weight(self, tensor: Tensor) -> bool:
        kind, _ = self._kinds.get(tensor.untyped_storage()._cdata, (None, 0))
        return kind == "weights"

    def _forget(self, key: int) -> None:
        kind, size = self._kinds.pop(key)
        self._held[kind] -= size

    def _update_peak(self) -> None:
        total = self._held.total()
        if total > self._most:
            self._most, self.peak = total, Peak(bytes=dict(self._held))


def _operations(func: Any, args: Any, kwargs: Any, result: Any) -> int:
    """Of a call, by torch's formulas."""
    packet = func._overloadpacket
    if packet in COUNTED_AS:
        tensors = [argument for argument in args if isinstance(argument, Tensor)]
        return int(flop_registry[COUNTED_AS[packet]](*tensors, out_val=result))
    formula = flop_registry.get(packet)
    return 0 if formula is None else int(formula(*args, **kwargs, out_val=result))


@contextlib.contextmanager
def _each_gradient(model: nn.Module, then: Callable[[Tensor], None]) -> Iterator[None]:
    """Inside, calls `then` with each parameter whose gradient is complete."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    handles = [cast(Any, parameter).register_post_accumulate_grad_hook(then) for parameter in trained]
    yield
    for handle in handles:
        handle.remove()


@contextlib.contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    yield
    for parameter in trained:
        parameter.requires_grad_(True)


def _into_bucket(parameter: Tensor) -> None:
    parameter.grad = None


def _weights(model: nn.Module) -> Iterator[tuple[Tensor, int]]:
    """Every parameter and buffer once, with the bytes that it needs in the real model."""
    for module in model.modules():
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            packed = isinstance(module, PackedLinear) and tensor is module.weight
            yield tensor, cast(PackedLinear, module).stored_bytes if packed else tensor.nbytes


def _fake_batch(batch: MicroBatch) -> Batch:
    """A packed row has as many conversations of the longest one's length as it takes, or two."""
    each = (batch.longest or -(-batch.tokens // 2)) if batch.packed else batch.tokens
    row = tuple(min(each, batch.tokens - start) for start in range(0, batch.tokens, each))

    def integers() -> Tensor:
        return torch.zeros(batch.rows, batch.tokens, dtype=torch.int64)

    return Batch(
        token_ids_BT=integers(),
        labels_BT=integers(),
        weights_BT=torch.zeros(batch.rows, batch.tokens),
        position_ids_BT=integers(),
        segment_ids_BT=integers(),
        subtree_ends_BT=integers() if batch.trees else None,
        has_restarts=batch.packed or batch.trees,
        lengths=row * batch.rows,
    )


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
