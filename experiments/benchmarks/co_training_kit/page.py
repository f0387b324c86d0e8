"""The page of co_training.py."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from experiments.benchmarks.co_training_kit.measure import Measured
from experiments.benchmarks.co_training_kit.trials import SIZES

HEAD = """# Several LoRA trials in one pass, against one after another

One step of every trial, together and then one after another (or the other way round), in one process with one thread; ratios
are those of neighbouring steps, and of these the median. Above 1: together is faster. Trials have ranks of 4 to 32, and every
second one has dropout. Peak: the most resident memory of the steps together, beyond what the process has when its libraries
are loaded; as many slots as there are trials would take the first line's peak each, less what of the base they share.

No GPU has been measured. There a step of few tokens waits for its kernels to start, and a joint one starts the base's once
for all trials; the adapters' are still started trial by trial. A step that fills the GPU can gain memory only.
"""


def page(lines: Sequence[Measured], facts: Mapping[str, str]) -> str:
    parts = [HEAD]
    for name, size in SIZES.items():
        of_size = [line for line in lines if line.size == name]
        if not of_size:
            continue
        parts.append(f"## {size.tokens_per_step:,} tokens a step of each trial ({size.rows} rows of {size.tokens})\n")
        parts.append(_table(of_size))
    return "\n".join([*parts, "; ".join(f"{name} {value}" for name, value in facts.items()), ""])


def _table(lines: Sequence[Measured]) -> str:
    rows = [
        "| trials | tokens/CPU s together | in turn | ratio by CPU time | by the clock | rounds | peak, MB | each more, MB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for number, line in enumerate(lines):
        together, in_turn = (
            line.tokens / statistics.median(each.cpu for each in way) for way in (line.together, line.in_turn)
        )
        more = ""
        if number:
            before = lines[number - 1]
            more = f"{(line.peak_bytes - before.peak_bytes) / (line.trials - before.trials) / 1e6:,.0f}"
        cpu, clock = (ratio(line, what) for what in ("cpu", "clock"))
        rows.append(
            f"| {line.trials} | {together:,.0f} | {in_turn:,.0f} | **{cpu:.2f}** | {clock:.2f} | {len(line.together)} |"
            f" {line.peak_bytes / 1e6:,.0f} | {more} |"
        )
    return "\n".join([*rows, ""])


def ratio(line: Measured, what: str) -> float:
    """How many times longer the trials take one after another; of neighbouring steps, the median."""
    pairs = zip(line.in_turn, line.together, strict=True)
    return statistics.median(getattr(other, what) / getattr(one, what) for other, one in pairs)
