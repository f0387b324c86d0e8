"""The page of step_speed.py: a section for each work, which a later run of it replaces. And the line of its history."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments.benchmarks.step_kit.contestants import OURS, contestant
from experiments.benchmarks.step_kit.result import Line, Result
from experiments.benchmarks.step_kit.works import works_in_words

TITLE = "# One training step, beside others' on the same rows\n"
HOW = """
Each contestant runs in a process of its own with one thread. They take turns, a block of steps each, in an order that rotates
from round to round; ratios are those of blocks of one round, and of these the median. Above 1: Turnwise is faster. Peak: the
most resident memory, beyond what the process had when its libraries were loaded. Share: of the operations a CPU second that a
product of two 4096 x 4096 matrices in the same precision reached on one thread in the same rounds; counted are those that a
step cannot do without (the head for targets only, attention within a conversation only). Loss: its largest relative
difference from Turnwise's, step by step; no weight moves (learning rate 1e-20), so every step can be compared. A slot that
trains several full trials keeps a clean copy of the weights besides, which is not in Turnwise's peak.
"""
_SECTION = re.compile(r"^## ", re.MULTILINE)


def page(before: str, results: Sequence[Result], facts: Mapping[str, str]) -> str:
    """before: the page as it was; "" if there is none."""
    sections = {part.partition("\n")[0]: part for part in _SECTION.split(before)[1:]}
    for result in results:
        part = section(result, facts)
        sections[part.partition("\n")[0]] = part
    return TITLE + HOW + "".join("\n## " + sections[name].strip() + "\n" for name in sorted(sections))


def section(result: Result, facts: Mapping[str, str]) -> str:
    """Without the marks of its heading."""
    ours = next(line for line in result.lines if line.name == OURS)
    products = result.product_flops
    reached = (
        f" The product reached {products[0] / 1e9:.0f} to {products[1] / 1e9:.0f} GFLOP a CPU second."
        if products
        else ""
    )
    return "\n".join(
        [
            works_in_words(result.work, result.precision),
            "",
            f"{result.tokens_per_step:,.0f} tokens a step, {result.targets_per_step:,.0f} of them targets; {result.rounds}"
            f" rounds of {result.steps_per_block} steps.{reached}",
            "",
            "| | s a step | tokens/s | tokens/CPU s | ratio | by CPU time | share | peak, MB | ours of it | loss |",
            "|---|---|---|---|---|---|---|---|---|---|",
            *(_row(line, ours) for line in result.lines),
            *(f"| {contestant(name).words} | left out: {reason} |" for name, reason in result.lost.items()),
            "",
            "; ".join(f"{name} {value}" for name, value in facts.items()),
            "",
        ]
    )  # fmt: skip


def history_line(result: Result, facts: Mapping[str, str]) -> str:
    """JSON: what was measured on what, and each ratio."""
    lines = {
        line.name: {
            "ratio": round(line.times, 3),
            "cpu_ratio": round(line.cpu_times, 3),
            "peak_mb": round(line.peak_bytes / 1e6),
            "share": None if line.share is None else round(line.share, 3),
            "tokens_per_cpu_second": round(line.tokens_per_cpu_second, 1),
        }
        for line in result.lines
    }
    return json.dumps(
        dict(facts)
        | {"work": result.work, "precision": result.precision, "rounds": result.rounds, "contestants": lines}
    )


def append_line(file: Path, line: str) -> None:
    with file.open("a", encoding="utf-8") as opened:
        opened.write(line + "\n")


def _row(line: Line, ours: Line) -> str:
    share = "" if line.share is None else f"{line.share:.0%}"
    itself = line is ours
    cells = [
        contestant(line.name).words,
        f"{line.seconds_per_step:.2f}",
        f"{line.tokens_per_second:,.0f}",
        f"{line.tokens_per_cpu_second:,.0f}",
        "" if itself else f"**{line.times:.2f}**",
        "" if itself else f"{line.cpu_times:.2f}",
        share,
        f"{line.peak_bytes / 1e6:,.0f}",
        "" if itself else f"{ours.peak_bytes / line.peak_bytes:.2f}",
        "" if itself else f"{line.loss_off:.0e}{'' if line.is_same_work else ' (other work!)'}",
    ]
    return "| " + " | ".join(cells) + " |"
