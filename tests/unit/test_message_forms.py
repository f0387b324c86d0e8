"""Messages as people have them: roles, calls and thoughts in the words of many tools, alike in files and requests."""

import json

import pytest

from components.conversations.messages import Message
from components.conversations.openai_messages import messages_of
from components.conversations.readers.data_problems import ConversationError
from components.conversations.readers.read import read_conversations
from tests.support.toy import assistant, user

USER, ASSISTANT = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}
ADD = {"name": "add", "arguments": {"a": 1}}
CALL = {"type": "function", "function": ADD}
TWICE = {"type": "function", "function": {"name": "add", "arguments": {"a": 2}}}
RESULT = {"role": "tool", "content": "3"}
THOUGHT = {"type": "thinking", "thinking": "who?"}
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}


def sharegpt(messages):
    names = {"role": "from", "content": "value"}
    return {"conversations": [{names.get(key, key): value for key, value in each.items()} for each in messages]}


LAYOUTS = {"messages": lambda messages: {"messages": messages}, "sharegpt": sharegpt, "nested": list}


def read_in(tmp_path, layout, messages):
    (tmp_path / "a.json").write_text(json.dumps([LAYOUTS[layout](messages)]))
    (conversation,) = read_conversations(str(tmp_path / "a.json"), format=layout).conversations
    return list(conversation.messages)


def told(tmp_path, messages, layout="messages"):
    with pytest.raises(ConversationError) as caught:
        read_in(tmp_path, layout, messages)
    return [problem.text for problem in caught.value.problems]


def read_alike(tmp_path, messages, expected):
    """Files of every layout and a request must give the same messages."""
    assert [read_in(tmp_path, layout, messages) for layout in LAYOUTS] == [expected] * 3
    assert messages_of(messages) == expected


# Roles


@pytest.mark.parametrize("name", ["system", "developer", "SYSTEM", "Developer"])
def test_names_of_the_system(tmp_path, name):
    messages = [{"role": name, "content": "be"}, USER, ASSISTANT]
    read_alike(tmp_path, messages, [Message(role="system", content="be"), user("hi"), assistant("yo")])


@pytest.mark.parametrize("name", ["user", "human", "User", "HUMAN"])
def test_names_of_the_user(tmp_path, name):
    read_alike(tmp_path, [{"role": name, "content": "hi"}, ASSISTANT], [user("hi"), assistant("yo")])


@pytest.mark.parametrize(
    "name", ["assistant", "gpt", "model", "bot", "ai", "chatgpt", "bing", "bard", "ChatGPT", "GPT"]
)
def test_names_of_the_assistant(tmp_path, name):
    read_alike(tmp_path, [USER, {"role": name, "content": "yo"}], [user("hi"), assistant("yo")])


@pytest.mark.parametrize(
    "name", ["tool", "function", "observation", "function_response", "tool_response", "ipython", "Observation", "TOOL"]
)
def test_names_of_a_tool(tmp_path, name):
    messages = [USER, {"role": "assistant", "tool_calls": [CALL]}, {"role": name, "content": "3"}, ASSISTANT]
    calling = Message(role="assistant", content="", tool_calls=(CALL,))
    read_alike(tmp_path, messages, [user("hi"), calling, Message(role="tool", content="3"), assistant("yo")])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["robot", "", None, 3, ["user"]])
def test_any_other_name_is_a_problem(tmp_path, layout, name):
    (text, *_) = told(tmp_path, [USER, {"role": name, "content": "x"}, ASSISTANT], layout)
    assert text == f"message 2 has the role {name!r}; roles are system, user, assistant, tool"
    with pytest.raises(ValueError, match=r"message 1 is from .*; roles are system, user, assistant, tool"):
        messages_of([{"role": name, "content": "x"}])


def test_a_developer_s_message_is_the_system_message_of_its_record(tmp_path):
    (tmp_path / "a.json").write_text(
        json.dumps([{"system": "be", "messages": [{"role": "developer", "content": "do"}, USER, ASSISTANT]}])
    )
    with pytest.raises(ConversationError, match='has a "system" and another system message; give it once'):
        read_conversations(str(tmp_path / "a.json"))


# Calls


