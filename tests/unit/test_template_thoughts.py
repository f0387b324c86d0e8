"""Chat templates that take thoughts out of earlier turns, token by token.

In a list of tokens, a list within is scored, and a number is the depth at which the tokens behind it go on.
"""

import pytest

from components.conversations.chat_formats import load_chat_format
from tests.support.kind_talks import (
    ANSWER,
    ASK,
    CALL,
    CALLED,
    CHANNEL,
    DONE,
    LOOP,
    MESSAGE,
    OVER,
    PLAIN,
    SAID,
    START,
    THINK,
    THOUGHT,
    THOUGHTFUL,
    TOOL,
    TURN,
    format_of,
    refusal,
    render,
    stops_of,
    thinking,
    tokens_of,
)
from tests.support.template_kinds import KINDS, shown, word_tokenizer, words
from tests.support.toy import assistant, user

# Templates that take the thought out of earlier turns


def test_a_thought_that_only_the_newest_answer_shows_makes_a_fork():
    assert tokens_of("thought_in_newest", THOUGHTFUL) == [
        TURN, "user", "\n", "hi", OVER, "\n", TURN, "assistant", "\n",
        [THINK, "\n", "hm", "\n", THOUGHT, "\n", "\n", "yo", OVER],
        9, "yo", OVER, "\n", TURN, "user", "\n", "ok", OVER, "\n", TURN, "assistant", "\n",
        [THINK, "\n", "so", "\n", THOUGHT, "\n", "\n", "bye", OVER],
    ]  # fmt: skip
    assert stops_of("thought_in_newest") == {OVER}


def test_one_turn_of_a_reasoning_template_is_one_path():
    rendered = render(format_of("thought_in_newest"), THOUGHTFUL[:2])
    assert rendered.forks == ()
    assert tokens_of("thought_in_newest", THOUGHTFUL[:2])[:10] == [
        TURN, "user", "\n", "hi", OVER, "\n", TURN, "assistant", "\n",
        [THINK, "\n", "hm", "\n", THOUGHT, "\n", "\n", "yo", OVER],
    ]  # fmt: skip


def test_an_answer_without_a_thought_learns_what_the_template_writes_in_its_place():
    assert tokens_of("thought_in_newest", PLAIN) == [
        TURN, "user", "\n", "hi", OVER, "\n", TURN, "assistant", "\n",
        [THINK, "\n", "\n", THOUGHT, "\n", "\n", "yo", OVER],
        9, "yo", OVER, "\n", TURN, "user", "\n", "ok", OVER, "\n", TURN, "assistant", "\n",
        [THINK, "\n", "\n", THOUGHT, "\n", "\n", "bye", OVER],
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["thought_in_newest", "thought_opened"])
@pytest.mark.parametrize(
    "content", ["<think>\nhm\n</think>\n\nyo", "<think>hm</think>yo", "\n<think>\n\nhm\n</think>\nyo"]
)
def test_a_thought_in_the_content_is_the_same_message(kind, content):
    inside = (user("hi"), assistant(content), user("ok"), thinking("so", "bye"))
    assert tokens_of(kind, inside) == tokens_of(kind, THOUGHTFUL)


def test_thoughts_stay_between_a_call_and_its_result_and_go_with_the_next_question():
    call = [CALL, "add", " ", *words('{"a": 1}'), CALLED, OVER]
    assert tokens_of("thought_since_question", LOOP, [TOOL]) == [
        TURN, "tools", " ", "add", OVER, TURN, "user", " ", "hi", OVER, TURN, "assistant", " ",
        [THINK, "hm", THOUGHT, *call],
        TURN, "tool", " ", "2", OVER, TURN, "assistant", " ", [THINK, "so", THOUGHT, "two", OVER],
        13, *call, TURN, "tool", " ", "2", OVER, TURN, "assistant", " ", "two", OVER,
        TURN, "user", " ", "ok", OVER, TURN, "assistant", " ", [THINK, "now", THOUGHT, "bye", OVER],
    ]  # fmt: skip


def test_a_thought_that_the_prompt_opens_follows_it_once():
    assert tokens_of("thought_opened", THOUGHTFUL) == [
        "<|begin|>", ASK, "hi", ANSWER, THINK, "\n", ["hm", "\n", THOUGHT, "\n", "\n", "yo", DONE],
        4, "yo", DONE, ASK, "ok", ANSWER, THINK, "\n", ["so", "\n", THOUGHT, "\n", "\n", "bye", DONE],
    ]  # fmt: skip
    assert stops_of("thought_opened") == {DONE}


