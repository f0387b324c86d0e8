"""Speed: tokens a second and share of the card's own peak, beside transformers' Trainer over the same rows.

speed_peak.py says which operations count. The learning rate is so small that no weight moves: what the two trainers compute
can be compared after every step.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec

import torch

from experiments.benchmarks.gpu_kit.cases import Case, release_memory, run_cases
from experiments.benchmarks.gpu_kit.checks import Check, measured, passed_if, skipped
from experiments.benchmarks.gpu_kit.settings import Settings
from experiments.benchmarks.gpu_kit.shapes import config_of
from experiments.benchmarks.gpu_kit.speed_bench import RANK, RESERVE, WARM_UP, Bench, Subject, Trial
from experiments.benchmarks.gpu_kit.speed_peak import measured_peak, room
from experiments.benchmarks.gpu_kit.speed_profile import profile_step, waiting_lines
from experiments.benchmarks.gpu_kit.speed_rows import CHATS, PACKED, PADDED, WHOLE, Rows, row_kinds
from experiments.benchmarks.gpu_kit.speed_variants import attention_cases, compile_cases, head_cases

# Two orders of the same sums, in 16 bits: thousands of losses average the rounding out, a gradient has more of it.
SAME_LOSS, SAME_NORM = 1e-3, 0.03
AS_FAST = 0.97  # of transformers' Trainer: what is left for noise between two steps
# LoRA of a 7B model by NeMo AutoModel on one H100, 4,096 tokens a row: tokens a second, and as a share of its nominal peak.
TO_BEAT, TO_BEAT_SHARE, NOMINAL_H100 = 14_110, 0.428, 989e12
COMPARABLE = ("H100", "H200")  # the latter has the same multipliers and faster memory
# Of each logit in transformers' Trainer: twice 16 bits, and float32 for itself, its softmax and its gradient.
LOGIT_BYTES = 16
WAITING_LINES = 6  # of the table: the places where the host waits most often
FILL = 0.95  # of the card: beyond is what its driver and torch's allocator keep

# A model and method, its rows, and the seconds that they take on one H100, in the order of their worth.
FIRST = (
    (Subject(shape="llama2-7b", method="LoRA"), (PACKED, WHOLE), 25.0),
    (Subject(shape="chatglm3-6b", method="LoRA"), (PACKED,), 15.0),
    (Subject(shape="llama-1b", method="full"), (PACKED,), 14.0),
    (Subject(shape="llama-1b", method="LoRA"), (CHATS, PADDED), 14.0),
    (Subject(shape="llama-3b", method="full"), (PACKED,), 16.0),
)
REST = (
    (Subject(shape="llama-3b", method="LoRA"), (PACKED, CHATS), 15.0),
    (Subject(shape="llama-1b", method="LoRA"), (PACKED,), 10.0),
    (Subject(shape="llama-1b", method="full"), (CHATS,), 14.0),
    (Subject(shape="llama2-7b", method="LoRA"), (CHATS,), 18.0),
    (Subject(shape="chatglm3-6b", method="LoRA"), (CHATS,), 15.0),
    (Subject(shape="llama-3b", method="full"), (CHATS,), 16.0),
    (Subject(shape="chatglm3-6b", method="full"), (PACKED, CHATS), 30.0),
    (Subject(shape="llama2-7b", method="full"), (PACKED, CHATS), 30.0),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """How a trial fits the card, if at all: with checkpointing or without, and whether transformers' logits do, too."""

    checkpointing: bool
    beside: bool


def run(settings: Settings) -> Iterator[Check]:
    yield from run_cases(_Speed(settings).cases(), settings)


