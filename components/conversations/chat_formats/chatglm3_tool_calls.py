"""Tool calls as ChatGLM3 writes them: the tool's name as metadata, the call as a line of Python in a code block."""

from __future__ import annotations

import ast
import json
import keyword
import re
from typing import Any

INTERPRETER = "interpreter"  # its content is code to run, not a call
BLOCK = re.compile(r"```python\n(.*)\n```", re.DOTALL)


def code_of(call: dict[str, Any]) -> tuple[str, str]:
    """(name, code) of an OpenAI tool call. Arguments that are no object stand as they are."""
    function = call.get("function", call)
    name, arguments = str(function["name"]), function.get("arguments", {})
    if not isinstance(arguments, dict):
        return name, arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    if name == INTERPRETER and set(arguments) == {"code"}:
        return name, _block(str(arguments["code"]))
    if all(key.isidentifier() and not keyword.iskeyword(key) for key in arguments):
        return name, _block(f"tool_call({', '.join(f'{key}={value!r}' for key, value in arguments.items())})")
    return name, _block(f"tool_call(**{arguments!r})")


def call_of(name: str, content: str) -> dict[str, Any]:
    """The OpenAI tool call of what a model wrote; its arguments are the text itself if code_of would write another."""
    for arguments in _arguments(name, content):
        if not _is_json(arguments):
            continue
        call = {"type": "function", "function": {"name": name, "arguments": arguments}}
        if code_of(call) == (name, content):
            return call
    return {"type": "function", "function": {"name": name, "arguments": content}}


def _arguments(name: str, content: str) -> list[dict[str, Any]]:
    """Literal arguments only: nothing a model writes is run."""
    block = BLOCK.fullmatch(content)
    if block is None:
        return []
    if name == INTERPRETER:
        return [{"code": block[1]}]
    try:
        call = ast.parse(block[1], mode="eval").body
        if not (isinstance(call, ast.Call) and not call.args):
            return []
        arguments: dict[str, Any] = {}
        for given in call.keywords:
            value = ast.literal_eval(given.value)
            arguments |= {given.arg: value} if given.arg is not None else value
    except (SyntaxError, ValueError, TypeError):
        return []
    return [arguments]


def _is_json(arguments: dict[str, Any]) -> bool:
    """Python has literals that JSON, and so OpenAI's API, has not: sets, tuples, keys that are numbers."""
    try:
        text = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
        text.encode()
    except (TypeError, ValueError):
        return False
    return bool(json.loads(text) == arguments)


def _block(code: str) -> str:
    return f"```python\n{code}\n```"
