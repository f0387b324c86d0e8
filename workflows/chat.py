"""Talks to a registered model, a checkpoint or a base model.

    python workflows/chat.py models:/quickstart-assistant@champion
    python workflows/chat.py runs/quickstart/SEARCH/checkpoints/TRIAL/step_000042
    python workflows/chat.py smollm2-135m-instruct --message "Who are you?"

In a conversation, /reset forgets it and /quit (or end of input) ends it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING

from components.conversations.messages import Message
from workflows.cli import Exit, explained, quiet_libraries

if TYPE_CHECKING:
    from components.models.trained import LoadedModel


def main(argv: Sequence[str] | None = None) -> int:
    arguments = make_parser().parse_args(argv)
    quiet_libraries()
    from workflows.named import load_named

    with explained():
        loaded = load_named(arguments.model, chat_format=arguments.chat_format, tracking=arguments.tracking_uri)
    talk = Talk(loaded, arguments)
    if arguments.message is not None:
        talk.ask(arguments.message)
        return Exit.DONE
    return _converse(talk)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Talk to a registered model, a checkpoint or a base model.")
    parser.add_argument("model", help="models:/NAME@ALIAS, models:/NAME/VERSION, a directory, a hub id")
    parser.add_argument("--message", help="one question; the answer is printed and that is all")
    parser.add_argument("--system", help="a system message before the conversation")
    parser.add_argument("--max-new-tokens", type=int, default=256)
    parser.add_argument("--temperature", type=float, default=0.0, help="0, the default, is greedy")
    parser.add_argument("--chat-format", default="auto", help="of a base model; trained ones know theirs")
    parser.add_argument("--tracking-uri", help="of the registry; by default MLFLOW_TRACKING_URI, else mlflow.db here")
    return parser


class Talk:
    """One conversation so far."""

    def __init__(self, loaded: LoadedModel, arguments: argparse.Namespace) -> None:
        self.loaded, self.arguments = loaded, arguments
        self.reset()

    def reset(self) -> None:
        system = self.arguments.system
        self.messages = [Message(role="system", content=system)] if system else []

    def ask(self, question: str) -> None:
        """Prints the answer as it is made."""
        from components.training.generate import stream_reply

        self.messages.append(Message(role="user", content=question))
        pieces = stream_reply(
            self.loaded,
            self.messages,
            max_new_tokens=self.arguments.max_new_tokens,
            temperature=self.arguments.temperature,
        )
        self.messages.append(_printed(pieces))

    def take_back(self) -> None:
        """Forgets a question that was not answered to its end."""
        if self.messages and self.messages[-1].role == "user":
            self.messages.pop()


def _printed(pieces: Generator[str, None, Message]) -> Message:
    """Prints the pieces; returns the message they make up."""
    while True:
        try:
            print(next(pieces), end="", flush=True)
        except StopIteration as ended:
            print()
            message: Message = ended.value
            return message


def _converse(talk: Talk) -> int:
    """Question after question from standard input; prompts only where a person types."""
    by_hand = sys.stdin.isatty()
    if by_hand:
        print("/reset forgets the conversation, /quit ends it")
    while True:
        try:
            line = input("> " if by_hand else "").strip()
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


if __name__ == "__main__":
    raise SystemExit(main())