@pytest.mark.parametrize("role", ["tool_call", "function_call", "Tool_Call"])
@pytest.mark.parametrize(
    ("content", "calls"),
    [
        ('{"name": "add", "arguments": {"a": 1}}', (CALL,)),
        ('{"name": "add", "arguments": "{\\"a\\": 1}"}', (CALL,)),
        (ADD, (CALL,)),
        (CALL, (CALL,)),
        ({"name": "add", "parameters": {"a": 1}}, (CALL,)),
        ([ADD, TWICE], (CALL, TWICE)),
        (json.dumps([ADD, TWICE]), (CALL, TWICE)),
    ],
)
def test_a_message_may_be_a_call_by_its_role(tmp_path, role, content, calls):
    messages = [USER, {"role": role, "content": content}, RESULT, ASSISTANT]
    calling = Message(role="assistant", content="", tool_calls=calls)
    read_alike(tmp_path, messages, [user("hi"), calling, Message(role="tool", content="3"), assistant("yo")])


def test_calls_in_a_row_are_one_turn_and_so_are_words_before_them(tmp_path):
    said = {"role": "assistant", "content": "let me see"}
    calls = [{"role": "tool_call", "content": json.dumps(call)} for call in (ADD, TWICE["function"])]
    result = Message(role="tool", content="3")
    both = Message(role="assistant", content="", tool_calls=(CALL, TWICE))
    read_alike(tmp_path, [USER, *calls, RESULT, RESULT, ASSISTANT], [user("hi"), both, result, result, assistant("yo")])
    spoken = Message(role="assistant", content="let me see", tool_calls=(CALL, TWICE))
    with_words = [USER, said, *calls, RESULT, RESULT, ASSISTANT]
    read_alike(tmp_path, with_words, [user("hi"), spoken, result, result, assistant("yo")])


def test_words_and_their_call_must_be_scored_alike(tmp_path):
    call = {"role": "tool_call", "content": ADD}
    text = (
        "message 2 and the call in message 3 are one turn of the assistant, but are scored otherwise; give both the"
        " same loss"
    )
    assert told(tmp_path, [USER, {**ASSISTANT, "loss": 0}, call, RESULT, ASSISTANT]) == [text]
    alike = [USER, {**ASSISTANT, "loss": 0}, {**call, "train": False}, RESULT, ASSISTANT]
    spoken = Message(role="assistant", content="yo", tool_calls=(CALL,), loss_weight=0.0)
    assert read_in(tmp_path, "messages", alike)[1] == spoken


@pytest.mark.parametrize("content", [[ADD], [CALL]])
def test_an_assistant_s_content_may_be_a_list_of_calls(tmp_path, content):
    messages = [USER, {"role": "assistant", "content": content}, RESULT, ASSISTANT]
    calling = Message(role="assistant", content="", tool_calls=(CALL,))
    read_alike(tmp_path, messages, [user("hi"), calling, Message(role="tool", content="3"), assistant("yo")])


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (
            {"role": "assistant", "content": [{"name": "add"}]},
            "message 2 has 'name' as part 1 of its content; only text",
        ),
        ({"role": "tool_call", "content": "add(1)"}, "message 2 has a function call that is not JSON: Expecting value"),
        (
            {"role": "tool_call", "content": '{"name": "ad'},
            "message 2 has a function call that is not JSON: Unterminated",
        ),
        ({"role": "tool_call", "content": "[3]"}, 'message 2 has a function call that is no object with "name" and'),
        ({"role": "tool_call", "content": []}, "message 2 is a function call, but an empty one"),
        ({"role": "function_call"}, "message 2 is a function call, but an empty one"),
    ],
)
def test_what_is_no_call_is_a_problem(tmp_path, message, text):
    assert [found[: len(text)] for found in told(tmp_path, [USER, message])] == [text]


def test_words_that_look_like_calls_are_words(tmp_path):
    words = json.dumps([ADD])
    read_alike(tmp_path, [USER, {"role": "assistant", "content": words}], [user("hi"), assistant(words)])
    assert told(tmp_path, [{"role": "user", "content": [ADD]}, ASSISTANT]) == [
        "message 1 has 'name' as part 1 of its content; only text (\"text\") can be trained on"
    ]


