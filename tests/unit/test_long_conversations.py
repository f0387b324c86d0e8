"""Conversations of many turns: rendered a bounded number of times, with the tokens that they have turn by turn."""

import pytest

from components.conversations.chat_formats import conversation_bounds, jinja_template, load_chat_format
from components.conversations.chat_formats.template_renderer import TemplateRenderer
from components.conversations.messages import Conversation, Message
from components.errors import InputError
from tests.support.agent import CALL, agent_tokenizer
from tests.support.toy import assistant, letter_tokenizer, user


def talk(turns):
    """Answers that repeat words of the template, hold control texts, blanks at their ends, or only a call."""
    messages = [Message(role="system", content="be assistant")]
    for number in range(turns):
        messages.append(user(f"\nq{number} assistant\n"))
        if number % 3 == 1:
            messages += [Message(role="assistant", content="", tool_calls=(CALL,)), Message(role="tool", content="1")]
        messages.append(assistant(f" a{number}<|im_end|> \n", loss_weight=float(number % 5 > 0)))
    return Conversation(messages=tuple(messages), source="a.jsonl, line 7")


NEXT_ROLE = (
    "{% for m in messages %}<|im_start|>{{ {'system': 's', 'user': 'u', 'assistant': 'a', 'tool': 't'}[m.role] }}"
    "{{ m.content }}{% for c in m.tool_calls %}[{{ c.function.name }}{{ c.function.arguments | tojson }}]{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>a{% endif %}"
)
ONLY_NEWEST = (
    "{% for m in messages %}<|im_start|>{{ m.role }}{{ '~' if loop.last and m.role == 'assistant' }}{{ m.content }}"
    "{% for c in m.tool_calls %}[{{ c.function.name }}]{% endfor %}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant{% endif %}"
)
TOKENIZERS = {
    "agent": agent_tokenizer(),
    "chatml": letter_tokenizer(),
    "next role": letter_tokenizer(NEXT_ROLE),
    "only the newest": letter_tokenizer(ONLY_NEWEST),
}


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_many_turns_have_the_tokens_that_they_have_one_by_one(kind, monkeypatch):
    chat_format = load_chat_format(TOKENIZERS[kind])
    quick = chat_format.render(talk(40))
    monkeypatch.setattr(jinja_template, "MAX_TURNS_RENDERED", 1000)
    assert quick == chat_format.render(talk(40))
    assert bool(quick.forks) == (kind == "only the newest")


@pytest.mark.parametrize("kind", ["agent", "chatml", "next role"])
def test_ten_times_the_turns_are_rendered_no_more_often(kind, monkeypatch):
    chat_format = load_chat_format(TOKENIZERS[kind])
    rendered = []
    write = TemplateRenderer.write
    monkeypatch.setattr(
        TemplateRenderer, "write", lambda self, *args, **kwargs: rendered.append(1) or write(self, *args, **kwargs)
    )
    chat_format.render(talk(40))
    few = len(rendered)
    chat_format.render(talk(400))
    assert len(rendered) - few <= few


def test_a_turn_that_lacks_words_is_named_however_many_there_are():
    words = "{{ '~' if loop.last and m.role == 'assistant' }}{{ m.content }}"
    shy = ONLY_NEWEST.replace(words, "{{ m.content if loop.index != 63 else 'x' }}")
    with pytest.raises(ValueError, match=r"^a\.jsonl, line 7: message \d+: chat_format template does not show 'a\d+"):
        load_chat_format(letter_tokenizer(shy)).render(talk(40))


def test_a_text_that_turns_share_is_encoded_once_and_has_the_tokens_of_the_whole(monkeypatch):
    chat_format = load_chat_format(TOKENIZERS["only the newest"])
    encoded = []
    encode = chat_format.control.encode
    monkeypatch.setattr(
        chat_format.control, "encode", lambda text, mark: encoded.append(len(text)) or encode(text, mark)
    )
    piecewise = chat_format.render(talk(60))
    letters = sum(encoded)
    encoded.clear()
    chat_format.encoder._cut = None
    assert chat_format.render(talk(60)) == piecewise
    assert letters * 5 < sum(encoded)


@pytest.mark.parametrize(
    ("kind", "bound", "text"),
    [
        (
            "only the newest",
            "MAX_TURNS_ONE_BY_ONE",
            "rewrites earlier turns, so each of its 53 is rendered with all before it",
        ),
        ("agent", "MAX_LETTERS_OF_TURNS", " letters are too much for one conversation; split it"),
    ],
)
def test_a_conversation_beyond_all_bounds_is_refused_in_words(kind, bound, text, monkeypatch):
    chat_format = load_chat_format(TOKENIZERS[kind])
    monkeypatch.setattr(conversation_bounds, bound, 39)
    with pytest.raises(InputError, match=r"^a\.jsonl, line 7: ") as caught:
        chat_format.render(talk(40))
    assert text in str(caught.value)
