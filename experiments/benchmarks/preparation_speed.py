"""Preparation against datasets.map: CPU seconds and memory of all processes, one after the other in one run.

    python experiments/benchmarks/preparation_speed.py --write experiments/benchmarks/preparation_speed.md

SmolLM2-135M-Instruct's tokenizer and template; conversations of one to six turns, of which some are said twice or nearly
twice. Turnwise reads strictly, renders and proves each turn, splits, leaves out what is equal or near, and keeps digests. By
hand (preparation_kit/by_hand.py) the same rendering, mask, proof and split, and only equal conversations are left out; the
second time nothing is proven, either.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # where `experiments` and `components` lie

from components.experiment.spec import ModelSpec
from components.models.base.load_base import resolve_model
from experiments.benchmarks.preparation_kit.by_hand import with_proof, without_proof
from experiments.benchmarks.preparation_kit.measured import Measured, measure
from experiments.benchmarks.preparation_kit.ours import prepare_ours
from experiments.benchmarks.preparation_kit.talks import write_talks

CONTESTANTS: dict[str, Callable[[Path, Path, Path, int], int]] = {
    "turnwise": prepare_ours,
    "datasets.map, the same work": with_proof,
    "datasets.map, one rendering, no proof": without_proof,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--conversations", type=int, default=200_000)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", choices=[*CONTESTANTS], action="append", help="contestants; all by default")
    parser.add_argument("--write", type=Path, metavar="FILE", help="the table, as Markdown")
    parser.add_argument("--work", nargs=3, metavar=("FILE", "MODEL", "OUT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        file, model, out = map(Path, arguments.work)
        CONTESTANTS[arguments.only[0]](file, model, out, arguments.processes)
        return
    lines = table(arguments.only or [*CONTESTANTS], arguments.conversations, arguments.processes)
    print("\n".join(lines))
    if arguments.write:
        arguments.write.write_text(page(lines, arguments.conversations, arguments.processes), encoding="utf-8")


def table(names: list[str], conversations: int, processes: int) -> list[str]:
    model = resolve_model(ModelSpec(path="smollm2-135m-instruct"), weights=False)
    measured: dict[str, Measured] = {}
    with TemporaryDirectory() as folder:
        file = Path(folder) / "talks.jsonl"
        write_talks(file, conversations)
        for name in names:
            out = Path(folder) / name.replace(" ", "-")
            out.mkdir()
            command = [sys.executable, __file__, "--only", name, "--processes", str(processes)]
            measured[name] = measure([*command, "--work", str(file), str(model), str(out)])
            print(name, measured[name], flush=True)
    ours = measured[names[0]]
    return [
        "| | CPU s per 1,000 | times ours | conversations per CPU s | wall s | peak memory, MB |",
        "|---|---|---|---|---|---|",
        *(
            f"| {name} | {1000 * each.cpu_seconds / conversations:.2f} | {each.cpu_seconds / ours.cpu_seconds:.2f} |"
            f" {conversations / each.cpu_seconds:,.0f} | {each.wall_seconds:,.0f} | {each.peak_bytes / 1e6:,.0f} |"
            for name, each in measured.items()
        ),
    ]


def page(lines: list[str], conversations: int, processes: int) -> str:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True).stdout
    return "\n".join(
        [
            "# Preparation against datasets.map",
            "",
            f"preparation_speed.py, {date.today()}, commit {commit.strip()}: {conversations:,} conversations,"
            f" {processes} processes on {os.cpu_count()} CPU cores, from the start of Python to the files on disk. Memory is"
            " the sum over all processes of what each holds, shared pages counted once.",
            "",
            *lines,
            "",
        ]
    )


if __name__ == "__main__":
    main()
