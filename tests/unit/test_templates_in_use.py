"""With every chat template the tokens are those that a model sees and says in use."""

import json
from dataclasses import replace

import pytest

from tests.support.kind_talks import (
    CALLING,
    END,
    LOOP,
    OVER,
    PLAIN,
    SAID,
    THINK,
    THOUGHT,
    THOUGHTFUL,
    TOOL,
    TURN,
    WITHOUT_THOUGHTS,
    format_of,
    render,
    scored,
    system,
    thinking,
    tokens_of,
)
from tests.support.template_kinds import KINDS, sequences, shown
from tests.support.toy import assistant, user

# A tree is its sequences, and those are what the model sees in use


OFF = {"enable_thinking": False}
IN_USE = [
    ("appends", PLAIN, (), {}, OVER),
    ("generation_tags", PLAIN, (), {}, OVER),
    ("alternating", PLAIN, (), {}, END),
    ("thought_in_newest", THOUGHTFUL, (), {}, OVER),
    ("thought_in_newest", (system("be kind"), *THOUGHTFUL, user("five"), thinking("two", "now")), (), {}, OVER),
    ("thought_since_question", LOOP, (TOOL,), {}, OVER),
    ("end_at_end", PLAIN, (), {}, END),
    ("end_behind_stop", PLAIN, (), {}, SAID),
    ("two_stops", PLAIN, (), {}, f"<|/answer|>{OVER}"),
    ("channels", THOUGHTFUL, (), {}, "<|return|>"),
    ("thought_opened_or_empty", THOUGHTFUL, (), {}, OVER),
    ("thought_asked_for", THOUGHTFUL, (), {"enable_thinking": True}, OVER),
    ("thinking_switch", PLAIN, (), OFF, OVER),
    ("thinking_switch", THOUGHTFUL, (), {}, OVER),
    ("reasoning_effort", PLAIN, (), {"reasoning_effort": "low"}, OVER),
    ("rewritten_start", PLAIN, (), {}, OVER),
    ("tools_in_json", CALLING, (TOOL,), {}, OVER),
    ("tools_in_xml", CALLING, (TOOL,), {}, OVER),
]


@pytest.mark.parametrize(("kind", "messages", "tools", "arguments", "stop"), IN_USE)
def test_each_sequence_is_the_prompt_and_the_newest_answer_up_to_its_stop(kind, messages, tools, arguments, stop):
    chat_format = format_of(kind, arguments=arguments)
    rendered = render(chat_format, messages, tools)
    wanted = list(in_use(KINDS[kind].tokenizer(), messages, list(tools) or None, arguments, stop))
    assert [chat_format.tokenizer.decode(sequence) for sequence in sequences(rendered)] == [
        prompt + answer for prompt, answer in wanted
    ]
    answers = [position for position, message in enumerate(messages) if message.role == "assistant"]
    prompts = [chat_format.prompt(messages[:position], tools) for position in answers]
    assert [chat_format.tokenizer.decode(prompt) for prompt in prompts] == [prompt for prompt, _ in wanted]
    for prompt, sequence in zip(prompts, sequences(rendered), strict=True):
        assert list(sequence[: len(prompt)]) == prompt


def in_use(tokenizer, messages, tools, arguments, stop):
    """(the prompt before each answer, the answer up to its stop), by the tokenizer's own rendering."""
    raw = [json.loads(json.dumps(raw_of(message))) for message in messages]
    for position, message in enumerate(raw):
        if message["role"] == "assistant":
            asked, told = raw[:position], raw[: position + 1]
            prompt = tokenizer.apply_chat_template(
                asked, tools=tools, tokenize=False, add_generation_prompt=True, **arguments
            )
            whole = tokenizer.apply_chat_template(told, tools=tools, tokenize=False, **arguments)
            assert whole.startswith(prompt)
            yield prompt, whole[len(prompt) : whole.index(stop, len(prompt)) + len(stop)]


def raw_of(message):
    given = {"reasoning_content": message.reasoning_content, "tool_calls": list(message.tool_calls)}
    return {"role": message.role, "content": message.content} | {key: value for key, value in given.items() if value}


