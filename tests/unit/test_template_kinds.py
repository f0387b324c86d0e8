"""Chat templates of each kind, token by token: what is rendered and scored, where it forks, where turns stop.

In a list of tokens, a list within is scored, and a number is the depth at which the tokens behind it go on.
"""

import pytest

from components.conversations.chat_formats import load_chat_format
from components.conversations.messages import Message
from components.experiment.spec import ChatFormatSpec
from tests.support.kind_talks import (
    ADD,
    ASSISTANT,
    CALL,
    CALLED,
    CALLING,
    END,
    OBSERVATION,
    OVER,
    PLAIN,
    SAID,
    TEXT_END,
    THINK,
    THOUGHT,
    THOUGHTFUL,
    TOOL,
    TURN,
    USER,
    format_of,
    refusal,
    render,
    stops_of,
    system,
    tokens_of,
)
from tests.support.template_kinds import KINDS, shown, word_tokenizer, words
from tests.support.toy import assistant, user

# Templates that only append: one path


def test_a_template_that_appends_is_one_path():
    assert tokens_of("appends", PLAIN) == [
        TURN, "user", ":", " ", "hi", OVER, "\n", TURN, "assistant", ":", " ", ["yo", OVER], "\n",
        TURN, "user", ":", " ", "ok", OVER, "\n", TURN, "assistant", ":", " ", ["bye", OVER], "\n",
    ]  # fmt: skip
    assert stops_of("appends") == {OVER}


def test_the_newline_behind_a_stop_is_context_also_where_the_template_scores_it():
    assert tokens_of("generation_tags", PLAIN) == [
        TURN, "user", "\n", "hi", OVER, "\n", TURN, "assistant", "\n", ["yo", OVER], "\n",
        TURN, "user", "\n", "ok", OVER, "\n", TURN, "assistant", "\n", ["bye", OVER], "\n",
    ]  # fmt: skip


def test_without_a_generation_prompt_answers_begin_behind_the_question():
    assert tokens_of("alternating", PLAIN) == [
        "[ask]", "hi", "[/ask]", [" ", "yo", END], "[ask]", "ok", "[/ask]", [" ", "bye", END],
    ]  # fmt: skip


def test_a_message_with_weight_zero_is_context():
    assert tokens_of("appends", (user("hi"), assistant("yo", loss_weight=0.0), user("ok"), assistant("bye"))) == [
        TURN, "user", ":", " ", "hi", OVER, "\n", TURN, "assistant", ":", " ", "yo", OVER, "\n",
        TURN, "user", ":", " ", "ok", OVER, "\n", TURN, "assistant", ":", " ", ["bye", OVER], "\n",
    ]  # fmt: skip


# Stops


def test_an_answer_that_ends_only_at_the_end_has_that_end_wherever_it_is_the_newest():
    assert tokens_of("end_at_end", PLAIN) == [
        USER, "hi", ASSISTANT, ["yo", END],
        4, USER, "ok", ASSISTANT, ["bye", END],
    ]  # fmt: skip
    assert stops_of("end_at_end") == {END}


def test_the_next_roles_token_is_the_stop_where_nothing_else_is():
    assert tokens_of("next_role_stops", PLAIN) == [
        "[begin]", USER, "\n", "hi", ASSISTANT, "\n", ["yo", USER],
        "\n", "ok", ASSISTANT, "\n", ["bye", TEXT_END],
    ]  # fmt: skip
    assert stops_of("next_role_stops") == {USER, OBSERVATION, TEXT_END}


def test_a_call_stops_at_its_results_role():
    call = [CALL, "add", "<key>", "a", "<value>", "1", CALLED, OBSERVATION]
    head = ["[begin]", "<|system|>", *words("tools: add"), USER, "\n", "hi", ASSISTANT, "\n"]
    assert tokens_of("next_role_stops", CALLING, [TOOL]) == [
        *head, call, "\n", "2", ASSISTANT, "\n", ["two", TEXT_END],
    ]  # fmt: skip
    assert tokens_of("next_role_stops", CALLING[:2], [TOOL]) == [*head, call]