def test_a_prompt_that_opens_a_thought_needs_one_in_the_data():
    problem = refusal("thought_opened", PLAIN)
    assert "message 2" in problem
    assert "reasoning_content" in problem
    assert "enable_thinking" not in problem  # this template has no such switch


def test_the_templates_own_switch_is_the_way_out_of_a_thought_that_the_data_lacks():
    assert "chat_template_arguments: {enable_thinking: false}" in refusal("thought_opened_by_switch", PLAIN)
    assert tokens_of("thought_opened_by_switch", PLAIN, arguments={"enable_thinking": False}) == [
        ASK, "hi", ANSWER, THINK, THOUGHT, ["yo", DONE],
        3, "yo", DONE, ASK, "ok", ANSWER, THINK, THOUGHT, ["bye", DONE],
    ]  # fmt: skip


def test_thoughts_and_answers_have_channels_and_the_newest_answer_a_stop_of_its_own():
    final = [START, "assistant", CHANNEL, "final", MESSAGE]
    assert tokens_of("channels", THOUGHTFUL) == [
        START, "user", MESSAGE, "hi", SAID, START, "assistant",
        [CHANNEL, "analysis", MESSAGE, "hm", SAID, *final, "yo", "<|return|>"],
        8, "final", MESSAGE, "yo", SAID, START, "user", MESSAGE, "ok", SAID, START, "assistant",
        [CHANNEL, "analysis", MESSAGE, "so", SAID, *final, "bye", "<|return|>"],
    ]  # fmt: skip


def test_an_answer_without_a_thought_forks_at_its_stop_where_history_has_another():
    assert tokens_of("channels", PLAIN) == [
        START, "user", MESSAGE, "hi", SAID, START, "assistant", [CHANNEL, "final", MESSAGE, "yo", "<|return|>"],
        11, SAID, START, "user", MESSAGE, "ok", SAID, START, "assistant",
        [CHANNEL, "final", MESSAGE, "bye", "<|return|>"],
    ]  # fmt: skip


def test_a_calls_thought_stays_in_the_prompt_after_it_though_later_it_is_dropped():
    """The final answer's rendering drops the thought before the call, the prompt for that answer has it."""
    call = [*words(" to=add"), CHANNEL, "commentary", MESSAGE, *words('{"a": 1}'), "<|call|>"]
    final = [START, "assistant", CHANNEL, "final", MESSAGE]
    assert tokens_of("channels", LOOP[:4], [TOOL]) == [
        START, "developer", MESSAGE, *words("functions add"), SAID,
        START, "user", MESSAGE, "hi", SAID, START, "assistant",
        [CHANNEL, "analysis", MESSAGE, "hm", SAID, START, "assistant", *call],
        START, *words("tool to=assistant"), CHANNEL, "commentary", MESSAGE, "2", SAID, START, "assistant",
        [CHANNEL, "analysis", MESSAGE, "so", SAID, *final, "two", "<|return|>"],
    ]  # fmt: skip
    assert {"<|call|>", "<|return|>"} <= stops_of("channels")


def test_thinking_that_is_off_unless_asked_for_names_its_switch_to_thoughts():
    assert "chat_template_arguments: {enable_thinking: true}" in refusal("thought_asked_for", THOUGHTFUL)
    assert tokens_of("thought_asked_for", THOUGHTFUL, arguments={"enable_thinking": True}) == [
        TURN, "user", "\n", "hi", OVER, TURN, "assistant", "\n", THINK, "\n",
        ["hm", "\n", THOUGHT, "\n", "\n", "yo", OVER],
        8, "yo", OVER, TURN, "user", "\n", "ok", OVER, TURN, "assistant", "\n", THINK, "\n",
        ["so", "\n", THOUGHT, "\n", "\n", "bye", OVER],
    ]  # fmt: skip


def test_an_empty_thought_where_the_prompt_opens_one_names_the_switch():
    assert "chat_template_arguments: {enable_thinking: false}" in refusal("thought_opened_or_empty", PLAIN)
    assert tokens_of("thought_opened_or_empty", PLAIN, arguments={"enable_thinking": False}) == [
        TURN, "user", "\n", "hi", OVER, TURN, "assistant", "\n", THINK, THOUGHT, ["yo", OVER],
        TURN, "user", "\n", "ok", OVER, TURN, "assistant", "\n", THINK, THOUGHT, ["bye", OVER],
    ]  # fmt: skip
    assert tokens_of("thought_opened_or_empty", THOUGHTFUL) == [
        TURN, "user", "\n", "hi", OVER, TURN, "assistant", "\n", THINK, "\n", ["hm", "\n", THOUGHT, "yo", OVER],
        9, THOUGHT, "yo", OVER, TURN, "user", "\n", "ok", OVER, TURN, "assistant", "\n", THINK, "\n",
        ["so", "\n", THOUGHT, "bye", OVER],
    ]  # fmt: skip