def test_calls_are_given_once(tmp_path):
    text = "message 2 has calls as its content, and others beside it; give them once"
    for message in (
        {"role": "tool_call", "content": ADD, "tool_calls": [CALL]},
        {"role": "function_call", "content": ADD, "function_call": ADD},
        {"role": "assistant", "content": [ADD], "tool_calls": [CALL]},
    ):
        assert told(tmp_path, [USER, message, RESULT, ASSISTANT]) == [text]
    given = [USER, {"role": "tool_call", "tool_calls": [CALL]}, RESULT, ASSISTANT]
    assert read_in(tmp_path, "messages", given)[1] == Message(role="assistant", content="", tool_calls=(CALL,))


@pytest.mark.parametrize("arguments", [{"a": 1}, '{"a": 1}'])
def test_several_calls_of_a_turn_keep_their_order_and_ids(tmp_path, arguments):
    calls = [
        {"id": f"c{n}", "function": {"name": name, "arguments": arguments}} for n, name in enumerate(["add", "sub"])
    ]
    results = [{**RESULT, "tool_call_id": f"c{n}"} for n in range(2)]
    expected = tuple(
        {"id": f"c{n}", "type": "function", "function": {"name": name, "arguments": {"a": 1}}}
        for n, name in enumerate(["add", "sub"])
    )
    read_alike(
        tmp_path,
        [USER, {"role": "assistant", "content": None, "tool_calls": calls}, *results, ASSISTANT],
        [
            user("hi"),
            Message(role="assistant", content="", tool_calls=expected),
            Message(role="tool", content="3", tool_call_id="c0"),
            Message(role="tool", content="3", tool_call_id="c1"),
            assistant("yo"),
        ],
    )


def test_the_older_function_call_is_a_call(tmp_path):
    older = {"role": "assistant", "content": None, "function_call": {"name": "add", "arguments": '{"a": 1}'}}
    messages = [USER, older, {"role": "function", "name": "add", "content": "3"}, ASSISTANT]
    calling, result = (
        Message(role="assistant", content="", tool_calls=(CALL,)),
        Message(role="tool", content="3", name="add"),
    )
    read_alike(tmp_path, messages, [user("hi"), calling, result, assistant("yo")])


# Thoughts


@pytest.mark.parametrize(
    "keys",
    [
        {"content": "yo", "reasoning_content": "who?"},
        {"content": "yo", "reasoning": "who?"},
        {"content": "yo", "thinking": "who?"},
        {"content": "yo", "reasoning": "who?", "reasoning_content": "who?"},
        {"content": [THOUGHT, {"type": "text", "text": "yo"}]},
        {"content": [{"type": "reasoning", "reasoning": "who?"}, {"type": "text", "text": "yo"}]},
        {"content": [{"type": "reasoning", "text": "who?"}, {"type": "text", "text": "yo"}]},
        {"content": [{**THOUGHT, "signature": "x"}, {"type": "text", "text": "yo"}]},
        {
            "content": [
                {"type": "thinking", "thinking": [{"type": "text", "text": "who?"}]},
                {"type": "text", "text": "yo"},
            ]
        },
        {"content": [{**THOUGHT, "thinking": "wh"}, {**THOUGHT, "thinking": "o?"}, {"type": "text", "text": "yo"}]},
        {"content": [THOUGHT, {"type": "text", "text": "yo"}], "thinking": "who?"},
    ],
)
def test_a_thought_is_the_reasoning_of_its_message(tmp_path, keys):
    expected = [user("hi"), Message(role="assistant", content="yo", reasoning_content="who?")]
    read_alike(tmp_path, [USER, {"role": "assistant", **keys}], expected)


def test_a_thought_may_lead_to_a_call_without_words(tmp_path):
    messages = [USER, {"role": "assistant", "content": [THOUGHT], "tool_calls": [CALL]}, RESULT, ASSISTANT]
    calling = Message(role="assistant", content="", tool_calls=(CALL,), reasoning_content="who?")
    read_alike(tmp_path, messages, [user("hi"), calling, Message(role="tool", content="3"), assistant("yo")])