def test_a_conversation_that_ends_in_a_question_has_its_last_stop_before_it():
    assert tokens_of("next_role_stops", PLAIN[:3]) == [
        "[begin]", USER, "\n", "hi", ASSISTANT, "\n", ["yo", USER], "\n", "ok",
    ]  # fmt: skip


def test_two_stops_in_a_row_through_the_end_token_belong_to_the_turn():
    turn = ["<|turn|>", "<|user|>"], ["<|turn|>", "<|bot|>", "<|answer|>"]
    assert tokens_of("two_stops", PLAIN) == [
        "<|begin|>", *turn[0], "hi", OVER, *turn[1], ["yo", "<|/answer|>", OVER],
        *turn[0], "ok", OVER, *turn[1], ["bye", "<|/answer|>", OVER],
    ]  # fmt: skip
    assert OVER in stops_of("two_stops")
    assert "<|/answer|>" not in stops_of("two_stops")  # generation goes on to the end token


def test_what_always_stands_at_the_end_is_no_stop():
    head = [*words("<tool>add"), TURN, USER, "hi", OVER, TURN, "<|bot|>"]
    assert tokens_of("always_asks", CALLING, [TOOL]) == [
        *head, ["<|action|>", "add", *words('{"a": 1}'), "<|/action|>", OVER],
        TURN, "<|system|>", "2", OVER, TURN, "<|bot|>", ["<|answer|>", "two", "<|/answer|>", OVER], TURN, "<|bot|>",
    ]  # fmt: skip
    assert stops_of("always_asks") == {OVER}


def test_an_end_of_text_as_long_as_a_role_is_no_part_of_a_stop():
    template = (
        "{% for m in messages %}{{ '<|user|>' if m.role == 'user' else '<|bots|>' }}{{ m.content }}<|said|>{% endfor %}"
        "{{ '<|bots|>' if add_generation_prompt else '<|ends|>' }}"
    )
    tokenizer = word_tokenizer(("<|ends|>", "<|user|>", "<|bots|>", "<|said|>"), chat_template=template)
    assert shown(tokenizer, render(load_chat_format(tokenizer), PLAIN)) == [
        "<|user|>", "hi", "<|said|>", "<|bots|>", ["yo", "<|said|>"],
        "<|user|>", "ok", "<|said|>", "<|bots|>", ["bye", "<|said|>"], "<|ends|>",
    ]  # fmt: skip


def test_an_end_of_text_behind_the_last_stop_is_context():
    assert tokens_of("end_behind_stop", PLAIN) == [
        USER, "\n", "hi", SAID, "\n", ASSISTANT, "\n", ["yo", SAID], "\n",
        USER, "\n", "ok", SAID, "\n", ASSISTANT, "\n", ["bye", SAID], "\n", TEXT_END,
    ]  # fmt: skip
    assert SAID in stops_of("end_behind_stop")


def test_the_models_own_end_tokens_stop_it_too():
    tokenizer = KINDS["appends"].tokenizer()
    turn = tokenizer.convert_tokens_to_ids(TURN)
    assert stops_of("appends", end_token_ids=(turn,)) == {OVER, TURN}
    assert tokens_of("appends", PLAIN, end_token_ids=(turn,)) == tokens_of("appends", PLAIN)


# Roles and beginnings


def test_a_system_message_that_the_template_refuses_names_its_place_and_the_way_out():
    problem = refusal("system_refused", (system("be kind"), *PLAIN))
    assert "message 1" in problem
    assert "nobody may set the scene here" in problem
    assert "data.system: prepend" in problem


def test_a_system_text_goes_to_the_head_of_the_first_question_if_asked():
    assert tokens_of("system_refused", (system("be kind"), *PLAIN), system="prepend") == [
        TURN, "user", "\n", "be", " ", "kind", "\n", "\n", "hi", OVER, "\n",
        TURN, "assistant", "\n", ["yo", OVER], "\n",
        TURN, "user", "\n", "ok", OVER, "\n", TURN, "assistant", "\n", ["bye", OVER], "\n",
    ]  # fmt: skip
    assert tokens_of("system_refused", PLAIN, system="prepend") == tokens_of("system_refused", PLAIN)


