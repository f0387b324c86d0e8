"""Chat templates that would render one conversation otherwise on another day, made to render it alike for ever."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Iterator

import jinja2
from jinja2 import nodes

TODAY = datetime.datetime(2024, 7, 26)  # the date that Llama 3's templates write where they are told none
CLOCK = "strftime_now"
RANDOM = ("random", "lipsum")
GENERATION = re.compile(r"\{%-?\s*(end)?generation\s*-?%\}")  # transformers' own tags, which change no text


def pinned(template: str, name: str) -> str:
    """The template with TODAY in place of its clock, wherever it is rendered; others stay as they are.

    Raises ValueError if it draws lots, or asks for the date in a form that is only known while it is rendered.
    """
    if CLOCK not in template and not any(word in template for word in RANDOM):
        return template
    parsed = _parsed(template, name)
    if lots := _lots(parsed):
        raise ValueError(
            f"chat_format {name}: the chat template draws lots ({lots}), so it renders a conversation otherwise each time;"
            " chat_format: chatml does not"
        )
    forms = [_form(call, name) for call in _calls(parsed)]
    told = [
        test for test in parsed.find_all(nodes.Test) if isinstance(test.node, nodes.Name) and test.node.name == CLOCK
    ]
    if sum(node.name == CLOCK for node in parsed.find_all(nodes.Name)) > len(forms) + len(told):
        raise _unknown_form(name)  # under another name
    return _clock(forms) + template if forms else template


def _calls(parsed: nodes.Template) -> Iterator[nodes.Call]:
    for call in parsed.find_all(nodes.Call):
        if isinstance(call.node, nodes.Name) and call.node.name == CLOCK:
            yield call


def _clock(forms: list[str]) -> str:
    """On a line of its own, which the environment of chat templates takes away with it."""
    dates = json.dumps({form: TODAY.strftime(form) for form in sorted(set(forms))}, ensure_ascii=False)
    return f"{{% macro {CLOCK}(form) %}}{{{{ {dates}[form] }}}}{{% endmacro %}}\n"


def _form(call: nodes.Call, name: str) -> str:
    if len(call.args) == 1 and isinstance(call.args[0], nodes.Const) and isinstance(call.args[0].value, str):
        return call.args[0].value
    raise _unknown_form(name)


def _unknown_form(name: str) -> ValueError:
    return ValueError(
        f"chat_format {name}: the chat template asks for the date in a form that is only known while it is rendered, so it"
        " cannot be given the same one for ever; chat_format: chatml has no date"
    )


def _lots(parsed: nodes.Template) -> str:
    used = {node.name for node in parsed.find_all(nodes.Filter)} | {node.name for node in parsed.find_all(nodes.Name)}
    return ", ".join(word for word in RANDOM if word in used)


def _parsed(template: str, name: str) -> nodes.Template:
    environment = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"], autoescape=True)  # it renders nothing
    try:
        return environment.parse(GENERATION.sub("", template))
    except jinja2.TemplateError as error:
        raise ValueError(f"chat_format {name}: the chat template cannot be read: {error}") from None
