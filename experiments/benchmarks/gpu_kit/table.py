"""The table of a run, as Markdown and as JSON: on what, when, of which commit, and what was seen."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from components.planning.memory import physical_memory
from components.storage.size import GB
from experiments.benchmarks.gpu_kit.checks import Check
from experiments.benchmarks.gpu_kit.parts import Part

LIBRARIES = ("torch", "transformers", "peft", "ray", "mlflow", "bitsandbytes", "flash-attn", "accelerate")


@dataclass(frozen=True, slots=True, kw_only=True)
class PartResult:
    part: Part
    checks: tuple[Check, ...]
    seconds: float

    @property
    def failed(self) -> bool:
        """A part that said nothing has failed, too."""
        return not self.checks or any(check.verdict == "failed" for check in self.checks)


def facts(device: str, *, minutes: float, shapes: str, commit: str | None) -> dict[str, str]:
    """What the figures depend on."""
    found = {
        **facts_of_machine(LIBRARIES),
        "card": _card() if device == "cuda" else "none used",
        "driver": _output(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]) or "none",
        "CUDA of torch": torch.version.cuda or "none",
        "shapes, minutes": f"{shapes}, {minutes:g}",
    }
    return found | ({"commit": commit} if commit else {})


def facts_of_machine(libraries: Sequence[str]) -> dict[str, str]:
    """The date, the commit, the machine, and the versions of Python and of these libraries."""
    found = {
        "date": f"{date.today():%Y-%m-%d}",
        "commit": _output(["git", "describe", "--always", "--dirty", "--abbrev=10"]) or "unknown",
        "machine": f"{os.cpu_count()} cores ({platform.machine()}), {physical_memory() / GB:.0f} GB",
        "Python": platform.python_version(),
    }
    return found | {library: _version(library) for library in libraries}


def write(results: Sequence[PartResult], about: dict[str, str], folder: Path) -> None:
    """Writes gpu.json and gpu.md."""
    parts = [
        {"part": result.part.name, "seconds": round(result.seconds, 1), "checks": [asdict(c) for c in result.checks]}
        for result in results
    ]
    (folder / "gpu.json").write_text(json.dumps({"facts": about, "parts": parts}, indent=1) + "\n", encoding="utf-8")
    (folder / "gpu.md").write_text(markdown(results, about), encoding="utf-8")


def markdown(results: Sequence[PartResult], about: dict[str, str]) -> str:
    lines = ["# The GPU paths, checked on one machine", "", *(f"- {name}: {value}" for name, value in about.items())]
    for result in results:
        lines += ["", f"## {result.part.name}: {result.part.question}", ""]
        lines += [f"{result.seconds:.0f} seconds.", "", "| verdict | asked | seen |", "|---|---|---|"]
        lines += [f"| {check.verdict} | {_cell(check.asked)} | {_cell(check.seen)} |" for check in result.checks]
    return "\n".join([*lines, ""])


def headline(result: PartResult) -> str:
    """One line for a terminal."""
    verdicts = [check.verdict for check in result.checks]
    counts = ", ".join(f"{verdicts.count(kind)} {kind}" for kind in sorted(set(verdicts)))
    return f"{result.part.name}: {counts or 'said nothing'}, {result.seconds:.0f} s"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _card() -> str:
    properties = torch.cuda.get_device_properties(0)
    return f"{properties.name}, {properties.total_memory / GB:.1f} GB"


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return "not installed"


def _output(words: list[str]) -> str:
    """The first line that a program prints; empty if it is not there or fails."""
    try:
        done = subprocess.run(words, cwd=Path(__file__).parent, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return ""
    return (done.stdout.strip().splitlines() or [""])[0]
