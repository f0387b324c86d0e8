"""A search of 1,000 trials, without its training: reading its journal, its live table, its page, its record in MLflow.

The journal is written by the journal's own code, and each part is measured in a process of its own.

    python experiments/benchmarks/thousand_trials.py --write experiments/benchmarks/thousand_trials.md

--keep FILE keeps the numbers; --before FILE takes those that another version has kept, and shows both.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # where `experiments`, `tests` and `components` lie

from components.records.journal import JOURNAL, Journal
from components.storage.open_folder import folder_at
from experiments.benchmarks.thousand_kit.large_search import REPORTS, STEPS, events
from experiments.benchmarks.thousand_kit.measures import MEASURES, Numbers

MIRRORED = ("mirroring", "mirroring_into_a_file")


def write_journal(folder: Path, trials: int) -> int:
    """Returns its bytes."""
    journal = Journal(folder_at(folder))
    for event in events(trials):
        journal.append(event)
    journal.close()
    return (folder / JOURNAL).stat().st_size


def measured(name: str, folder: Path) -> Numbers:
    """In a fresh process."""
    command = [sys.executable, __file__, "--measure", name, "--journal", str(folder)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    numbers: Numbers = json.loads(done.stdout.splitlines()[-1])
    return numbers


def rows(results: Mapping[str, Numbers], before: Mapping[str, Numbers]) -> Iterator[str]:
    for name, numbers in results.items():
        for what, number in numbers.items():
            earlier = before.get(name, {}).get(what)
            shown = "" if not before else f" {'-' if earlier is None else f'{earlier:,.4g}'} |"
            yield f"| {name.replace('_', ' ')} | {what} |{shown} {number:,.4g} |"


def page(arguments: argparse.Namespace, size: int, results: Mapping[str, Numbers], load: float) -> str:
    before = json.loads(arguments.before.read_text(encoding="utf-8")) if arguments.before else {}
    columns = "| part | what |" + (" before | now |" if before else " now |")
    return "\n".join(
        [
            "# A search of a thousand trials",
            "",
            f"The journal of {arguments.trials:,} trials x {REPORTS} reports x {STEPS} steps, of which a fifth of the trials"
            f" ended half-way: {size / 1e6:.0f} MB. Nothing was trained. Seconds are of the processor for what one process"
            " does, and of the clock where another one or the disk is waited for (mirroring, proof, fsync). Memory is beyond"
            " that at the start.",
            "",
            f"MLflow was filled with the first {arguments.mirrored} trials; a thousand take"
            f" {1000 / arguments.mirrored:.0f} times as long if the database stays as fast.",
            "",
            columns,
            "|---|---|" + "---|" * (columns.count("|") - 3),
            *rows(results, before),
            "",
            "driver: for one report, with the histories of all trials before it, the mean over the second half of the search;"
            " `journal` is without the wait for the disk.",
            "",
            f"{date.today()}, {os.cpu_count()} cores ({platform.machine()}), load {load:.1f} before, no GPU used; mlflow"
            f" {version('mlflow')}, pydantic {version('pydantic')}.",
            "",
            f"Made by `python {shlex.join(sys.argv)}`.",
        ]
    )  # fmt: skip


def parsed(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--trials", type=int, default=1000, help="of the search (default: 1000)")
    parser.add_argument("--mirrored", type=int, default=100, help="trials of MLflow's part (default: 100)")
    parser.add_argument("--parts", nargs="+", choices=MEASURES, default=list(MEASURES), help="(default: all)")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the table there, too")
    parser.add_argument("--keep", type=Path, metavar="FILE", help="write the numbers there, as JSON")
    parser.add_argument("--before", type=Path, metavar="FILE", help="numbers to show beside these")
    parser.add_argument("--measure", choices=MEASURES, help=argparse.SUPPRESS)
    parser.add_argument("--journal", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(words)


def main() -> int:
    arguments, load = parsed(), os.getloadavg()[0]
    if arguments.measure:
        print(json.dumps(MEASURES[arguments.measure](arguments.journal)))
        return 0
    with tempfile.TemporaryDirectory(prefix="thousand-") as name:
        whole, part = Path(name) / "whole", Path(name) / "part"
        size = write_journal(whole, arguments.trials)
        write_journal(part, arguments.mirrored)
        results = {}
        for each in arguments.parts:
            results[each] = measured(each, part if each in MIRRORED else whole)
            print(each, results[each], file=sys.stderr)
    if arguments.keep:
        arguments.keep.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    text = page(arguments, size, results, load)
    print(text)
    if arguments.write:
        arguments.write.write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
