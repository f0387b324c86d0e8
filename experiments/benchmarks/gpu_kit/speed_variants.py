"""Other ways to compute the same step: each attention, compiled layers, more logits at once. How fast, and is it the same?"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch import nn

from components.models.attention_backend import INSTALL_ADVICE, is_usable
from components.training import loss as loss_module
from experiments.benchmarks.gpu_kit.cases import Case, release_memory
from experiments.benchmarks.gpu_kit.checks import Check, measured, passed_if, skipped
from experiments.benchmarks.gpu_kit.part_process import line_of
from experiments.benchmarks.gpu_kit.settings import Settings
from experiments.benchmarks.gpu_kit.speed_bench import WARM_UP, Bench, Subject, Trial
from experiments.benchmarks.gpu_kit.speed_peak import room
from experiments.benchmarks.gpu_kit.speed_rows import PACKED, WHOLE, Rows, row_kinds

SAME = 1e-3  # of the loss: other kernels round in another order, over thousands of targets
SUBJECT = Subject(shape="llama-1b", method="LoRA")
RESERVE_FOR_PROFILE = 12.0  # seconds: it comes after the first of these and is worth more
COMPILES = 45.0  # seconds, at most, for one layer forward and backward, and for flex attention
COMPILES_WHOLE = 90.0
LOGITS_TINY = 2**13  # few enough that a tiny model's are computed in several chunks


def attention_cases(settings: Settings) -> Iterator[Case]:
    asked = "each attention over packed rows"
    yield asked, lambda: _attentions(settings), 1.0 if settings.tiny else 12.0 + RESERVE_FOR_PROFILE


def compile_cases(settings: Settings) -> Iterator[Case]:
    yield "flex attention over packed rows", lambda: _flex(settings), 0.0 if not settings.on_gpu else COMPILES
    yield "compiled layers", lambda: _compiled(settings, whole=False), 4.0 if settings.tiny else COMPILES
    if settings.on_gpu:  # on a CPU the layers alone try the same code
        yield "compiled decoder", lambda: _compiled(settings, whole=True), COMPILES_WHOLE


def head_cases(settings: Settings) -> Iterator[Case]:
    yield "more logits at once", lambda: _more_logits(settings), 1.0 if settings.tiny else 12.0


def _rows(settings: Settings, kind: str = PACKED) -> Rows:
    return row_kinds(tiny=settings.tiny, per_pass=1)[kind]


def _steps(settings: Settings) -> int:
    return WARM_UP + (1 if settings.tiny else 3)


def _ran(bench: Bench, settings: Settings, kind: str = PACKED, *, masks: bool = False) -> Trial:
    trial = bench.prepare(_rows(settings, kind), _steps(settings))
    trial.scored.keeps_apart &= not masks
    trial.run_alone()
    return trial


def _attentions(settings: Settings) -> Iterator[Check]:
    """Those that an experiment may name, and sdpa with masks, by several of torch's kernels."""
    bench = Bench(SUBJECT, settings)
    sdpa = _ran(bench, settings)
    tokens = sdpa.ours.tokens_per_second
    way = "conversation by conversation" if sdpa.scored.keeps_apart else "with masks"
    yield measured(f"{SUBJECT}, packed rows: sdpa, {way}", f"{tokens:,.0f} tokens/s", tokens_per_second=tokens)
    yield _compared(_ran(bench, settings, masks=True), sdpa, "sdpa with masks")
    if settings.on_gpu:
        with _cudnn_first():
            yield _compared(_ran(bench, settings, masks=True), sdpa, "sdpa with masks, cuDNN's kernel where it can")
    else:
        yield skipped(_asked("sdpa with masks, cuDNN's kernel where it can"), "its kernels are for GPUs")
    yield _other_attention(bench, sdpa, "flash_attention_2", settings)
    yield _other_attention(bench, sdpa, "eager", settings)


def _other_attention(bench: Bench, sdpa: Trial, attention: str, settings: Settings) -> Check:
    if not (is_usable(attention) and (settings.on_gpu or attention == "eager")):
        return skipped(_asked(attention), f"cannot be had here; {INSTALL_ADVICE}")
    subject = Subject(shape=SUBJECT.shape, method=SUBJECT.method, attention=attention)
    if subject.planned_bytes(_rows(settings), settings, checkpointing=False) > room(settings):
        return skipped(_asked(attention), "by the plan it does not fit this card")
    with _attention(bench, attention):
        return _compared(_ran(bench, settings), sdpa, attention)


