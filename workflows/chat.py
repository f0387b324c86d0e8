"""Talks to a registered model, a checkpoint or a base model.

    python workflows/chat.py models:/quickstart-assistant@champion
    python workflows/chat.py runs/quickstart/SEARCH/checkpoints/TRIAL/step_000042
    python workflows/chat.py smollm2-135m-instruct --message "Who are you?"

In a conversation, /reset starts a new one and /quit (or end of input) ends the program. Where the model calls tools, the
next lines are their results, one after another.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.errors import InputError
from components.experiment.spec import ChatFormatSpec
from components.visible import visible
from workflows.cli import Exit, add_format_arguments, exit_on_error, format_spec_of, quiet_libraries, show

if TYPE_CHECKING:
    from components.inference.chat_session import ChatSession
    from components.models.load_trained import LoadedModel


def main(argv: Sequence[str] | None = None) -> int:
    arguments = make_parser().parse_args(argv)
    quiet_libraries()
    from components.inference.chat_session import ChatSession
    from components.registry.load_by_name import load_by_name

    with exit_on_error():
        tools = _read_tools(arguments.tools)
        chat_format = format_spec_of(arguments)
        model = load_by_name(arguments.model, chat_format=chat_format, tracking=arguments.tracking_uri)
        _check_is_base(model, chat_format, arguments.model)
        session = ChatSession(
            model,
            system=arguments.system,
            tools=tools,
            max_new_tokens=arguments.max_new_tokens,
            temperature=arguments.temperature,
        )
    for stream in (sys.stdin, sys.stdout):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # people and models write what a terminal may not know
    if arguments.message is not None:
        with exit_on_error():
            send(session, arguments.message)
        return Exit.DONE
    return _converse(session)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Talk to a registered model, a checkpoint or a base model.")
    parser.add_argument("model", help="models:/NAME@ALIAS, models:/NAME/VERSION, a directory, a hub id")
    parser.add_argument("--message", help="one question; the answer is printed and that is all")
    parser.add_argument("--system", help="a system message before the conversation")
    parser.add_argument(
        "--tools", type=Path, help="a JSON file: the list of tools that it may call, as in training data"
    )
    parser.add_argument("--max-new-tokens", type=int, default=256)
    parser.add_argument("--temperature", type=float, default=0.0, help="0, the default, is greedy")
    add_format_arguments(parser, "of a base model; trained ones know theirs")
    parser.add_argument("--tracking-uri", help="of the registry; by default MLFLOW_TRACKING_URI, else mlflow.db here")
    return parser


def _check_is_base(model: LoadedModel, chat_format: ChatFormatSpec, name: str) -> None:
    """Raises InputError if a chat format is given for a model that was trained in another one."""
    if model.reference is not None and chat_format != ChatFormatSpec():
        raise InputError(f"{name}: it has the chat format that it was trained in; leave out the flags of base models")


def _read_tools(file: Path | None) -> list[dict[str, Any]]:
    if file is None:
        return []
    try:
        tools = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"--tools {file}: cannot be read: {error}") from None
    if not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        raise InputError(f"--tools {file}: must hold a list of objects")
    return tools


def send(session: ChatSession, text: str) -> None:
    """Prints the reply while it is generated."""
    pieces = session.send(text)
    if pieces is not None:
        for piece in pieces:
            show(piece, end="")
        show()


def _converse(session: ChatSession) -> int:
    """Reads questions from standard input; prompts only in a terminal."""
    interactive = sys.stdin.isatty()
    if interactive:
        show("/reset forgets the conversation, /quit ends it")
    while True:
        try:
            line = input(_prompt(session) if interactive else "").strip()
        except (EOFError, KeyboardInterrupt):
            return Exit.DONE
        match line:
            case "":
                continue
            case "/quit" | "/exit":
                return Exit.DONE
            case "/reset":
                session.reset()
                show("(forgotten)")
            case _:
                try:
                    send(session, line)
                except KeyboardInterrupt:
                    session.take_back()
                    show("\n(stopped, and forgotten)")
                except ValueError as error:
                    session.take_back()
                    show(f"(not answered, and forgotten: {error})", stderr=True)


def _prompt(session: ChatSession) -> str:
    pending = session.pending_calls
    return visible(f"result of {pending[0]}> ") if pending else "> "


if __name__ == "__main__":
    raise SystemExit(main())
