"""One optimizer step of the project's Trainer, caught in flight, and how far two such steps are apart."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from components.experiment.spec import FullMethod, LoraMethod, OptimizerSpec, ScheduleSpec, TrialSpec
from components.training.optimizer import trained_parameters
from components.training.trial_runner import TrialRunner
from experiments.benchmarks.gpu_kit.trials import trial_spec

# A gradient below this share of the whole one is compared with that share of it: what it consists of is rounding.
SHARE_OF_NOISE = 1e-3
# A gradient whose error is below 1/CLEAR of it has a certain sign, and Adam's first step, g / (|g| + epsilon) learning rates,
# is certain to less than 1/CLEAR of a learning rate.
CLEAR = 100.0


METHODS: dict[str, LoraMethod | FullMethod] = {"LoRA": LoraMethod(rank=8, alpha=16.0), "full": FullMethod()}
# Gradients of these models are longer than this, so they are clipped, too; their length before that is compared as well.
MAX_GRAD_NORM = 0.2
LEARNING_RATE = 1e-3  # far above the rounding of a weight of 1, so that a wrong update is seen


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Loss in nats per target; gradients as the optimizer got them, clipped; `grad_norm` is that before clipping."""

    loss: float
    grad_norm: float
    learning_rate: float
    gradients: Mapping[str, Tensor]
    weights: Mapping[str, Tensor]


def step_spec(
    method: LoraMethod | FullMethod,
    *,
    packing: bool = True,
    micro_rows: int = 2,
    precision: str = "fp32",
    checkpointing: bool = False,
) -> TrialSpec:
    """A step of four rows, at the whole learning rate."""
    return trial_spec(
        method,
        rows=4,
        micro_rows=micro_rows,
        packing=packing,
        precision=precision,
        gradient_checkpointing=checkpointing,
        optimizer=OptimizerSpec(learning_rate=LEARNING_RATE, max_grad_norm=MAX_GRAD_NORM),
        schedule=ScheduleSpec(name="constant", warmup_fraction=0.0),
    )


@contextlib.contextmanager
def full_fp32(*, tf32: bool = False) -> Iterator[None]:
    """Inside, matrices in float32 are multiplied in float32; with `tf32` in 19 bits, as a GPU can."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def take_step(runner: TrialRunner, spec: TrialSpec, start_from: Mapping[str, Tensor] | None = None) -> Step:
    """Starts a trial and takes its first step; `start_from` has the trained weights that it starts from."""
    runner.start("step", spec)
    if start_from is not None:
        copy_weights(runner, start_from)
    return next_step(runner)


def next_step(runner: TrialRunner) -> Step:
    """Takes the next step of the running trial. All workers call it."""
    run = runner.running
    gradients: dict[str, Tensor] = {}

    def catch(*_: object) -> None:
        for name, weight in trained_parameters(run.model):
            if weight.grad is not None:
                gradients[name] = whole(weight.grad).detach().clone()

    hook = run.optimizer.register_step_pre_hook(catch)
    run.scored.train()
    run.step()
    hook.remove()
    weights = {name: whole(weight).detach().clone() for name, weight in trained_parameters(run.model)}
    taken = run.interval.steps[-1]
    return Step(
        loss=taken.loss,
        grad_norm=taken.grad_norm,
        learning_rate=taken.learning_rate,
        gradients=gradients,
        weights=weights,
    )


def starting_weights(runner: TrialRunner, spec: TrialSpec) -> dict[str, Tensor]:
    """Returns the weights that a trial trains, as it starts; those that are zero get random values.

    A LoRA's B starts at zero, so that its A would have no gradient in the first step.
    """
    runner.start("start", spec)
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for name, weight in trained_parameters(runner.running.model):
        random = torch.empty(weight.shape).normal_(std=0.02, generator=generator)
        weights[name] = weight.detach().clone() if weight.any() else random.to(weight)
    return weights


def copy_weights(runner: TrialRunner, weights: Mapping[str, Tensor]) -> None:
    """Gives the running trial these weights, perhaps from another device."""
    with torch.no_grad():
        for name, weight in trained_parameters(runner.running.model):
            weight.copy_(weights[name])


def whole(tensor: Tensor) -> Tensor:
    """Returns all rows of a tensor, from all workers that share it."""
    if not isinstance(tensor, DTensor):
        return tensor
    # The only worker has all rows, and they may be offloaded to the CPU, where NCCL gathers nothing.
    return tensor.to_local() if tensor.device_mesh.size() == 1 else tensor.full_tensor()


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Of a step from its reference.

    loss, grad_norm: relative. gradients: the largest |difference| / |gradient| of a tensor, which is `worst`; cosine: the
    smallest one of a tensor. weights: the largest difference of an updated weight, in learning rates, beyond the rounding
    of the weight itself; clear: the same where the sign of the gradient is certain; unclear: how many weights are not of
    that kind, of `elements`; flipped: how many of them went the other way.
    """

    loss: float
    grad_norm: float
    gradients: float
    worst: str
    cosine: float
    weights: float
    clear: float
    unclear: int
    flipped: int
    elements: int

    def figures(self) -> dict[str, float | str]:
        return {
            "loss_relative": self.loss,
            "grad_norm_relative": self.grad_norm,
            "gradient_relative": self.gradients,
            "worst_tensor": self.worst,
            "smallest_cosine": self.cosine,
            "weight_learning_rates": self.weights,
            "clear_weight_learning_rates": self.clear,
            "unclear_weights": self.unclear,
            "flipped_weights": self.flipped,
            "weights": self.elements,
        }


