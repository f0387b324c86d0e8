"""A slot: ten trials one after another in one process leave it as it was, and so does one that ends by out of memory."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch

from components.experiment.base_precisions import BaseVariant
from components.experiment.spec import LoraMethod
from components.planning.calibrate import load_kernels
from experiments.benchmarks.gpu_kit.cases import Case, release_memory, run_cases
from experiments.benchmarks.gpu_kit.checks import Check, measured, passed_if, skipped
from experiments.benchmarks.gpu_kit.meters import meter_of
from experiments.benchmarks.gpu_kit.rows import random_dataset
from experiments.benchmarks.gpu_kit.settings import Settings
from experiments.benchmarks.gpu_kit.shapes import config_of
from experiments.benchmarks.gpu_kit.slot_turns import (
    ALL_ROWS,
    LORA,
    TOO_LARGE,
    TURNS,
    Trained,
    Turn,
    digest_of,
    own_bytes,
    train,
    variant_of,
)
from experiments.benchmarks.gpu_kit.trials import RandomRunner

SHAPE = "llama-1b"
TOKENS, TINY_TOKENS = 1024, 128  # of a row, in four conversations
# Of the base: below it are scalars; the adapters' gradients alone are more.
KEPT = 0.005
# Two equal trials on a GPU: its backward passes add in another order each time. On a CPU they are equal to the last bit.
LOSS_ON_GPU = 1e-3
SECONDS = 4.0  # that a trial takes on a GPU at most, with the load of its base


@dataclass(frozen=True, slots=True, kw_only=True)
class Clean:
    """A base in a runner of its own, which no trial has used."""

    held: int
    digest: str


def run(settings: Settings) -> Iterator[Check]:
    yield from run_cases(_Slot(settings).cases(), settings)


class _Slot:
    """One runner, and what was seen of the trials before."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.meter = settings, meter_of(settings)
        tokens = TINY_TOKENS if settings.tiny else TOKENS
        config = config_of(SHAPE, settings)
        dataset = random_dataset(
            settings.scratch / "rows", config.vocab_size, train=[tokens // 4] * 4 * ALL_ROWS, evaluate=[tokens, tokens]
        )
        checkpoints = settings.scratch / "checkpoints"
        self.make = partial(RandomRunner, config, dataset, checkpoints, device=settings.device, max_tokens=tokens)
        self.runner = self.make()
        self.clean: dict[BaseVariant, Clean] = {}
        self.trained: dict[Turn, Trained] = {}
        self.peaks: dict[Turn, int] = {}
        self.waits: dict[bool, list[float]] = {False: [], True: []}
        self.beyond: list[int] = []
        self.previous: BaseVariant | None = None

    def cases(self) -> Iterator[Case]:
        seconds = 0.0 if self.settings.tiny else SECONDS
        turns = [turn for turn in TURNS if turn.possible]
        yield "the bases before any trial", partial(self.look_at_bases, turns), 3 * seconds
        for number, turn in enumerate(turns, start=1):
            yield f"trial {number}, {turn.name}", partial(self.take, f"trial {number}", turn), seconds
        yield "after the last trial", partial(self.leave, LORA), seconds
        yield "from trial to trial", self.sum_up, 0.0
        yield "a trial ends by out of memory", self.run_out_of_memory, 2 * seconds

    def look_at_bases(self, turns: list[Turn]) -> Iterator[Check]:
        """Loads each base alone. Says which trials of the ten are impossible."""
        if self.settings.on_gpu:
            for precision in ("fp32", "bf16"):
                load_kernels(self.settings.device, precision)
        for turn in TURNS:
            if not turn.possible:
                yield skipped(turn.name, "no package bitsandbytes")
        self.meter.reset()
        self.nothing = self.meter.held
        for variant in dict.fromkeys(variant_of(self.runner, turn) for turn in turns):
            alone = self.make()
            with self.meter:
                alone.warm_up(variant)
            self.meter.reset()
            held = self.meter.held - self.nothing
            self.clean[variant] = Clean(held=held, digest=digest_of(alone.warm.load(variant)))
            del alone
            release_memory()

    def take(self, name: str, turn: Turn) -> Iterator[Check]:
        """Starts a trial, looks at what the one before has left, and trains it."""
        began, warm = time.time(), variant_of(self.runner, turn) == self.previous
        with self.meter:
            self.runner.start(name.replace(" ", "_"), turn.spec)
        started = time.time()
        yield from self.look(f"{name}, {turn.name}, begins", turn)
        looked = time.time()
        with self.meter:
            trained = train(self.runner, turn, saves=self.settings.tiny or isinstance(turn.method, LoraMethod))
        if self.previous is not None:
            self.waits[warm].append(trained.first_step - began - (looked - started))
        self.previous = variant_of(self.runner, turn)
        yield from self.compare(f"{name}, {turn.name}", turn, trained)

    def look(self, name: str, turn: Turn) -> Iterator[Check]:
        """Memory and weights, once a trial has been started and before its first step."""
        uncollected = self.meter.held
        self.meter.reset()
        variant = variant_of(self.runner, turn)
        clean, own = self.clean[variant], own_bytes(self.runner)
        beyond = self.meter.held - self.nothing - clean.held - own
        self.beyond.append(beyond)
        same = digest_of(self.runner.warm.load(variant)) == clean.digest
        yield passed_if(
            same and abs(beyond) <= KEPT * clean.held,
            f"{name} with the base as it was loaded, and within {KEPT:.1%} of its memory and of its own",
            f"weights {'the same' if same else 'CHANGED'}; {_mb(clean.held)} + {_mb(own)}, beyond that {_mb(beyond)}"
            f" ({_mb(uncollected - self.meter.held)} more before garbage is collected)",
            base_bytes=clean.held,
            own_bytes=own,
            beyond_bytes=beyond,
            uncollected_bytes=uncollected - self.meter.held,
        )

    def compare(self, name: str, turn: Turn, trained: Trained) -> Iterator[Check]:
        """With the same trial before, if there was one."""
        peak = self.meter.peak
        if turn not in self.trained:
            self.trained[turn], self.peaks[turn] = trained, peak
            return
        first, bound = self.trained[turn], LOSS_ON_GPU if self.settings.on_gpu else 0.0
        apart = max(abs(one - other) / other for one, other in zip(trained.losses, first.losses, strict=True))
        yield passed_if(
            apart <= bound,
            f"{name}: its losses are those of the same trial before, {f'within {bound:g}' if bound else 'to the last bit'}",
            f"{', '.join(f'{loss:.4f}' for loss in trained.losses)}; at most {apart:.1e} apart",
            apart=apart,
        )
        more = peak / self.peaks[turn] - 1
        yield passed_if(
            more <= KEPT,
            f"{name}: its peak is that of the same trial before, at most {KEPT:.1%} more",
            f"{_mb(peak)}: {more:+.2%}",
            peak_bytes=peak,
        )

    def leave(self, turn: Turn) -> Iterator[Check]:
        with self.meter:
            self.runner.start("last", turn.spec)
        yield from self.look("one more", turn)

    def sum_up(self) -> Iterator[Check]:
        growth, smallest = self.beyond[-1] - self.beyond[0], min(clean.held for clean in self.clean.values())
        yield passed_if(
            growth <= KEPT * smallest,
            f"nothing grows over {len(self.beyond)} starts: at most {KEPT:.1%} of the smallest base",
            f"{_mb(growth)} beside {_mb(smallest)}",
            growth_bytes=growth,
        )
        for warm, waits in self.waits.items():
            yield measured(
                f"from a trial's end to the next one's first step, {'on the same base' if warm else 'with another base'}",
                f"{min(waits):.2f} to {max(waits):.2f} s, {len(waits)} times" if waits else "never",
                **({"longest_seconds": max(waits)} if waits else {}),
            )

    def run_out_of_memory(self) -> Iterator[Check]:
        """The limit is what an ordinary trial takes; this one takes several times that."""
        error = self._die()
        yield passed_if(
            error is not None,
            f"{TOO_LARGE.name} ends by torch.OutOfMemoryError",
            "it ran" if error is None else error,
        )
        self.previous = variant_of(self.runner, LORA)
        yield from self.take("the trial after that", LORA)

    def _die(self) -> str | None:
        """Returns the first line of the error; what a slot keeps of it is no more."""
        try:
            with self.meter:
                self.runner.start("too_large", TOO_LARGE.spec)
                self.meter.reset()
                with self.meter.limited_to(
                    self.peaks[LORA] - self.nothing - self.clean[variant_of(self.runner, LORA)].held
                ):
                    train(self.runner, TOO_LARGE, saves=False)
        except torch.OutOfMemoryError as error:
            return str(error).splitlines()[0]
        return None


def _mb(size: float) -> str:
    return f"{size / 1e6:,.2f} MB"
