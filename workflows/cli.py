"""What all entry points share: their arguments, how they end, and how they say what is wrong."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import math
import os
import shlex
import signal
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from enum import IntEnum
from pathlib import Path
from typing import NoReturn

from rich.console import Console

from components.storage.retry import StorageError

NEWEST = "newest"
REGISTERED = "models:/"  # how MLflow names what is in its registry
WIDTH_OF_LOGS = 140


class Exit(IntEnum):
    """Exit statuses. 1 is left to Python: a traceback, which is a fault of ours."""

    DONE = 0
    BAD_INPUT = 2  # argparse's own, too
    NO_ROOM = 3
    NO_TRIAL_SUCCEEDED = 4
    NOT_PROVEN = 5
    TRACKING_AWAY = 6
    NO_REPLY = 7
    STORAGE_AWAY = 8
    NOT_FINITE = 9  # a loss that is infinite or not a number
    INTERRUPTED = 130  # Ctrl-C
    TERMINATED = 143  # SIGTERM, e.g. by `ray job stop`


class Terminated(KeyboardInterrupt):
    """SIGTERM came: the same end as by Ctrl-C, but for the exit status."""


@contextlib.contextmanager
def raise_on_sigterm() -> Iterator[None]:
    """Inside, SIGTERM raises Terminated: what must be put in order is put in order, as after Ctrl-C."""

    def terminated(*_: object) -> NoReturn:
        raise Terminated

    before = signal.signal(signal.SIGTERM, terminated)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def exit_on_error(*kinds: type[Exception], status: Exit = Exit.BAD_INPUT) -> Iterator[None]:
    """Inside, an error of these kinds (by default bad input, and storage that refuses) ends the program with its message."""
    expected = kinds or (ValueError, StorageError)
    try:
        yield
    except expected as error:
        fail(str(error), status)


def fail(message: str, status: Exit) -> NoReturn:
    """Ends the program: the message on stderr, and the status."""
    print(message, file=sys.stderr)
    raise SystemExit(int(status))


def json_line(result: object) -> str:
    """On one line. JSON knows no number that is not finite: null stands for it."""
    return json.dumps(_finite(result), ensure_ascii=False, allow_nan=False)


def _finite(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def quiet_libraries() -> None:
    """What libraries say to their developers is kept from our users. Called before they are imported."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # transformers' own, too: a log is no place for bars
    for noisy in ("bitsandbytes", "mlflow", "alembic"):
        logging.getLogger(noisy).setLevel(logging.ERROR)


def make_console(*, stderr: bool = False) -> Console:
    """Where there is no terminal (a job's log, a file), lines may be long: 80 columns would break tables apart."""
    # What people and models have written is shown as it is: "[/INST]" is no markup of ours.
    console = Console(stderr=stderr, markup=False, highlight=False)
    if not console.is_terminal:
        console.width = WIDTH_OF_LOGS
    return console


def add_experiment_file(parser: argparse.ArgumentParser) -> None:
    """EXPERIMENT, --set."""
    parser.add_argument("experiment", help="a YAML file, e.g. experiments/quickstart.yaml")
    parser.add_argument(
        "--set", action="append", default=[], metavar="a.b=VALUE", help="override a value of the file (repeatable)"
    )


def add_experiment_arguments(parser: argparse.ArgumentParser) -> None:
    """EXPERIMENT, --set, --resume, --json."""
    add_experiment_file(parser)
    parser.add_argument(
        "--resume",
        nargs="?",
        const=NEWEST,
        metavar="SEARCH_ID",
        help="go on where this experiment was interrupted, by default with its newest search",
    )
    parser.add_argument("--json", action="store_true", help="the result as one JSON line on stdout, the rest on stderr")


def python() -> str:
    """This Python as a person would type it: relative where it lies below the working directory."""
    executable = Path(sys.executable)
    return str(executable.relative_to(Path.cwd())) if executable.is_relative_to(Path.cwd()) else "python"


def command_line(script: str, argv: Sequence[str] | None) -> str:
    """How this program was called."""
    return shlex.join([python(), script, *(sys.argv[1:] if argv is None else argv)])