class _Speed:
    """The cases, and what the later ones take from the earlier."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.peak = math.nan
        self.slowest: tuple[float, Subject, Rows, bool] | None = None

    def cases(self) -> Iterator[Case]:
        """Later ones are made when the earlier ones have ended."""
        yield "the card's own peak", self.measure_peak, self._seconds(4.0)
        for subject, kinds, seconds in FIRST:
            yield f"{subject}, {' and '.join(kinds)}", partial(self.race, subject, kinds), self._seconds(seconds)
        yield from attention_cases(self.settings)
        yield "where the slowest step's time goes", self.profile, self._seconds(12.0)
        yield from compile_cases(self.settings)
        yield from head_cases(self.settings)
        for subject, kinds, seconds in REST if not self.settings.tiny else ():
            yield f"{subject}, {' and '.join(kinds)}", partial(self.race, subject, kinds), seconds

    def measure_peak(self) -> Iterator[Check]:
        self.peak, size = measured_peak(self.settings)
        share = f", {self.peak / NOMINAL_H100:.0%} of the nominal 989" if _is_comparable(self.settings) else ""
        seen = f"{self.peak / 1e12:.3g} TFLOP/s, by matrices of {size:,} x {size:,}{share}"
        yield measured("the card's own peak: one multiplication of square matrices in bf16", seen, flops=self.peak)

    def race(self, subject: Subject, kinds: tuple[str, ...]) -> Iterator[Check]:
        """One model, and the rows one kind after the other."""
        every = row_kinds(tiny=self.settings.tiny, per_pass=2 if subject.shape == "llama-1b" else 1)
        chosen = [every[kind] for kind in kinds]
        fit = fit_of(subject, max(chosen, key=lambda rows: rows.tokens_per_pass), self.settings)
        if fit is None:
            yield skipped(
                f"{subject}, {' and '.join(kinds)}", "by the plan it does not fit this card, checkpointed or not"
            )
            return
        bench = Bench(subject, self.settings, checkpointing=fit.checkpointing)
        for rows in chosen:
            if self.settings.seconds_left() < RESERVE:
                yield skipped(f"{subject}, {rows.name}", "no time left")
                continue
            yield from self.checks_of(self._measure(bench, rows, beside=fit.beside))
            release_memory()  # the optimizer's state, before the next one is made

    def _measure(self, bench: Bench, rows: Rows, *, beside: bool) -> Trial:
        steps = WARM_UP + (2 if self.settings.tiny else 5)
        if beside and find_spec("accelerate") is not None:  # transformers' Trainer needs it, the product does not
            from experiments.benchmarks.gpu_kit.speed_hf import run_in_turn

            trial = bench.prepare(rows, steps)
            with contextlib.suppress(torch.OutOfMemoryError):  # the product's own steps are then made alone
                run_in_turn(trial)
                return trial
            del trial
            release_memory()
        trial = bench.prepare(rows, steps)
        trial.run_alone()
        return trial

    def checks_of(self, trial: Trial) -> Iterator[Check]:
        subject, rows, ours = trial.bench.subject, trial.rows, trial.ours
        share = ours.flops_per_second / self.peak
        if self.slowest is None or share < self.slowest[0]:
            self.slowest = share, subject, rows, trial.bench.checkpointing
        checkpointed = ", checkpointed" if trial.bench.checkpointing else ""
        asked = f"{subject}, {rows.name} of {rows.max_tokens:,} tokens{checkpointed}"
        seen = f"{ours.tokens_per_second:,.0f} tokens/s, {share:.1%} of the card's own peak"
        figures = {"tokens_per_second": ours.tokens_per_second, "share_of_peak": share}
        if trial.theirs.steps:
            yield self._beside(trial, asked, seen, figures)
            yield same_work(trial, asked)
        else:
            yield measured(f"{asked}: speed", f"{seen}; transformers' Trainer was not run beside it", **figures)
        if subject.shape == "llama2-7b" and subject.method == "LoRA" and rows.name == WHOLE:
            yield self._number_to_beat(trial)

    def _beside(self, trial: Trial, asked: str, seen: str, figures: dict[str, float]) -> Check:
        theirs = trial.theirs.tokens_per_second
        ratio = trial.ours.tokens_per_second / theirs
        seen = f"{seen}; {ratio:.2f} x transformers' {theirs:,.0f}"
        figures = figures | {"ratio": ratio, "theirs": theirs}
        if not self.settings.on_gpu:  # seconds of a few milliseconds' steps say nothing about a GPU
            return measured(f"{asked}: beside transformers' Trainer", seen, **figures)
        return passed_if(
            ratio >= AS_FAST, f"{asked}: at least {AS_FAST} x as fast as transformers' Trainer", seen, **figures
        )

    def _number_to_beat(self, trial: Trial) -> Check:
        ours = trial.ours
        asked = (
            f"LoRA (rank {RANK}, all linear layers) of a 7B shape: more than {TO_BEAT:,} tokens/s on one H100"
            f" ({TO_BEAT_SHARE:.1%} of its nominal peak)"
        )
        share = ours.flops_per_second / NOMINAL_H100
        if not _is_comparable(self.settings):
            return measured(asked, f"{ours.tokens_per_second:,.0f} tokens/s, and this is no H100")
        seen = f"{ours.tokens_per_second:,.0f} tokens/s, {share:.1%} of the nominal peak"
        return passed_if(ours.tokens_per_second > TO_BEAT, asked, seen, share_of_nominal=share)

    def profile(self) -> Iterator[Check]:
        if self.slowest is None:
            yield skipped("where the slowest step's time goes", "no step was measured")
            return
        share, subject, rows, checkpointing = self.slowest
        trial = Bench(subject, self.settings, checkpointing=checkpointing).prepare(rows, WARM_UP + 3)
        for _ in range(WARM_UP):
            trial.step()
        wall = trial.step().seconds  # as it is without the profiler, which slows the host down
        found = profile_step(trial.trainer.step, self.settings.device)
        if not found.groups:
            yield skipped("where the slowest step's time goes", "torch's profiler sees no kernel of this device")
            return
        asked = f"{subject}, {rows.name} ({share:.1%} of the peak)"
        yield measured(f"{asked}: where a step's time goes", found.sentence(), **found.groups)
        if self.settings.on_gpu:
            idle = max(0.0, 1 - found.busy / wall)
            seen = f"{idle:.1%} of {1000 * wall:,.0f} ms; {found.kernels:,} kernels take the rest"
            yield measured(f"{asked}: the device is idle", seen, idle_share=idle)
        waits = ", ".join(f"{count} x {name}" for name, count in found.waits.items()) or "none"
        if self.settings.on_gpu:
            lines = waiting_lines(trial.trainer.step)
            waits += f"; {sum(count for _, count in lines)} in all: " + ", ".join(
                f"{count} x {line}" for line, count in lines[:WAITING_LINES]
            )
        yield measured(f"{asked}: the host waits in a step", waits)

    def _seconds(self, on_h100: float) -> float:
        return 0.5 if self.settings.tiny else on_h100


def fit_of(subject: Subject, rows: Rows, settings: Settings) -> Fit | None:
    """By the product's plan: beside transformers' Trainer if that can be, without checkpointing if that can be."""
    logits = LOGIT_BYTES * rows.tokens_per_pass * config_of(subject.shape, settings).vocab_size
    available = FILL * room(settings)
    needed: dict[bool, float] = {}
    for beside in (True, False):
        for checkpointing in (False, True):
            if checkpointing not in needed:
                needed[checkpointing] = subject.planned_bytes(rows, settings, checkpointing=checkpointing)
            if needed[checkpointing] + beside * logits <= available:
                return Fit(checkpointing=checkpointing, beside=beside)
    return None


def same_work(trial: Trial, asked: str) -> Check:
    """Whether both trainers computed the same, step by step. If they did not, their speeds cannot be compared."""
    pairs = list(zip(trial.ours.steps, trial.theirs.steps, strict=True))
    losses = max(abs(ours.loss / theirs.loss - 1) for ours, theirs in pairs)
    norms = max(abs(ours.grad_norm / theirs.grad_norm - 1) for ours, theirs in pairs)
    return passed_if(
        losses <= SAME_LOSS and norms <= SAME_NORM,
        f"{asked}: the loss and the gradient's norm of transformers' Trainer, within {SAME_LOSS:.1%} and {SAME_NORM:.0%}",
        f"{losses:.1g} and {norms:.1g} of them apart at most, in {len(pairs)} steps",
        loss=losses,
        grad_norm=norms,
    )


def _is_comparable(settings: Settings) -> bool:
    return settings.on_gpu and any(name in torch.cuda.get_device_name(settings.device) for name in COMPARABLE)
