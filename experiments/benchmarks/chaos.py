"""Searches under fire: processes are killed, servers go away and disks fill up, and what that cost is counted.

One search runs undisturbed, then the same one with the faults, each at a random moment once the search has recovered from
the one before; both against one real MLflow server. A driver that dies is started again by the same command.

python experiments/benchmarks/chaos.py --faults 30 --seed 0 --write experiments/benchmarks/chaos.md
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import fields
from datetime import date
from pathlib import Path

import ray
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # where `experiments`, `tests` and `components` lie

from experiments.benchmarks.chaos_kit.account import Account
from experiments.benchmarks.chaos_kit.disturbed_search import Disturbed
from experiments.benchmarks.chaos_kit.faults import Fault
from experiments.benchmarks.chaos_kit.plan import Plan, account_for, drawn


def costs(disturbed: Disturbed) -> Iterator[str]:
    for kind in Fault:
        if struck := [each for each in disturbed.struck if each.fault is kind]:
            seconds = [each.seconds for each in struck if each.seconds is not None]
            lost = f"{statistics.median(seconds):.0f} | {max(seconds):.0f}" if seconds else "- | -"
            yield f"| {kind} | {len(struck)} | {lost} |"


def page(arguments: argparse.Namespace, disturbed: Disturbed, account: Account, load: float) -> str:
    """load: the machine's load average before the run."""
    stored = ", its storage on a real S3 server" if arguments.object_store else ""
    counts = [f"| {each.name.replace('_', ' ')} | {getattr(account, each.name)} |" for each in fields(account)]
    return "\n".join(
        [
            "# A search under fire",
            "",
            f"{len(disturbed.struck)} faults in one search of {arguments.trials} trials with {arguments.evaluations} reports"
            f" each ({arguments.sampler} sampler), a random two-layer Llama, LoRA and full fine-tuning on 2 CPUs, with a real"
            f" MLflow server and the model registry{stored}; seed {arguments.seed}. Each fault came at a random moment after"
            f" the search had recovered from the one before. {len(disturbed.statuses)} drivers in all, each begun by the same"
            " command.",
            "",
            "| fault | times | seconds lost, median | most |",
            "|---|---|---|---|",
            *costs(disturbed),
            "",
            "Seconds lost: how long the trial that lost most gave no report, beyond the usual time between two. So steps that"
            " were repeated are in it, and a driver's starts of the program, of Ray and of the workers.",
            "",
            "Against the same search without faults:",
            "",
            "| what | count |",
            "|---|---|",
            *counts,
            "",
            f"{date.today()}, {os.cpu_count()} cores ({platform.machine()}), load {load:.1f} before, no GPU used; ray"
            f" {ray.__version__}, torch {torch.__version__}.",
            "",
            f"Made by `python {shlex.join(sys.argv)}`.",
        ]
    )  # fmt: skip


def parsed(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--faults", type=int, default=30, help="how many (default: 30)")
    parser.add_argument(
        "--kinds",
        nargs="+",
        choices=[kind.name.lower() for kind in Fault],
        help="which (default: all there is room for)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of their order, moments and victims (default: 0)")
    parser.add_argument("--trials", type=int, default=8, help="of the search (default: 8)")
    parser.add_argument("--epochs", type=float, default=480.0, help="of every trial (default: 480)")
    parser.add_argument("--evaluations", type=int, default=240, help="reports of every trial (default: 240)")
    parser.add_argument("--sampler", default="random", choices=("random", "tpe"), help="(default: random)")
    parser.add_argument(
        "--small-disk", type=Path, help="a small file system of its own for the search, which may be filled"
    )
    parser.add_argument("--object-store", action="store_true", help="the searches' storage lies on a real S3 server")
    parser.add_argument("--timeout", type=float, default=7200.0, help="seconds after which to give up (default: 7200)")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the table there, too")
    arguments = parser.parse_args(words)
    if arguments.small_disk is None and Fault.DISK_FULL.name.lower() in (arguments.kinds or ()):
        parser.error("--kinds disk_full needs --small-disk: a file system of its own that may be filled")
    if arguments.object_store and arguments.small_disk is not None:
        parser.error("--object-store and --small-disk: the storage lies on one of them")
    if not arguments.object_store and Fault.STORE_STOPPED.name.lower() in (arguments.kinds or ()):
        parser.error("--kinds store_stopped needs --object-store: the server that is stopped")
    return arguments


def kinds_of(arguments: argparse.Namespace) -> list[Fault]:
    """Only a disk of its own may be filled, and a server only where there is one be stopped."""
    if arguments.kinds:
        return [Fault[name.upper()] for name in arguments.kinds]
    there = {Fault.DISK_FULL: arguments.small_disk is not None, Fault.STORE_STOPPED: arguments.object_store}
    return [kind for kind in Fault if there.get(kind, True)]


def main() -> int:
    arguments, load = parsed(), os.getloadavg()[0]
    plan = Plan(
        faults=drawn(arguments.seed, arguments.faults, kinds_of(arguments)),
        seed=arguments.seed,
        trials=arguments.trials,
        epochs=arguments.epochs,
        evaluations=arguments.evaluations,
        sampler=arguments.sampler,
        small_disk=arguments.small_disk,
        object_store=arguments.object_store,
        seconds=arguments.timeout / 2,
    )
    with tempfile.TemporaryDirectory(prefix="chaos-") as name:
        disturbed, account = account_for(plan, Path(name))
    text = page(arguments, disturbed, account, load)
    print(text)
    print(f"statuses of the drivers: {disturbed.statuses}", file=sys.stderr)
    for process in disturbed.left_running:
        print(f"left running: {process}", file=sys.stderr)
    if arguments.write:
        arguments.write.write_text(text + "\n", encoding="utf-8")
    if len(disturbed.struck) < arguments.faults:
        print("the search ended before the last fault: it needs more --epochs and --evaluations", file=sys.stderr)
        return 1
    return 0 if account.is_clean else 1


if __name__ == "__main__":
    raise SystemExit(main())
