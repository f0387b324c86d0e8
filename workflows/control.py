"""Tells a running search what to do with one of its trials, from any machine that reaches its storage.

python workflows/control.py experiments/quickstart.yaml stop 3
python workflows/control.py experiments/quickstart.yaml extend 3 --by 50%
python workflows/control.py experiments/quickstart.yaml clone 3 --set optimizer.learning_rate=1e-4 --warm
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from components.errors import InputError
from components.experiment.load_experiment import load_experiment
from components.experiment.read_yaml import read_value
from components.records.commands import MAX_SHARE, CloneTrial, ExtendTrial, StopTrial, TrialCommand, command_of
from components.search.find import NEWEST
from components.search.send_command import TIMEOUT_SECONDS, send_command
from workflows.cli import Exit, exit_on_error, fail, show, show_json


def main(argv: Sequence[str] | None = None) -> int:
    arguments = make_parser().parse_args(argv)
    with exit_on_error():
        command = _command(arguments)
        experiment = load_experiment(arguments.experiment, arguments.set)
        reply = send_command(experiment, command, search_id=arguments.search, timeout_seconds=arguments.patience)
    if arguments.json:
        show_json(reply)
    if not reply.accepted:
        fail(f"refused: {reply.message}", Exit.BAD_INPUT)
    if not arguments.json:
        show(reply.message)
    return Exit.DONE


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Tell a running search what to do with one of its trials.")
    parser.add_argument("experiment", help="the YAML file the search was started with")
    parser.add_argument(
        "--set", action="append", default=[], metavar="a.b=VALUE", help="as it was given to tune.py (repeatable)"
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    stop, extend, clone = (
        verbs.add_parser(name, help=help, description=help)
        for name, help in (
            (
                "stop",
                "The trial finishes its step, is evaluated and ends; its best checkpoint takes part in the verdict.",
            ),
            ("extend", "The trial may train longer; from its next report on, on the longer schedule."),
            ("clone", "A new trial like it, with changes, runs before those that wait."),
        )
    )
    for verb in (stop, extend, clone):
        verb.add_argument("trial", help="its number on the leaderboard, or its id")
        verb.add_argument("--search", default=NEWEST, metavar="SEARCH_ID", help="by default the newest unfinished one")
        verb.add_argument(
            "--patience", type=float, default=TIMEOUT_SECONDS, metavar="SECONDS", help="how long to wait for the reply"
        )
        verb.add_argument("--json", action="store_true", help="the reply as one JSON line on stdout")
    longer = extend.add_mutually_exclusive_group(required=True)
    longer.add_argument("--by", metavar="SHARE", help="of its present budget, e.g. 50%%")
    longer.add_argument("--target-tokens", type=int, metavar="N", help="its whole new budget")
    clone.add_argument(
        "--set",
        dest="changes",
        action="append",
        default=[],
        metavar="a.b=VALUE",
        help="a value of the trial (repeatable)",
    )
    clone.add_argument("--warm", action="store_true", help="begin with the weights of its best checkpoint")
    return parser


def _command(arguments: argparse.Namespace) -> TrialCommand:
    """Raises InputError for what cannot be meant."""
    if arguments.verb == "stop":
        return command_of(StopTrial, trial=arguments.trial)
    if arguments.verb == "extend":
        share = None if arguments.by is None else _share(arguments.by)
        if arguments.target_tokens is not None and arguments.target_tokens < 1:
            raise InputError(f"--target-tokens {arguments.target_tokens}: give the whole new budget, above 0")
        return command_of(ExtendTrial, trial=arguments.trial, share=share, target_tokens=arguments.target_tokens)
    changes = dict(map(_change, arguments.changes))
    return command_of(CloneTrial, trial=arguments.trial, changes=changes, warm=arguments.warm)


def _share(text: str) -> float:
    """50% is 0.5, and so is 0.5."""
    number, percent = text.removesuffix("%"), text.endswith("%")
    try:
        share = float(number) / (100 if percent else 1)
    except ValueError:
        share = 0.0
    if not 0 < share <= MAX_SHARE:  # NaN is neither
        raise InputError(f"--by {text}: write it as a share of the present budget, e.g. 50%, up to {MAX_SHARE:g}")
    return share


def _change(text: str) -> tuple[str, Any]:
    path, equals, value = text.partition("=")
    if not equals or not all(path.split(".")):
        raise InputError(f"--set {text}: write it as key.subkey=value, e.g. optimizer.learning_rate=1e-4")
    return path, read_value(value)


if __name__ == "__main__":
    raise SystemExit(main())
