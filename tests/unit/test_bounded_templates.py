"""A chat template is a stranger's program: one that does not end, or grows without bound, ends in one sentence."""

import os
import pickle
import signal

import pytest

from components.conversations.chat_formats import bounded_template, load_chat_format
from components.conversations.chat_formats.bounded_template import (
    TemplateRefusedError,
    UnboundedTemplateError,
    render_template,
)
from components.conversations.messages import Conversation
from components.data.parallel_rendering import Renderer
from components.data.process_pool import ProcessPool
from components.errors import InputError
from components.experiment.spec import ChatFormatSpec
from tests.support.template_kinds import KINDS
from tests.support.toy import assistant, user

LOOPS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
ALIKE = "{% set ns = namespace(a=[0], b=[0]) %}{% for _ in range(60) %}"
ALIKE += "{% set ns.a = [ns.a, ns.a] %}{% set ns.b = [ns.b, ns.b] %}{% endfor %}"
DOUBLED = "{% set ns = namespace(x='aa') %}{% for _ in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}"
ENDLESS = "does not end: it was stopped after 1 s of computing"
MEMORY = "takes more than 2 GiB of memory"


def render(template, *messages):
    return render_template(template, messages or [{"role": "user", "content": "hi"}], [], ask=False, special={})


@pytest.fixture
def _one_second(monkeypatch):
    bounded_template._PROCESS.close()
    monkeypatch.setattr(bounded_template, "MAX_SECONDS", 1)
    yield
    bounded_template._PROCESS.close()


@pytest.mark.usefixtures("_one_second")
@pytest.mark.parametrize(
    ("template", "text"),
    [
        (LOOPS, ENDLESS),
        (ALIKE + "{{ ns.a == ns.b }}", ENDLESS),  # one comparison, in which Python itself hears no interruption
        (DOUBLED, f"({MEMORY}|{ENDLESS})"),  # whichever is first
        ("{{ 'a' * 2200000000 }}", MEMORY),
        ("{{ 'a' * 20000001 }}", "writes more than 20,000,000 letters"),
    ],
)
def test_a_template_without_bounds_ends_in_one_sentence_and_the_next_one_is_rendered(template, text):
    with pytest.raises(UnboundedTemplateError, match=f"^{text}$"):
        render(template)
    assert render("{{ messages[0].content }}") == "hi"


@pytest.mark.usefixtures("_one_second")
def test_a_format_with_such_a_template_is_refused_at_its_first_trial_conversation():
    tokenizer = KINDS["appends"].tokenizer()
    tokenizer.chat_template = LOOPS + tokenizer.chat_template
    with pytest.raises(UnboundedTemplateError) as caught:
        load_chat_format(tokenizer, ChatFormatSpec())
    assert str(caught.value) == (
        f"chat_format template: the chat template {ENDLESS}; take another model, or mend its template"
    )


@pytest.mark.usefixtures("_one_second")
def test_a_template_that_does_not_end_for_one_conversation_ends_the_rendering(tmp_path):
    tokenizer = KINDS["appends"].tokenizer()
    tokenizer.chat_template = f"{{% if 'bye' in messages[0].content %}}{LOOPS}{{% endif %}}{tokenizer.chat_template}"
    tokenizer.save_pretrained(tmp_path)
    spec = ChatFormatSpec()
    chat_format = load_chat_format(tokenizer, spec)
    renderer = Renderer(chat_format=chat_format, pool=ProcessPool(1))
    plain, hangs = (
        Conversation(messages=(user(text), assistant("yo")), source=f"a.jsonl, line {number}")
        for number, text in enumerate(("hi", "bye"), start=2)
    )
    with pytest.raises(UnboundedTemplateError, match=r"^a\.jsonl, line 3: .*does not end"):
        list(renderer.render([plain] * 3 + [hangs]))


def test_what_fails_in_a_template_is_a_refusal_in_its_own_words():
    for template, text in (
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{% if %}", "Expected an expression, got 'end of statement block'"),
        ("{{ 1 // 0 }}", "integer division or modulo by zero"),
        ("{{ messages[0].content.__class__.__mro__ }}", "access to attribute '__class__' of 'str' object is unsafe."),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "maximum recursion depth exceeded"),
    ):
        with pytest.raises(TemplateRefusedError) as caught:
            render(template)
        assert str(caught.value).startswith(text)


def test_a_renderer_that_is_killed_between_two_texts_is_replaced():
    assert render("{{ messages[0].content }}") == "hi"
    os.kill(bounded_template._PROCESS.process.pid, signal.SIGKILL)
    bounded_template._PROCESS.process.wait()
    assert render("{{ messages[0].content }}") == "hi"


def test_a_message_that_is_nested_too_deeply_is_refused():
    deep = "x"
    for _ in range(5000):
        deep = [deep]
    with pytest.raises(TemplateRefusedError, match="nested too deeply"):
        render("{{ messages }}", {"role": "user", "content": deep})


def test_the_text_is_that_of_transformers():
    for kind in KINDS.values():
        tokenizer = kind.tokenizer()
        messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo", "name": None}]
        for ask in (False, True):
            theirs = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=ask)
            ours = render_template(tokenizer.chat_template, messages, [], ask=ask, special=tokenizer.special_tokens_map)
            assert ours == theirs


def test_an_unbounded_template_is_no_input_error():
    assert not issubclass(UnboundedTemplateError, InputError)  # those are caught where a conversation is refused
    assert str(pickle.loads(pickle.dumps(UnboundedTemplateError("does not end")))) == "does not end"  # from a process
