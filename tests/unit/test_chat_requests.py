"""Requests in OpenAI's words: what is understood, and how the rest is refused."""

import json

import pytest

from components.errors import InputError
from components.serving.chat_request import ChatRequest, CompletionRequest, parse_request

ASKED = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def chat(**fields):
    return parse_request(json.dumps({**ASKED, **fields}).encode(), ChatRequest)


def test_a_request_that_says_nothing_has_the_defaults_of_the_api():
    request = chat()
    assert (request.drawing, request.reply_tokens, request.alternatives) == (1.0, None, None)
    assert request.offered_tools == []


@pytest.mark.parametrize(
    "field",
    [
        {"frequency_penalty": 0.0},
        {"logit_bias": {}},
        {"response_format": {"type": "text"}},
        {"parallel_tool_calls": True},
        {"user": "someone", "metadata": {"a": "b"}, "store": False},
        {"modalities": ["text"]},
    ],
)
def test_what_asks_for_nothing_is_no_reason_to_refuse(field):
    assert chat(**field) == chat()


@pytest.mark.parametrize(
    ("field", "words"),
    [
        ({"frequency_penalty": 0.5}, "frequency_penalty: not supported; leave it out, or give 0"),
        ({"logit_bias": {"5": 1}}, "logit_bias: not supported; leave it out, or give {}"),
        ({"tool_choice": "required"}, 'tool_choice: not supported; leave it out, or give "none"'),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice: not supported"),
        ({"response_format": {"type": "json_object"}}, "response_format: not supported"),
        ({"top_k": 5}, "top_k: not supported; leave it out; known are "),
        ({"temperature": -1}, "temperature: Input should be greater than or equal to 0, not -1"),
        ({"temperature": 1e-9}, "temperature: must be 0 (greedy) or at least 0.001, not 1e-09"),
        ({"temperature": True}, "temperature: Input should be a valid number, not true"),
        ({"top_p": 0}, "top_p: Input should be greater than 0, not 0"),
        ({"n": 0}, "n: Input should be greater than or equal to 1, not 0"),
        ({"n": 1.5}, "n: Input should be a valid integer, not 1.5"),
        ({"max_tokens": 0}, "max_tokens: Input should be greater than or equal to 1, not 0"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens, max_completion_tokens: two names of one limit"),
        ({"seed": 2**63}, "seed: Input should be less than"),
        ({"stop": ["a"] * 5}, "stop: List should have at most 4 items"),
        ({"stop": ""}, "stop: each must have 1 to 200 characters, not 0"),
        ({"top_logprobs": 3}, "top_logprobs: only with logprobs: true"),
        ({"stream_options": {"include_usage": True}}, "stream_options: only with stream: true"),
        ({"messages": []}, "messages: List should have at least 1 item"),
        ({"messages": "hi"}, 'messages: Input should be a valid list, not "hi"'),
        ({"messages": ["hi"]}, 'messages.0: Input should be a valid dictionary, not "hi"'),
        ({"model": 5}, "model: Input should be a valid string, not 5"),
    ],
)
def test_what_would_not_be_honored_is_refused_by_its_name(field, words):
    with pytest.raises(InputError) as error:
        chat(**field)
    assert words in str(error.value)


def test_all_that_is_wrong_is_said_at_once():
    with pytest.raises(InputError) as error:
        parse_request(b'{"temperature": "warm", "top_k": 3, "messages": []}', ChatRequest)
    assert [sentence.split(":")[0] for sentence in str(error.value).split("; ") if ":" in sentence] == [
        "model",
        "temperature",
        "messages",
        "top_k",
    ]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "the body is no JSON"),
        (b"{", "the body is no JSON"),
        (b"\xff\xfe", "the body is no JSON"),
        (b'{"temperature": NaN}', "NaN is no JSON"),
        (b"[" * 100_000, "the body is no JSON"),
        (b"[1]", "the body must be a JSON object, not [1]"),
        (b'{"max_tokens": "\\ud800"}', "the body is no JSON"),  # half of a surrogate pair
    ],
)
def test_what_is_no_json_object_is_refused(body, words):
    with pytest.raises(InputError, match=words.replace("[", r"\[")):
        parse_request(body, ChatRequest)


def test_one_stop_is_a_list_of_one():
    assert chat(stop="###").stop == ["###"]
    assert chat(stop=["a", "b"]).stop == ["a", "b"]


def test_tools_that_must_not_be_called_are_not_offered():
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert chat(tools=tools).offered_tools == tools
    assert chat(tools=tools, tool_choice="none").offered_tools == []


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [("a", ["a"]), (["a", "b"], ["a", "b"]), ([1, 2], [[1, 2]]), ([[1], [2, 3]], [[1], [2, 3]])],
)
def test_a_completion_has_one_prompt_or_several_as_text_or_tokens(prompt, prompts):
    request = parse_request(json.dumps({"model": "m", "prompt": prompt}).encode(), CompletionRequest)
    assert request.prompts == prompts


@pytest.mark.parametrize("prompt", [[-1], [[5], [-1]], [2**31], [10**30], [True], [1.0]])
def test_what_is_no_token_is_no_prompt(prompt):
    with pytest.raises(InputError, match="prompt"):
        parse_request(json.dumps({"model": "m", "prompt": prompt}).encode(), CompletionRequest)
