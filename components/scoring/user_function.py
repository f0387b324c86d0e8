"""Scores by a function of the user, named `module:function`.

    def tone(conversations, answers):
        '''How kind each answer is, 0 to 1.'''
        return [float("please" in answer) for answer in answers]

Both arguments are lists of one length. A conversation is a dict in OpenAI's form: "messages" up to the question, "tools",
"reference" (the text answered there in the data; None for probes), "expect", "source", and "answer", the whole message with
"tool_calls" and "stopped". An answer is the text. Returned is a number for each, or None where the function says nothing. A
number may depend on its own conversation only: workers score their shares apart.

The module is imported from the working directory of the program, then from sys.path. A Ray job has both in what was sent as
`--working-dir`.
"""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from components.conversations.messages import Message
from components.errors import InputError
from components.scoring.questions import Question
from components.scoring.reply import Reply

ScoreFunction = Callable[[list[dict[str, Any]], list[str]], Any]
SIGNATURE = "def function(conversations, answers): return [a number or None for each]"


def load_function(name: str, working_directory: str = "") -> ScoreFunction:
    """Imports `module:function`. Raises InputError if there is none.

    Args:
        working_directory: of the program that started the search, where this process can see it.
    """
    module_name, _, function_name = name.partition(":")
    directory = str(Path(working_directory).resolve())
    if Path(directory).is_dir() and directory not in sys.path:
        sys.path.insert(0, directory)  # for good: the module may import others when it is called
        importlib.invalidate_caches()
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # noqa: BLE001 - it runs the user's own code
        raise InputError(
            f"score {name}: module {module_name} cannot be imported ({type(error).__name__}: {error}); it is looked for in"
            f" {directory} and on PYTHONPATH"
        ) from None
    function = getattr(module, function_name, None)
    if not callable(function):
        where = getattr(module, "__file__", None) or module_name
        raise InputError(f"score {name}: {where} has no function {function_name}; write {SIGNATURE}")
    return function  # type: ignore[no-any-return]


def call_function(
    name: str, function: ScoreFunction, questions: Sequence[Question], replies: Sequence[Reply]
) -> list[float | None]:
    """Returns its number for each answer. Raises InputError if it fails, or returns something else."""
    if not questions:  # a worker without a share
        return []
    conversations = [_as_dict(question, reply) for question, reply in zip(questions, replies, strict=True)]
    try:
        returned = function(conversations, [reply.message.content for reply in replies])
    except Exception as error:
        raise InputError(f"score {name}: it raised {type(error).__name__}: {error}; write {SIGNATURE}") from error
    try:
        numbers = [None if value is None else float(value) for value in returned]
    except (TypeError, ValueError):
        raise InputError(f"score {name}: it returned {_shown(returned)}; write {SIGNATURE}") from None
    if len(numbers) != len(questions):
        raise InputError(
            f"score {name}: it returned {len(numbers)} numbers for {len(questions)} conversations; write {SIGNATURE}"
        )
    for number, question in zip(numbers, questions, strict=True):
        if number is not None and not math.isfinite(number):
            raise InputError(
                f"score {name}: it returned {number} for {question.source}; return a finite number, or None where it says"
                " nothing"
            )
    return numbers


def _shown(value: object) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text[:60]}{'...' if len(text) > 60 else ''}"


def _as_dict(question: Question, reply: Reply) -> dict[str, Any]:
    return {
        "messages": [_openai(message) for message in question.history],
        "tools": list(question.tools),
        "reference": None if question.reference is None else question.reference.content,
        "expect": question.expect,
        "source": question.source,
        "answer": {**_openai(reply.message), "stopped": reply.stopped},
    }


def _openai(message: Message) -> dict[str, Any]:
    keys = ("name", "tool_call_id", "reasoning_content")
    given = {key: value for key in keys if (value := getattr(message, key))}
    calls = {"tool_calls": list(message.tool_calls)} if message.tool_calls else {}
    return {"role": message.role, "content": message.content, **calls, **given}