def difference(step: Step, reference: Step) -> Difference:
    """Raises ValueError if the two have trained other weights."""
    if not step.gradients.keys() == reference.gradients.keys() == step.weights.keys() == reference.weights.keys():
        raise ValueError("the two steps have gradients of other weights")
    norm = float(torch.stack([gradient.float().norm().cpu() for gradient in reference.gradients.values()]).norm())
    tensors = {name: _tensor_difference(name, step, reference, floor=SHARE_OF_NOISE * norm) for name in step.weights}
    worst = max(tensors, key=lambda name: tensors[name].gradient)
    return Difference(
        loss=_relative(step.loss, reference.loss),
        grad_norm=_relative(step.grad_norm, reference.grad_norm),
        gradients=tensors[worst].gradient,
        worst=worst,
        cosine=min(tensor.cosine for tensor in tensors.values()),
        weights=max(tensor.weight for tensor in tensors.values()),
        clear=max(tensor.clear for tensor in tensors.values()),
        unclear=sum(tensor.unclear for tensor in tensors.values()),
        flipped=sum(tensor.flipped for tensor in tensors.values()),
        elements=sum(weight.numel() for weight in step.weights.values()),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _TensorDifference:
    gradient: float
    cosine: float
    weight: float
    clear: float
    unclear: int
    flipped: int


def _tensor_difference(name: str, step: Step, reference: Step, *, floor: float) -> _TensorDifference:
    gradient, weight = step.gradients[name].float(), step.weights[name].float()
    wanted, updated = reference.gradients[name].to(gradient), reference.weights[name].to(weight)
    error = (gradient - wanted).abs()
    clear = wanted.abs() >= CLEAR * error
    rounding = 2 * torch.finfo(step.weights[name].dtype).eps * updated.abs()
    moved = ((weight - updated).abs() - rounding).clamp(min=0) / reference.learning_rate
    size = float(wanted.norm())
    return _TensorDifference(
        gradient=_finite(error.norm()) / max(size, floor) if size or floor else _finite(error.norm()),
        cosine=float(torch.cosine_similarity(gradient.flatten(), wanted.flatten(), dim=0)) if size > floor else 1.0,
        weight=_finite(moved.max()),
        clear=_finite((moved * clear).max()),
        unclear=int((~clear).sum()),
        flipped=int((gradient.sign() != wanted.sign()).sum()),
    )


def _finite(value: Tensor) -> float:
    """NaN is as far as can be: no bound holds for it."""
    return float(torch.nan_to_num(value, nan=torch.inf))


def _relative(value: float, reference: float) -> float:
    return abs(value - reference) / abs(reference)
