"""Fixes the date in chat templates that write today's date, so that a conversation is rendered alike on every day."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Iterator

import jinja2
from jinja2 import nodes

from components.errors import InputError

TODAY = datetime.datetime(2024, 7, 26)  # the date that Llama 3's templates write by default
CLOCK = "strftime_now"
RANDOM = ("random", "lipsum")
GENERATION = re.compile(r"\{%-?\s*(end)?generation\s*-?%\}")  # transformers' own tags, which change no text


def pin_date(template: str, name: str) -> str:
    """Returns the template with TODAY instead of its clock. One without a clock, or that is fixed already, stays unchanged.

    Raises InputError if it uses random numbers, or asks for the date in a form that is only known during rendering.
    """
    if CLOCK not in template and not any(word in template for word in RANDOM):
        return template
    parsed = parse_template(template, name)
    if lots := _random_names(parsed):
        raise InputError(
            f"chat_format {name}: the chat template draws lots ({lots}), so it renders a conversation otherwise each time"
        )
    if any(macro.name == CLOCK for macro in parsed.find_all(nodes.Macro)):
        return template
    forms = [_date_form(call, name) for call in _clock_calls(parsed)]
    tests = [
        test for test in parsed.find_all(nodes.Test) if isinstance(test.node, nodes.Name) and test.node.name == CLOCK
    ]
    if sum(node.name == CLOCK for node in parsed.find_all(nodes.Name)) > len(forms) + len(tests):
        raise _unknown_form_error(name)  # the clock is used under another name
    return _clock_macro(forms) + template if forms else template


def dates_of(template: str, name: str) -> list[str]:
    """Returns TODAY in each form in which a template asks for it."""
    if CLOCK not in template:
        return []
    return [TODAY.strftime(_date_form(call, name)) for call in _clock_calls(parse_template(template, name))]


def _clock_calls(parsed: nodes.Template) -> Iterator[nodes.Call]:
    for call in parsed.find_all(nodes.Call):
        if isinstance(call.node, nodes.Name) and call.node.name == CLOCK:
            yield call


def _clock_macro(forms: list[str]) -> str:
    """Returns a macro on its own line, which the environment of chat templates removes with it."""
    dates = json.dumps({form: TODAY.strftime(form) for form in sorted(set(forms))}, ensure_ascii=False)
    return f"{{% macro {CLOCK}(form) %}}{{{{ {dates}[form] }}}}{{% endmacro %}}\n"


def _date_form(call: nodes.Call, name: str) -> str:
    if len(call.args) == 1 and isinstance(call.args[0], nodes.Const) and isinstance(call.args[0].value, str):
        return call.args[0].value
    raise _unknown_form_error(name)


def _unknown_form_error(name: str) -> InputError:
    return InputError(
        f"chat_format {name}: the chat template asks for the date in a form that is only known while it is rendered, so it"
        " cannot be given the same one for ever"
    )


def _random_names(parsed: nodes.Template) -> str:
    used = {node.name for node in parsed.find_all(nodes.Filter)} | {node.name for node in parsed.find_all(nodes.Name)}
    return ", ".join(word for word in RANDOM if word in used)


def parse_template(template: str, name: str) -> nodes.Template:
    environment = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"], autoescape=True)  # it renders nothing
    try:
        return environment.parse(GENERATION.sub("", template))
    except jinja2.TemplateError as error:
        raise InputError(f"chat_format {name}: the chat template cannot be read: {error}") from None