def _flex(settings: Settings) -> Iterator[Check]:
    """No experiment may name it; what it would give is worth knowing."""
    if not settings.on_gpu:
        yield skipped(_asked("flex attention"), "it is trained on GPUs only")
        return
    bench = Bench(SUBJECT, settings)
    sdpa = _ran(bench, settings)
    try:
        with _attention(bench, "flex_attention"):
            yield _compared(_ran(bench, settings), sdpa, "flex attention")
    except Exception as error:  # noqa: BLE001 - no part of the product
        yield skipped(_asked("flex attention"), f"does not run here: {line_of(error)}")


def _compiled(settings: Settings, *, whole: bool) -> Iterator[Check]:
    """The product compiles nothing; here each layer of the decoder is, or the decoder as one.

    Rows are of one length: packed ones have several, and each would be compiled anew.
    """
    what = "the decoder compiled" if whole else "each layer of the decoder compiled"
    bench = Bench(SUBJECT, settings)
    plain = _ran(bench, settings, WHOLE)
    decoder = bench.base.get_decoder()
    modules: list[nn.Module] = [decoder] if whole else list(decoder.layers)
    began = time.perf_counter()
    try:
        # Without a C++ compiler's help on a CPU: what is traced is the same.
        for module in modules:
            module.compile(dynamic=False, backend="inductor" if settings.on_gpu else "aot_eager")
        compiled = _ran(bench, settings, WHOLE)
    except Exception as error:  # noqa: BLE001 - no part of the product
        yield skipped(_asked(what, kind=WHOLE), f"cannot be compiled here: {line_of(error)}")
        return
    finally:
        for module in modules:
            module._compiled_call_impl = None
        torch._dynamo.reset()
    yield _compared(compiled, plain, what, f"; {time.perf_counter() - began:.0f} s with compiling")


def _more_logits(settings: Settings) -> Iterator[Check]:
    """Full fine-tuning makes the head's gradient for each chunk of logits: fewer chunks are less work, and more memory."""
    bench = Bench(Subject(shape=SUBJECT.shape, method="full"), settings)
    usual = LOGITS_TINY if settings.tiny else loss_module.MAX_LOGITS_AT_ONCE
    with mock.patch.object(loss_module, "MAX_LOGITS_AT_ONCE", usual):
        plain = _ran(bench, settings)
    release_memory()
    with mock.patch.object(loss_module, "MAX_LOGITS_AT_ONCE", 4 * usual):
        more = _ran(bench, settings)
    yield _compared(more, plain, f"{4 * usual:,} logits at once instead of {usual:,}", subject=bench.subject)


def _compared(trial: Trial, plain: Trial, what: str, note: str = "", subject: Subject = SUBJECT) -> Check:
    ratio = trial.ours.tokens_per_second / plain.ours.tokens_per_second
    apart = max(abs(one.loss / other.loss - 1) for one, other in zip(trial.ours.steps, plain.ours.steps, strict=False))
    return passed_if(
        apart <= SAME,
        f"{_asked(what, subject, trial.rows.name)}: the same loss within {SAME:.1%}",
        f"{trial.ours.tokens_per_second:,.0f} tokens/s, {ratio:.2f} x as fast{note}; loss {apart:.1g} of it apart",
        tokens_per_second=trial.ours.tokens_per_second,
        ratio=ratio,
        loss=apart,
    )


def _asked(what: str, subject: Subject = SUBJECT, kind: str = PACKED) -> str:
    return f"{subject}, {kind}: {what}"


@contextlib.contextmanager
def _attention(bench: Bench, attention: str) -> Iterator[None]:
    usual = bench.base.config._attn_implementation
    bench.base.set_attn_implementation(attention)
    try:
        yield
    finally:
        bench.base.set_attn_implementation(usual)


def _cudnn_first() -> contextlib.AbstractContextManager[Any]:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    order = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    return sdpa_kernel(order, set_priority=True)
