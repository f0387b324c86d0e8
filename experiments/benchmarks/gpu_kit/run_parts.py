"""Runs the parts one after another, each in a process of its own that is ended when its time is up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from experiments.benchmarks.gpu_kit import checks
from experiments.benchmarks.gpu_kit.checks import Check, failed
from experiments.benchmarks.gpu_kit.parts import Part
from experiments.benchmarks.gpu_kit.settings import Settings, Shapes
from experiments.benchmarks.gpu_kit.table import PartResult

ROOT = Path(__file__).resolve().parents[3]
GRACE = 10.0  # seconds beyond its deadline in which a part may end by itself


def run_parts(
    parts: Sequence[Part], *, device: Literal["cuda", "cpu"], shapes: Shapes, seconds: float, logs: Path
) -> Iterator[PartResult]:
    """Yields the result of each part when it has ended. What a part prints goes to `logs`/PART.log."""
    ends = time.time() + seconds
    for number, part in enumerate(parts):
        limit = max(0.0, ends - time.time()) * part.share / sum(other.share for other in parts[number:])
        yield run_part(part, device=device, shapes=shapes, seconds=limit, log=logs / f"{part.name}.log")


def run_part(part: Part, *, device: Literal["cuda", "cpu"], shapes: Shapes, seconds: float, log: Path) -> PartResult:
    began = time.time()
    with tempfile.TemporaryDirectory(prefix=f"turnwise-{part.name}-") as scratch:
        folder = Path(scratch)
        settings = Settings(device_name=device, shapes=shapes, scratch=folder / "scratch", deadline=began + seconds)
        settings.scratch.mkdir()
        settings.write(folder / "settings.json")
        words = [part.module, str(folder / "settings.json"), str(folder / "checks.jsonl")]
        with log.open("w", encoding="utf-8") as output:
            end = _run(["experiments.benchmarks.gpu_kit.part_process", *words], output.fileno(), seconds + GRACE)
        made = checks.read(folder / "checks.jsonl")
    if end is not None:
        made.append(end)
    return PartResult(part=part, checks=tuple(made), seconds=time.time() - began)


def _run(words: Sequence[str], output: int, seconds: float) -> Check | None:
    """Returns how the process ended, if that was not of its own accord. Nothing that it started is left running."""
    process = subprocess.Popen(
        [sys.executable, "-m", *words], cwd=ROOT, stdout=output, stderr=output, start_new_session=True
    )
    try:
        status = process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        return failed("the part ends in time", f"ended after {seconds:.0f} s")
    finally:
        _kill_group(process.pid)
        process.wait()
    return None if status == 0 else failed("the part ends by itself", f"its process ended with status {status}")


def _kill_group(leader: int) -> None:
    try:
        os.killpg(leader, signal.SIGKILL)
    except ProcessLookupError:
        return
