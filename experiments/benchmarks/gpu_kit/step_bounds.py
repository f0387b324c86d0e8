"""How far a step may be from its reference, why, and how that is written in the table."""

from __future__ import annotations

from experiments.benchmarks.gpu_kit.checks import Check, passed_if
from experiments.benchmarks.gpu_kit.steps import CLEAR, Difference

# The same float32 sums in another order. Between two ways of a CPU, gradients of these shapes are 2e-6 apart. TF32 keeps 10
# bits of each factor, an error of 5e-4, so it does not pass.
FP32_LOSS = 1e-5
FP32_GRADIENT = 1e-4
# bf16 keeps 8 bits, an error of up to 4e-3 in each product. On a CPU that makes up to 3 % of a gradient of these shapes (of
# queries and keys most, which a softmax lies behind), and 2e-5 of the loss.
BF16_LOSS = 1e-3
BF16_GRADIENT = 0.1
BF16_COSINE = 0.995
# In learning rates: a weight whose gradient is rounding may go either way, every other one must not.
FLIPPED = 2.0 + 1 / CLEAR
SAME_WEIGHT = 1 / CLEAR


def same_in_fp32(asked: str, found: Difference, **figures: float | str) -> Check:
    holds = max(found.loss, found.grad_norm) <= FP32_LOSS and found.gradients <= FP32_GRADIENT and _weights_hold(found)
    asked = f"{asked} (loss within {FP32_LOSS:.0e}, gradients {FP32_GRADIENT:.0e})"
    return passed_if(holds, asked, describe(found), **found.figures(), **figures)


def near_in_bf16(asked: str, found: Difference, **figures: float | str) -> Check:
    holds = found.loss <= BF16_LOSS and found.grad_norm <= BF16_GRADIENT and _weights_hold(found)
    holds = holds and found.gradients <= BF16_GRADIENT and found.cosine >= BF16_COSINE
    asked = f"{asked} (loss within {BF16_LOSS:.0e}, gradients {BF16_GRADIENT:.0%}, cosine {BF16_COSINE})"
    return passed_if(holds, asked, describe(found), **found.figures(), **figures)


def _weights_hold(found: Difference) -> bool:
    return found.weights <= FLIPPED and found.clear <= SAME_WEIGHT


def describe(found: Difference) -> str:
    loss_and_gradients = f"loss {found.loss:.0e}, gradients {found.gradients:.0e} (most in {_short(found.worst)})"
    signs = f"{found.unclear:,} of {found.elements:,} gradients of uncertain sign, {found.flipped:,} of another"
    return f"{loss_and_gradients}; {signs}; in learning rates, weights {found.weights:.1g}, sure ones {found.clear:.1g}"


def _short(name: str) -> str:
    """model.layers.1.self_attn.q_proj.lora_A.default.weight becomes layers.1.self_attn.q_proj.lora_A."""
    return (
        name.removeprefix("base_model.model.").removeprefix("model.").removesuffix(".weight").removesuffix(".default")
    )
