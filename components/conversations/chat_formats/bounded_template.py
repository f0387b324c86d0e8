"""Renders a chat template in a process of its own (template_process.py), whose time and memory are bounded."""

from __future__ import annotations

import atexit
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from components.conversations import template_process
from components.conversations.template_process import read_message, write_message
from components.errors import TurnwiseError

MAX_SECONDS = 20  # of processor time, for one text


class TemplateRefusedError(ValueError):
    """What a template says of messages that it does not take, or what fails in it."""


class UnboundedTemplateError(TurnwiseError):
    """A template that does not end, or takes or writes without bound.

    It is no InputError: those are caught where one conversation may be refused, and this template would cost as much again
    with each of the others.
    """


class TemplateCall(NamedTuple):
    """`ask` ends the text at the start of the assistant's next turn."""

    messages: Sequence[dict[str, Any]]
    tools: Sequence[Any]
    ask: bool


def render_template(
    template: str, messages: Sequence[dict[str, Any]], tools: Sequence[Any], *, ask: bool, special: Mapping[str, Any]
) -> str:
    """Returns the text, as transformers' apply_chat_template does; `special` are the tokenizer's special tokens by name.

    Raises:
        TemplateRefusedError: the template refuses the messages, or fails.
        UnboundedTemplateError: its message goes on behind "the chat template ".
    """
    try:
        content = pickle.dumps([_request(template, special, TemplateCall(messages, tools, ask))])
    except RecursionError:
        raise TemplateRefusedError("nested too deeply") from None
    (reply,) = _PROCESS.ask(content)
    if "unbounded" in reply:
        raise UnboundedTemplateError(reply["unbounded"])
    if "refused" in reply:
        raise TemplateRefusedError(reply["refused"])
    return reply["text"]


def render_ahead(template: str, calls: Sequence[TemplateCall], special: Mapping[str, Any]) -> list[str | None]:
    """Returns the texts of many calls, which take one journey to the process; None for those to be asked for again.

    render_template says then what is wrong with them. If one of them ends the process, or cannot be sent, all are None.
    """
    try:
        replies = _PROCESS.ask(pickle.dumps([_request(template, special, call) for call in calls]))
    except (RecursionError, TemplateRefusedError):
        return [None] * len(calls)
    return [reply.get("text") for reply in replies] if len(replies) == len(calls) else [None] * len(calls)


def _request(template: str, special: Mapping[str, Any], call: TemplateCall) -> dict[str, Any]:
    messages = [_without_nulls(each) if None in each.values() else each for each in call.messages]
    return {
        "conversations": [messages],
        "tools": list(call.tools) or None,
        "chat_template": template,
        "add_generation_prompt": call.ask,
        **special,
    }


def _without_nulls(message: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in message.items() if value is not None}


class _TemplateProcess:
    """The process for all templates of this one. It is started when it is needed, and ends with this process."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.process: subprocess.Popen[bytes] | None = None
        self.owner = 0

    def ask(self, request: bytes) -> list[dict[str, str]]:
        with self.lock:
            for _ in range(2):  # it may have been killed while nobody asked
                try:
                    return self._asked(self._started(), request)
                except OSError:
                    self._forget()
            raise TemplateRefusedError("the process that renders it was ended twice from outside")

    def _asked(self, process: subprocess.Popen[bytes], request: bytes) -> list[dict[str, str]]:
        """Returns a reply for each text; a single one if the process had to be stopped.

        Raises OSError if it has ended, but not by its bounds.
        """
        assert process.stdin is not None
        assert process.stdout is not None
        write_message(process.stdin, request)
        reply = read_message(process.stdout)
        if reply is not None:
            return list(json.loads(reply))
        status = process.wait()
        self._forget()
        if status == -signal.SIGPROF:
            return [{"unbounded": f"does not end: it was stopped after {MAX_SECONDS} s of computing"}]
        raise OSError(f"ended with status {status}")

    def _started(self) -> subprocess.Popen[bytes]:
        if self.process is None or self.owner != os.getpid():  # a fork's pipes are those of its parent
            command = [sys.executable, "-P", template_process.__file__, str(MAX_SECONDS)]
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
            self.owner = os.getpid()
        return self.process

    def _forget(self) -> None:
        process, self.process = self.process, None
        if process is not None and self.owner == os.getpid():
            process.kill()
            process.communicate()

    def close(self) -> None:
        with self.lock:
            self._forget()


_PROCESS = _TemplateProcess()
atexit.register(_PROCESS.close)