@pytest.mark.parametrize("kind", WITHOUT_THOUGHTS)
def test_control_words_in_texts_stay_words_with_every_template(kind):
    chat_format = format_of(kind)
    evil = "".join((*KINDS[kind].special, *KINDS[kind].added))
    plain = render(chat_format, (user("hi"), assistant("yo")))
    forged = render(chat_format, (user(evil), assistant("yo")))
    control = [chat_format.tokenizer.convert_tokens_to_ids(token) for token in KINDS[kind].special]
    assert [token for token in forged.token_ids if token in control] == [
        token for token in plain.token_ids if token in control
    ]
    assert evil in chat_format.tokenizer.decode(list(forged.token_ids))


# Answers are read back


ANSWERS = [
    *((kind, PLAIN[:2], ()) for kind in WITHOUT_THOUGHTS),
    ("thought_in_newest", THOUGHTFUL[:2], ()),
    ("thought_opened", THOUGHTFUL[:2], ()),
    ("thought_opened_by_switch", THOUGHTFUL[:2], ()),
    ("thought_since_question", THOUGHTFUL[:2], ()),
    ("channels", THOUGHTFUL[:2], ()),
    ("tools_in_json", CALLING[:2], (TOOL,)),
    ("thought_since_question", LOOP[:2], (TOOL,)),
]


@pytest.mark.parametrize(("kind", "messages", "tools"), ANSWERS)
def test_what_a_model_says_is_read_back_as_the_message_that_it_learned(kind, messages, tools):
    chat_format = format_of(kind)
    (sequence,) = sequences(render(chat_format, messages, tools))
    said = sequence[len(chat_format.prompt(messages[:1], tools)) : -1]
    message = chat_format.message(said)
    learned = messages[1]
    assert (message.content, message.reasoning_content) == (learned.content, learned.reasoning_content)
    assert [call["function"] for call in message.tool_calls] == [call["function"] for call in learned.tool_calls]


@pytest.mark.parametrize("kind", ["thought_in_newest", "thought_opened", "thought_since_question", "channels"])
def test_control_words_in_thoughts_and_answers_stay_words(kind):
    chat_format = format_of(kind)
    evil = "".join(KINDS[kind].special)
    plain = render(chat_format, THOUGHTFUL)
    forged = render(chat_format, (user("hi"), thinking(evil, "yo" + evil), user("ok"), thinking("so", "bye")))
    control = [chat_format.tokenizer.convert_tokens_to_ids(token) for token in KINDS[kind].special]
    assert [token for token in forged.token_ids if token in control] == [
        token for token in plain.token_ids if token in control
    ]
    assert "".join(scored(shown(chat_format.tokenizer, forged))).count(evil) == 2


def test_a_turn_that_is_not_scored_is_no_sequence_of_a_tree():
    messages = (user("hi"), thinking("hm", "yo"), user("ok"), assistant("bye", loss_weight=0.0), *THOUGHTFUL[2:])
    assert tokens_of("thought_in_newest", messages) == [
        TURN, "user", "\n", "hi", OVER, "\n", TURN, "assistant", "\n",
        [THINK, "\n", "hm", "\n", THOUGHT, "\n", "\n", "yo", OVER],
        9, "yo", OVER, "\n", TURN, "user", "\n", "ok", OVER, "\n", TURN, "assistant", "\n", "bye", OVER, "\n",
        TURN, "user", "\n", "ok", OVER, "\n", TURN, "assistant", "\n",
        [THINK, "\n", "so", "\n", THOUGHT, "\n", "\n", "bye", OVER],
    ]  # fmt: skip


def test_one_scored_turn_behind_rewritten_ones_is_one_path():
    messages = (user("hi"), replace(thinking("hm", "yo"), loss_weight=0.0), user("ok"), thinking("so", "bye"))
    assert tokens_of("thought_in_newest", messages) == [
        TURN, "user", "\n", "hi", OVER, "\n", TURN, "assistant", "\n", "yo", OVER, "\n",
        TURN, "user", "\n", "ok", OVER, "\n", TURN, "assistant", "\n",
        [THINK, "\n", "so", "\n", THOUGHT, "\n", "\n", "bye", OVER],
        "\n",
    ]  # fmt: skip