@pytest.mark.parametrize(
    ("content", "more", "number"),
    [
        ([{"type": "text", "text": "yo"}, THOUGHT], {}, 2),  # where it would be shown otherwise
        ([THOUGHT, {"type": "text", "text": "yo"}], {"reasoning": "what?"}, 1),
        ([{"type": "thinking", "thinking": 3}, {"type": "text", "text": "yo"}], {}, 1),
    ],
)
def test_a_thought_that_would_be_lost_or_moved_is_a_problem(tmp_path, content, more, number):
    rule = "an assistant's thoughts are texts, come before what it says, and are given once"
    text = f"message 2 has 'thinking' as part {number} of its content; {rule}"
    message = {"role": "assistant", "content": content, **more}
    assert told(tmp_path, [USER, message]) == [text]
    with pytest.raises(ValueError, match=text):
        messages_of([USER, message])


def test_only_an_assistant_thinks(tmp_path):
    asked = {"role": "user", "content": [THOUGHT, {"type": "text", "text": "hi"}]}
    assert told(tmp_path, [asked, ASSISTANT]) == [
        "message 1 has 'thinking' as part 1 of its content; only text (\"text\") can be trained on"
    ]
    assert messages_of([{**USER, "reasoning_content": "who?"}]) == [user("hi")]


def test_a_request_with_two_reasonings_is_refused_as_a_record_is():
    with pytest.raises(ValueError, match="message 1 has different texts as reasoning_content, reasoning, thinking"):
        messages_of([{**ASSISTANT, "reasoning": "a", "thinking": "b"}])
    with pytest.raises(ValueError, match="message 1 has reasoning that is no text"):
        messages_of([{**ASSISTANT, "reasoning": {"effort": "low"}}])


# Parts that are no text


@pytest.mark.parametrize(
    ("part", "kind"),
    [
        (PICTURE, "image_url"),
        ({"type": "image", "image": "a.png"}, "image"),
        ({"image": "a.png"}, "image"),
        ({"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}, "input_audio"),
        ({"type": "video", "video": "a.mp4"}, "video"),
        ({"type": "file", "file": {"file_id": "a"}}, "file"),
    ],
)
def test_a_part_that_is_no_text_is_refused_by_name(tmp_path, part, kind):
    asked = {"role": "user", "content": [{"type": "text", "text": "what is it?"}, part]}
    text = f'message 1 has {kind!r} as part 2 of its content; only text ("text") can be trained on'
    assert told(tmp_path, [asked, ASSISTANT]) == [text]
    with pytest.raises(ValueError, match=f"message 1 has {kind!r} as part 2 of its content; only text"):
        messages_of([asked])


# Requests


def test_messages_and_dicts_may_be_mixed_in_a_conversation():
    given = [user("a"), {"role": "model", "content": "b"}, user("c"), {"role": "robot", "content": "d"}]
    assert messages_of(given[:3]) == [user("a"), assistant("b"), user("c")]
    with pytest.raises(ValueError, match="message 4 is from 'robot'"):
        messages_of(given)


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (RESULT | {"content": {"a": 1}}, '{"a": 1}'),
        (RESULT | {"content": 0}, "0"),
        (RESULT | {"content": []}, "[]"),
        (RESULT | {"content": None}, ""),
        ({"role": "assistant", "content": [], "refusal": "no"}, "no"),
    ],
)
def test_the_text_of_a_request_is_that_of_a_file(message, text):
    assert [each.content for each in messages_of([message])] == [text]


def test_a_request_s_call_that_cannot_be_read_is_named():
    with pytest.raises(ValueError, match="message 1 has a function call that is not JSON"):
        messages_of([{"role": "tool_call", "content": "add(1)"}])
    with pytest.raises(ValueError, match="message 1 is a function call, but an empty one"):
        messages_of([{"role": "tool_call", "content": ""}])


# Records


@pytest.mark.parametrize("key", ["chat_template_kwargs", "chat_template_arguments"])
def test_a_record_has_no_arguments_of_the_template(tmp_path, key):
    (tmp_path / "a.json").write_text(json.dumps([{"messages": [USER, ASSISTANT], key: {"enable_thinking": False}}]))
    with pytest.raises(ConversationError) as caught:
        read_conversations(str(tmp_path / "a.json"))
    assert [problem.text for problem in caught.value.problems] == [
        f'has the unknown key "{key}"; the experiment gives them, for all conversations: chat_template_arguments'
        " (data.unknown_keys=ignore reads on without it)"
    ]