def test_a_thought_behind_an_empty_one_is_refused_and_the_switch_named():
    assert "chat_template_arguments: {enable_thinking: true}" in refusal("thought_always_empty", THOUGHTFUL)


def test_a_thought_takes_the_place_of_the_empty_one_that_is_written_for_it():
    assert tokens_of("thought_always_empty", THOUGHTFUL, arguments={"enable_thinking": True}) == [
        TURN, "user", "\n", "hi", OVER, TURN, "assistant", "\n", THINK, "\n",
        ["hm", "\n", THOUGHT, "\n", "\n", "yo", OVER],
        10, "\n", THOUGHT, "\n", "\n", "yo", OVER, TURN, "user", "\n", "ok", OVER, TURN, "assistant", "\n", THINK, "\n",
        ["so", "\n", THOUGHT, "\n", "\n", "bye", OVER],
    ]  # fmt: skip


def test_answers_without_thoughts_behind_an_empty_one_are_a_path():
    empty = [THINK, "\n", "\n", THOUGHT, "\n", "\n"]
    assert tokens_of("thought_always_empty", PLAIN) == [
        TURN, "user", "\n", "hi", OVER, TURN, "assistant", "\n", *empty, ["yo", OVER],
        TURN, "user", "\n", "ok", OVER, TURN, "assistant", "\n", *empty, ["bye", OVER],
    ]  # fmt: skip


def test_content_that_is_written_as_it_is_has_its_thought_behind_the_prompt_only():
    assert tokens_of("thought_in_content", THOUGHTFUL) == [
        ASK, "hi", ANSWER, THINK, "\n", ["hm", "\n", THOUGHT, "\n", "\n", "yo", DONE],
        3, "yo", DONE, ASK, "ok", ANSWER, THINK, "\n", ["so", "\n", THOUGHT, "\n", "\n", "bye", DONE],
    ]  # fmt: skip
    assert "message 2 has no reasoning" in refusal("thought_in_content", PLAIN)


def test_a_template_that_names_the_tag_has_thoughts_in_the_content_of_history_too():
    tokenizer = word_tokenizer(KINDS["thought_in_content"].special, (THINK, THOUGHT))
    tokenizer.chat_template = KINDS["thought_in_content"].template + "{# a thought ends in </think> #}"
    chat_format = load_chat_format(tokenizer)
    assert shown(tokenizer, render(chat_format, THOUGHTFUL)) == [
        ASK, "hi", ANSWER, THINK, "\n", ["hm", "\n", THOUGHT, "\n", "\n", "yo", DONE],
        ASK, "ok", ANSWER, THINK, "\n", ["so", "\n", THOUGHT, "\n", "\n", "bye", DONE],
    ]  # fmt: skip


# Thoughts that are read, not learned


def test_reasoning_is_context_if_it_is_not_to_be_learned():
    assert tokens_of("thought_in_newest", THOUGHTFUL, train_on_reasoning=False) == [
        TURN, "user", "\n", "hi", OVER, "\n", TURN, "assistant", "\n",
        THINK, "\n", "hm", "\n", THOUGHT, ["\n", "\n", "yo", OVER],
        9, "yo", OVER, "\n", TURN, "user", "\n", "ok", OVER, "\n", TURN, "assistant", "\n",
        THINK, "\n", "so", "\n", THOUGHT, ["\n", "\n", "bye", OVER],
    ]  # fmt: skip
    assert tokens_of("thought_opened", THOUGHTFUL, train_on_reasoning=False) == [
        "<|begin|>", ASK, "hi", ANSWER, THINK, "\n", "hm", "\n", THOUGHT, ["\n", "\n", "yo", DONE],
        4, "yo", DONE, ASK, "ok", ANSWER, THINK, "\n", "so", "\n", THOUGHT, ["\n", "\n", "bye", DONE],
    ]  # fmt: skip


def test_an_empty_thought_is_not_learned_either():
    assert tokens_of("thought_in_newest", PLAIN[:2], train_on_reasoning=False) == [
        TURN, "user", "\n", "hi", OVER, "\n", TURN, "assistant", "\n",
        THINK, "\n", "\n", THOUGHT, ["\n", "\n", "yo", OVER], "\n",
    ]  # fmt: skip


def test_a_template_without_thoughts_is_scored_the_same_without_reasoning():
    assert tokens_of("appends", PLAIN, train_on_reasoning=False) == tokens_of("appends", PLAIN)