def test_the_prompt_at_chat_time_has_the_system_text_where_training_has_it():
    chat_format = format_of("system_refused", system="prepend")
    prompt = chat_format.prompt([system("be kind"), user("hi")])
    assert list(render(chat_format, (system("be kind"), *PLAIN)).token_ids[: len(prompt)]) == prompt


@pytest.mark.parametrize(
    ("messages", "number"),
    [
        ((user("hi"), user("ok"), assistant("bye")), 2),
        ((user("hi"), assistant("yo"), assistant("bye")), 3),
        ((user("hi"), assistant("yo"), user("ok"), user("now"), assistant("bye")), 4),
    ],
)
def test_roles_that_do_not_alternate_are_refused_with_place_and_rule(messages, number):
    problem = refusal("alternating", messages)
    assert "one asks, the other answers, in turns" in problem
    assert f"messages {number - 1} and {number} are both from the" in problem


def test_a_template_that_reads_lists_of_parts_gets_them():
    assert tokens_of("parts", PLAIN) == [
        TURN, *words("user"), "\n", "hi", OVER, TURN, *words("assistant"), "\n", ["yo", OVER],
        TURN, *words("user"), "\n", "ok", OVER, TURN, *words("assistant"), "\n", ["bye", OVER],
    ]  # fmt: skip


def test_a_template_that_rewrites_its_beginning_falls_apart_into_rows():
    assert tokens_of("rewritten_start", PLAIN) == [
        TURN, "system", "\n", "1", OVER, TURN, "user", "\n", "hi", OVER, TURN, "assistant", "\n", ["yo", OVER],
        3, "3", OVER, TURN, "user", "\n", "hi", OVER, TURN, "assistant", "\n", "yo", OVER,
        TURN, "user", "\n", "ok", OVER, TURN, "assistant", "\n", ["bye", OVER],
    ]  # fmt: skip


# Arguments and names of templates


def test_the_date_is_the_same_every_day_and_an_argument_changes_it():
    talk = [OVER, TURN, "user", "\n", "hi", OVER, TURN, "assistant", "\n", ["yo", OVER]]
    assert tokens_of("dated", PLAIN[:2]) == [TURN, "system", "\n", *words("today is 26 Jul 2024"), *talk]
    given = {"date_string": "1 May 2026"}
    assert tokens_of("dated", PLAIN[:2], arguments=given) == [
        TURN,
        "system",
        "\n",
        *words("today is 1 May 2026"),
        *talk,
    ]


def test_arguments_reach_the_template_and_its_digest():
    talk = [OVER, TURN, "user", "\n", "hi", OVER, TURN, "assistant", "\n", ["yo", OVER]]
    low = {"reasoning_effort": "low"}
    assert tokens_of("reasoning_effort", PLAIN[:2]) == [TURN, "system", "\n", *words("effort: medium"), *talk]
    assert tokens_of("reasoning_effort", PLAIN[:2], arguments=low) == [
        TURN,
        "system",
        "\n",
        *words("effort: low"),
        *talk,
    ]
    digests = {format_of("reasoning_effort", arguments=given).digest() for given in ({}, low)}
    assert len(digests) == 2


def test_every_setting_of_the_format_is_part_of_the_digest():
    settings = [{}, {"system": "prepend"}, {"train_on_reasoning": False}, {"arguments": {"enable_thinking": False}}]
    assert len({format_of("thinking_switch", **keys).digest() for keys in settings}) == 4


def test_thinking_that_is_switched_off_puts_an_empty_thought_into_the_prompt():
    empty = [THINK, "\n", "\n", THOUGHT, "\n", "\n"]
    assert tokens_of("thinking_switch", PLAIN, arguments={"enable_thinking": False}) == [
        TURN, "user", "\n", "hi", OVER, TURN, "assistant", "\n", *empty, ["yo", OVER],
        8, "yo", OVER, TURN, "user", "\n", "ok", OVER, TURN, "assistant", "\n", *empty, ["bye", OVER],
    ]  # fmt: skip
    assert tokens_of("thinking_switch", PLAIN) == [
        TURN, "user", "\n", "hi", OVER, TURN, "assistant", "\n", [*empty, "yo", OVER],
        8, "yo", OVER, TURN, "user", "\n", "ok", OVER, TURN, "assistant", "\n", [*empty, "bye", OVER],
    ]  # fmt: skip


