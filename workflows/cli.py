"""What all entry points share: arguments, exit statuses, and messages about errors."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import shlex
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from enum import IntEnum
from pathlib import Path
from typing import NoReturn

from pydantic import BaseModel, JsonValue

from components.closed_pipe import ends_without_reader
from components.cluster.capacity.cluster_capacity import InsufficientCapacityError
from components.errors import InputError, TakenOverError, TrackingError, TurnwiseError, VerificationError, message_of
from components.experiment.read_yaml import read_value
from components.experiment.spec import ChatFormatSpec
from components.reports.json_line import json_line
from components.search.find import NEWEST
from components.search.send_command import NoReplyError
from components.storage.retry import StorageError
from components.storage.uri import without_secrets
from components.visible import VisibleConsole, visible, visible_json

WIDTH_OF_LOGS = 140
COMMAND = "turnwise"  # of the wheel: [project.scripts] in pyproject.toml


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


# The status of a program that an error ends, by the first class that fits.
STATUS_OF_ERROR: dict[type[Exception], Exit] = {
    InsufficientCapacityError: Exit.NO_ROOM,
    TrackingError: Exit.TRACKING_AWAY,
    VerificationError: Exit.NOT_PROVEN,
    NoReplyError: Exit.NO_REPLY,
    TakenOverError: Exit.INTERRUPTED,
    StorageError: Exit.STORAGE_AWAY,
    TurnwiseError: Exit.BAD_INPUT,
    ValueError: Exit.BAD_INPUT,
    OSError: Exit.BAD_INPUT,
}


class Terminated(KeyboardInterrupt):
    """SIGTERM came: the program ends as after Ctrl-C, with another exit status."""


@contextlib.contextmanager
def raise_on_sigterm() -> Iterator[None]:
    """Inside, SIGTERM raises Terminated, so that `finally` blocks run, as after Ctrl-C."""

    def terminated(*_: object) -> NoReturn:
        raise Terminated

    before = signal.signal(signal.SIGTERM, terminated)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def exit_on_error(*kinds: type[Exception]) -> Iterator[None]:
    """Inside, an error of these kinds, by default all that are meant for users, ends the program with its message."""
    expected = kinds or tuple(STATUS_OF_ERROR)
    try:
        yield
    except expected as error:
        fail(message_of(error), status_of(error))


def status_of(error: Exception) -> Exit:
    return next((status for kind, status in STATUS_OF_ERROR.items() if isinstance(error, kind)), Exit.BAD_INPUT)


def fail(message: str, status: Exit) -> NoReturn:
    """Ends the program: the message on stderr, and the status."""
    show(without_secrets(message), stderr=True)
    raise SystemExit(int(status))


def show(text: object = "", *, end: str = "\n", stderr: bool = False) -> None:
    """Prints a text of any origin: what would act or hide is an escape. Else only a console of make_console() prints."""
    with ends_without_reader():
        print(visible(str(text)), end=end, file=sys.stderr if stderr else sys.stdout, flush=True)


def show_json(result: object) -> None:
    """Prints JSON on one line, in which nothing acts on a terminal."""
    line = result.model_dump_json() if isinstance(result, BaseModel) else json_line(result)
    with ends_without_reader():
        print(visible_json(line), flush=True)


def quiet_libraries() -> None:
    """Silences what libraries say to their developers. Called before they are imported."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # transformers' own, too: bars fill a log
    for noisy in ("bitsandbytes", "mlflow", "alembic"):
        logging.getLogger(noisy).setLevel(logging.ERROR)


def make_console(*, stderr: bool = False) -> VisibleConsole:
    """Returns a console whose lines may be long where there is no terminal: 80 columns would break tables in a job's log."""
    console = VisibleConsole(stderr=stderr)
    if not console.is_terminal:
        console.width = WIDTH_OF_LOGS
    return console


def add_format_arguments(parser: argparse.ArgumentParser, of: str) -> None:
    """--chat-format, --chat-template, --chat-template-argument, --prepend-system; `of` says which model they are for."""
    parser.add_argument("--chat-format", default="auto", metavar="NAME", help=f"{of}: auto, template, chatml, ...")
    parser.add_argument("--chat-template", metavar="NAME", help=f"{of}: one of its tokenizer's templates (tool_use)")
    parser.add_argument(
        "--chat-template-argument",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help=f"{of}: as chat_template_arguments, e.g. enable_thinking=false (repeatable)",
    )
    parser.add_argument("--prepend-system", action="store_true", help=f"{of}: as data.system: prepend")


def format_spec_of(arguments: argparse.Namespace) -> ChatFormatSpec:
    """Returns what the flags of add_format_arguments say. Raises InputError for an argument that is no KEY=VALUE."""
    return ChatFormatSpec(
        name=arguments.chat_format,
        template=arguments.chat_template,
        arguments=dict(map(_template_argument, arguments.chat_template_argument)),
        system="prepend" if arguments.prepend_system else "native",
    )


def _template_argument(text: str) -> tuple[str, JsonValue]:
    key, found, value = text.partition("=")
    if not (key.isidentifier() and found):
        raise InputError(f"--chat-template-argument {text}: write it as key=value, e.g. enable_thinking=false")
    return key, read_value(value)


def add_experiment_file(parser: argparse.ArgumentParser) -> None:
    """EXPERIMENT, --set."""
    parser.add_argument("experiment", help="a YAML file, e.g. experiments/quickstart.yaml")
    parser.add_argument(
        "--set", action="append", default=[], metavar="a.b=VALUE", help="override a value of the file (repeatable)"
    )


def add_experiment_arguments(parser: argparse.ArgumentParser) -> None:
    """EXPERIMENT, --set, --new, --resume, --replace, --json. Without --new and --resume, what is unfinished goes on."""
    add_experiment_file(parser)
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--new", action="store_true", help="begin a new search, even if one of this experiment is unfinished"
    )
    which.add_argument(
        "--resume",
        nargs="?",
        const=NEWEST,
        metavar="SEARCH_ID",
        help="go on with this search and the data it began with, by default the newest unfinished one",
    )
    parser.add_argument(
        "--replace",
        metavar="REASON",
        help="let the winner replace an incumbent that cannot be compared, for this reason",
    )
    parser.add_argument("--json", action="store_true", help="the result as one JSON line on stdout, the rest on stderr")


def python() -> str:
    """Returns this Python as a person would type it: relative if it is below the working directory."""
    executable = Path(sys.executable)
    return str(executable.relative_to(Path.cwd())) if executable.is_relative_to(Path.cwd()) else "python"


def program(name: str) -> str:
    """Returns how the program `name` is started: by the command of the wheel if this one was, else as a script."""
    if sys.argv[0].startswith(f"{COMMAND} "):
        return f"{COMMAND} {name}"
    return f"{python()} workflows/{name}.py"


def command_line(name: str, argv: Sequence[str] | None) -> str:
    """Returns the command line that called the program `name`, without secrets: reports and messages have it."""
    return without_secrets(f"{program(name)} {shlex.join(sys.argv[1:] if argv is None else argv)}")
