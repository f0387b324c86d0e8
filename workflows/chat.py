"""Talks to a registered model, a checkpoint or a base model.

    python workflows/chat.py models:/quickstart-assistant@champion
    python workflows/chat.py runs/quickstart/SEARCH/checkpoints/TRIAL/step_000042
    python workflows/chat.py smollm2-135m-instruct --message "Who are you?"

In a conversation, /reset forgets it and /quit (or end of input) ends it. Where the model calls tools, what is typed next
are their results, one after another.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.conversations.messages import Message
from components.conversations.openai_messages import openai_call
from workflows.cli import Exit, exit_on_error, quiet_libraries

if TYPE_CHECKING:
    from components.inference.generate import Reply
    from components.models.load_trained import LoadedModel


def main(argv: Sequence[str] | None = None) -> int:
    arguments = make_parser().parse_args(argv)
    quiet_libraries()
    from workflows.named import load_named

    with exit_on_error():
        tools = _tools(arguments.tools)
        loaded = load_named(arguments.model, chat_format=arguments.chat_format, tracking=arguments.tracking_uri)
    talk = Talk(loaded, arguments, tools)
    if arguments.message is not None:
        talk.ask(arguments.message)
        return Exit.DONE
    return _converse(talk)


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
    parser.add_argument("--chat-format", default="auto", help="of a base model; trained ones know theirs")
    parser.add_argument("--tracking-uri", help="of the registry; by default MLFLOW_TRACKING_URI, else mlflow.db here")
    return parser


class Talk:
    """One conversation so far."""

    def __init__(self, loaded: LoadedModel, arguments: argparse.Namespace, tools: list[dict[str, Any]]) -> None:
        self.loaded, self.arguments, self.tools = loaded, arguments, tools
        self.reset()

    @property
    def called(self) -> list[str]:
        """The functions whose results are waited for."""
        results = 0
        while results < len(self.messages) and self.messages[-1 - results].role == "tool":
            results += 1
        calls = self.messages[-1 - results].tool_calls if results < len(self.messages) else ()
        return [openai_call(call)[0] for call in calls][results:]

    def reset(self) -> None:
        system = self.arguments.system
        self.messages = [Message(role="system", content=system)] if system else []

    def ask(self, said: str) -> None:
        """Prints the answer as it is made. `said` is a question, or the result of a call that waits for one."""
        from components.inference.generate import stream_reply

        if waiting := self.called:
            self.messages.append(Message(role="tool", content=said, name=waiting[0]))
            if len(waiting) > 1:
                return
        else:
            self.messages.append(Message(role="user", content=said))
        pieces = stream_reply(
            self.loaded,
            self.messages,
            max_new_tokens=self.arguments.max_new_tokens,
            temperature=self.arguments.temperature,
            tools=self.tools,
        )
        self.messages.append(_printed(pieces).message)

    def take_back(self) -> None:
        """Forgets a question that was not answered to its end."""
        if self.messages and self.messages[-1].role in ("user", "tool"):
            self.messages.pop()


def _tools(file: Path | None) -> list[dict[str, Any]]:
    if file is None:
        return []
    try:
        tools = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"--tools {file}: cannot be read: {error}") from None
    if not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        raise ValueError(f"--tools {file}: must hold a list of objects")
    return tools


def _printed(pieces: Generator[str, None, Reply]) -> Reply:
    """Prints the pieces; returns the reply they make up."""
    while True:
        try:
            print(next(pieces), end="", flush=True)
        except StopIteration as ended:
            print()
            reply: Reply = ended.value
            return reply


def _converse(talk: Talk) -> int:
    """Question after question from standard input; prompts only where a person types."""
    by_hand = sys.stdin.isatty()
    if by_hand:
        print("/reset forgets the conversation, /quit ends it")
    while True:
        try:
            line = input(_asks(talk) if by_hand else "").strip()
        except (EOFError, KeyboardInterrupt):
            return Exit.DONE
        match line:
            case "":
                continue
            case "/quit" | "/exit":
                return Exit.DONE
            case "/reset":
                talk.reset()
                print("(forgotten)")
            case _:
                try:
                    talk.ask(line)
                except KeyboardInterrupt:
                    talk.take_back()
                    print("\n(stopped, and forgotten)")


def _asks(talk: Talk) -> str:
    called = talk.called
    return f"result of {called[0]}> " if called else "> "


if __name__ == "__main__":
    raise SystemExit(main())
