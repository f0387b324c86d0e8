"""A conversation has the same tokens today and in a year, whatever its chat template writes beside it."""

import datetime
import subprocess
import sys

import pytest
from transformers.utils import chat_template_utils

from components.conversations.chat_formats import load_chat_format
from components.conversations.messages import Conversation, Message
from tests.support.toy import assistant, letter_tokenizer, user

# The beginning of Llama 3's.
LLAMA_DATE = (
    "{%- if not date_string is defined %}\n    {%- if strftime_now is defined %}\n"
    '        {%- set date_string = strftime_now("%d %b %Y") %}\n    {%- else %}\n'
    '        {%- set date_string = "26 Jul 2024" %}\n    {%- endif %}\n{%- endif %}\n'
)
TURNS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
DATED = LLAMA_DATE + "<|im_start|>system\nToday Date: {{ date_string }}<|im_end|>\n" + TURNS
CHAT = Conversation(messages=(user("hi"), assistant("yo")))


@pytest.fixture
def on(monkeypatch):
    """Makes it another day for chat templates."""

    def set_day(*day):
        class Clock(datetime.datetime):
            @classmethod
            def now(cls, tz=None):
                return cls(*day)

        monkeypatch.setattr(chat_template_utils, "datetime", Clock)

    return set_day


def text_of(chat_format):
    return chat_format.tokenizer.decode(chat_format.render(CHAT).token_ids)


def dated(line):
    return "<|im_start|>system\n" + line + "<|im_end|>\n" + TURNS


@pytest.mark.parametrize(
    ("template", "written"),
    [
        (DATED, "Today Date: 26 Jul 2024<|im_end|>"),
        (dated("{{ strftime_now('%Y-%m-%d') }} {{ strftime_now('%A') }}"), "2024-07-26 Friday<|im_end|>"),
        (dated("{% macro day() %}{{ strftime_now('%d') }}{% endmacro %}{{ day() }}"), "system\n26<|im_end|>"),
        (dated("{%- generation -%}{{ strftime_now('%B') }}{%- endgeneration -%}"), "systemJuly<|im_end|>"),
    ],
    ids=["llama", "two forms", "in a macro", "in a block"],
)
def test_two_days_have_the_same_tokens_and_the_same_digest(on, template, written):
    on(2026, 1, 2)
    first = load_chat_format(letter_tokenizer(template))
    tokens, digest = first.render(CHAT), first.digest()
    assert written in text_of(first)
    on(2027, 3, 4)
    assert first.render(CHAT) == tokens
    second = load_chat_format(letter_tokenizer(template))
    assert (second.render(CHAT), second.digest()) == (tokens, digest)
    prompt = second.prompt([user("hi")])
    assert list(tokens.token_ids[: len(prompt)]) == prompt


def test_the_exported_template_has_the_same_date_without_this_code(on):
    chat_format = load_chat_format(letter_tokenizer(DATED))
    on(2027, 3, 4)
    text = letter_tokenizer(chat_format.template).apply_chat_template(
        [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}], tokenize=False
    )
    assert text == text_of(chat_format)


@pytest.mark.parametrize("start", ["", "\n", "  ", "\n  {% set x = 1 %}\n", "{{- '' }}", "{# no #}\n"])
def test_nothing_but_the_date_is_changed(on, start):
    template = start + dated("{{ strftime_now('%d %b %Y') }}")
    on(2024, 7, 26)
    messages = [{"role": "user", "content": "hi"}]
    tokenizer = letter_tokenizer(template)
    pinned = load_chat_format(letter_tokenizer(template)).template
    assert tokenizer.apply_chat_template(messages, tokenize=False, chat_template=pinned) == (
        tokenizer.apply_chat_template(messages, tokenize=False)
    )


@pytest.mark.parametrize("template", [TURNS, LLAMA_DATE.replace('strftime_now("%d %b %Y")', "'x'") + TURNS])
def test_a_template_that_writes_no_date_stays_as_it_is(template):
    assert load_chat_format(letter_tokenizer(template)).template == template


@pytest.mark.parametrize("asked", ["strftime_now(x)", "strftime_now('%d' ~ x)", "now('%d')"])
def test_a_date_in_a_form_that_is_not_known_beforehand_is_refused(asked):
    template = dated("{% set now = strftime_now %}{{ " + asked + " }}")
    with pytest.raises(ValueError, match="asks for the date in a form that is only known while it is rendered"):
        load_chat_format(letter_tokenizer(template))


@pytest.mark.parametrize("lots", ["{{ ['a', 'b'] | random }}", "{{ lipsum(1) }}"])
def test_a_template_that_draws_lots_is_refused(lots):
    with pytest.raises(
        ValueError, match=r"chat template draws lots \((random|lipsum)\), .* chat_format: chatml does neither"
    ):
        load_chat_format(letter_tokenizer(dated(lots)))


def test_what_a_template_is_not_told_is_undefined_in_training_and_in_use_alike():
    template = dated(
        "{% if documents %}d{% endif %}{% if enable_thinking is defined and not enable_thinking %}t{% endif %}"
        "{{ builtin_tools | default('none') }}"
    )
    chat_format = load_chat_format(letter_tokenizer(template))
    rendered = chat_format.render(CHAT)
    prompt = chat_format.prompt([Message(role="user", content="hi")])
    assert list(rendered.token_ids[: len(prompt)]) == prompt
    assert text_of(chat_format).startswith("<|im_start|>system\nnone<|im_end|>")


def test_the_digest_is_the_same_in_another_process():
    code = (
        "from tests.unit.test_pinned_templates import DATED, load_chat_format, letter_tokenizer;"
        "print(load_chat_format(letter_tokenizer(DATED)).digest())"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()[-1]
    assert told == load_chat_format(letter_tokenizer(DATED)).digest()
