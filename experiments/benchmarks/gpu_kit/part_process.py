"""Runs one part, in a process of its own. Writes each check as soon as it is made.

python -m experiments.benchmarks.gpu_kit.part_process MODULE SETTINGS.json CHECKS.jsonl
"""

from __future__ import annotations

import sys
import traceback
from importlib import import_module
from pathlib import Path

from experiments.benchmarks.gpu_kit.checks import append, failed
from experiments.benchmarks.gpu_kit.settings import Settings


def main(module: str, settings_file: Path, checks_file: Path) -> None:
    try:
        for check in import_module(module).run(Settings.read(settings_file)):
            append(checks_file, check)
            print(f"{check.verdict:8}  {check.asked}: {check.seen}", flush=True)
    except Exception as error:  # noqa: BLE001 - whatever ends a part is what the table must say
        traceback.print_exc()
        append(checks_file, failed("the part ends without an error", line_of(error)))


def line_of(error: BaseException) -> str:
    """An error as one line of the table."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
