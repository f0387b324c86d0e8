"""Arguments of a chat template as its defaults: so every program that renders it uses them, with or without Turnwise."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import jinja2
from jinja2 import meta

from components.conversations.chat_formats.template_date import parse_template
from components.errors import InputError

GIVEN_BY_CALLERS = ("messages", "tools", "documents", "add_generation_prompt", "continue_final_message")


def with_arguments(template: str, arguments: Mapping[str, Any], name: str) -> str:
    """Returns the template with these defaults, each on a line of its own, which the environment removes.

    A template that begins with them, as a package has it, is returned unchanged.

    Raises InputError for an argument that the template does not read: it would change nothing.
    """
    if not arguments:
        return template
    read = arguments_of(template, name)
    for key, value in arguments.items():
        if key in GIVEN_BY_CALLERS:
            raise InputError(f"chat_template_arguments.{key}: every conversation brings its own; leave it out")
        if key not in read:
            raise InputError(
                f"chat_template_arguments.{key}={json.dumps(value)}: the chat template does not read it; it reads"
                f" {', '.join(sorted(read)) or 'none'}"
            )
    lines = "".join(
        f"{{% set {key} = {key} if {key} is defined else {_literal(value)} %}}\n" for key, value in arguments.items()
    )
    return template if template.startswith(lines) else lines + template


def arguments_of(template: str, name: str) -> set[str]:
    """Returns the names that a template reads and nobody gives it but by arguments."""
    parsed = parse_template(template, name)
    return {
        key
        for key in meta.find_undeclared_variables(parsed)
        if key not in (*GIVEN_BY_CALLERS, *jinja2.defaults.DEFAULT_NAMESPACE)
        and not key.endswith("_token")
        and key not in ("raise_exception", "strftime_now")
    }


def _literal(value: Any) -> str:
    """Returns a JSON value as Jinja writes it."""
    if value is None:
        return "none"
    if isinstance(value, list):
        return f"[{', '.join(map(_literal, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{json.dumps(key)}: {_literal(item)}' for key, item in value.items())}}}"
    return json.dumps(value, ensure_ascii=False)