def test_a_thought_in_the_data_against_an_empty_one_in_the_prompt_is_refused():
    problem = refusal("thinking_switch", THOUGHTFUL, arguments={"enable_thinking": False})
    assert "message 2" in problem


def test_a_named_template_is_chosen_by_its_name():
    tokenizer = word_tokenizer((OVER, TURN), (CALL, CALLED))
    tokenizer.chat_template = {"default": KINDS["appends"].template, "tool_use": KINDS["tools_in_json"].template}
    plain = load_chat_format(tokenizer, ChatFormatSpec())
    tools = load_chat_format(tokenizer, ChatFormatSpec(template="tool_use"))
    assert shown(tokenizer, render(plain, PLAIN[:2])) == tokens_of("appends", PLAIN[:2])
    assert shown(tokenizer, render(tools, CALLING, [TOOL])) == tokens_of("tools_in_json", CALLING, [TOOL])
    with pytest.raises(ValueError, match=r"chat_template=rag: .*default, tool_use"):
        load_chat_format(tokenizer, ChatFormatSpec(template="rag"))
    with pytest.raises(ValueError, match=r"line 7: .*tools.*chat_template: tool_use"):
        render(plain, CALLING, [TOOL])


# Tools


def test_tools_and_calls_in_json():
    schema = '{"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": '
    assert tokens_of("tools_in_json", CALLING, [TOOL]) == [
        TURN, "tools", "\n", *words(schema + '{"a": {"type": "integer"}}}}}'), "\n", OVER,
        TURN, "user", "\n", "hi", OVER, TURN, "assistant", "\n",
        [CALL, *words('{"name": "add", "arguments": {"a": 1}}'), CALLED, OVER],
        TURN, "tool", "\n", "2", OVER, TURN, "assistant", "\n", ["two", OVER],
    ]  # fmt: skip


def test_tools_and_calls_in_xml():
    tools = "<tools><function>add<parameter>a integer</parameter></function></tools>"
    assert tokens_of("tools_in_xml", CALLING, [TOOL]) == [
        TURN, "system", "\n", *words(tools), OVER, TURN, "user", "\n", "hi", OVER, TURN, "assistant", "\n",
        ["\n", CALL, *words("\n<function=add>\n<parameter=a>\n1\n</parameter>\n</function>\n"), CALLED, OVER],
        TURN, "tool", "\n", "2", OVER, TURN, "assistant", "\n", ["two", OVER],
    ]  # fmt: skip


def test_tools_and_calls_in_python_with_a_stop_of_their_own():
    both = {"id": "c2", "type": "function", "function": {"name": "add", "arguments": {"a": "hi"}}}
    messages = (user("hi"), Message(role="assistant", content="", tool_calls=(ADD, both)), *CALLING[2:])
    assert tokens_of("tools_in_python", messages, [TOOL]) == [
        TURN, "system", "\n", *words("functions: add"), OVER, TURN, "user", "\n", "hi", OVER, TURN, "assistant", "\n",
        ["<|python|>", *words('[add(a=1), add(a="hi")]'), "<|calls|>"],
        TURN, "tool", "\n", "2", OVER, TURN, "assistant", "\n", ["two", OVER],
    ]  # fmt: skip
    assert stops_of("tools_in_python") == {OVER, "<|calls|>"}


@pytest.mark.parametrize("arguments", [{"a": 1}, '{"a": 1}'], ids=["object", "text"])
@pytest.mark.parametrize(
    ("kind", "call"), [("arguments_as_text", 'add\n{"a": 1}'), ("arguments_as_mapping", "add a 1")]
)
def test_arguments_are_what_the_template_wants_however_the_data_has_them(kind, call, arguments):
    given = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": arguments}}
    messages = (user("hi"), Message(role="assistant", content="", tool_calls=(given,)), *CALLING[2:])
    assert tokens_of(kind, messages, [TOOL]) == [
        *words("<tool>add"), TURN, "user", "\n", "hi", OVER, TURN, "assistant", "\n", [CALL, *words(call), CALLED, OVER],
        TURN, "tool", "\n", "2", OVER, TURN, "assistant", "\n", ["two", OVER],
    ]  # fmt: skip
