"""Tool calls in ChatGLM3's form: the tool's name as metadata, the call as a line of Python in a code block."""

from __future__ import annotations

import ast
import json
import keyword
import re
from typing import Any

INTERPRETER = "interpreter"  # its content is code to run, not a call
BLOCK = re.compile(r"```python\n(.*)\n```", re.DOTALL)


def code_of(call: dict[str, Any]) -> tuple[str, str]:
    """Returns (name, code) of an OpenAI tool call. Arguments that are not an object are used unchanged."""
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
    """Parses a model's output as an OpenAI tool call. Its arguments are the text itself if code_of would not reproduce it."""
    for arguments in _arguments(name, content):
        if not _is_json(arguments):
            continue
        call = {"type": "function", "function": {"name": name, "arguments": arguments}}
        if code_of(call) == (name, content):
            return call
    return {"type": "function", "function": {"name": name, "arguments": content}}


def _arguments(name: str, content: str) -> list[dict[str, Any]]:
    """Parses literal arguments only: a model's output is never executed."""
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
    """Whether JSON can represent the arguments. Python literals may be sets, tuples or mappings with numbers as keys."""
    try:
        text = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
        text.encode()
    except (TypeError, ValueError):
        return False
    return bool(json.loads(text) == arguments)


def _block(code: str) -> str:
    return f"```python\n{code}\n```"
