"""ChatGLM3's published records: tool messages, histories with metadata, AdvertiseGen's pairs; down to its own tokens."""

import json

import pytest

from components.conversations.chat_formats import load_chat_format
from components.conversations.messages import Conversation, Message
from components.conversations.readers.data_problems import ConversationError
from components.conversations.readers.read import read_conversations
from components.conversations.tokenizers.chatglm3 import convert_tokenizer
from tests.support.toy import assistant, user
from tests.support.toy_chatglm import DATA, REAL_TOKENIZER, needs_the_real_tokenizer

# A record as the README of ChatGLM3's finetune_demo has it, with its words filled in.
TOOL = {"name": "get_current_weather", "parameters": {"type": "object", "properties": {"location": {"type": "string"}}}}
PUBLISHED = {
    "tools": [TOOL],
    "conversations": [
        {"role": "system", "content": "Answer the following questions."},
        {"role": "user", "content": "北京天气怎么样"},
        {"role": "assistant", "content": "I need to look."},
        {
            "role": "tool",
            "name": "get_current_weather",
            "parameters": {"location": "北京"},
            "observation": {"temperature": 22, "unit": "℃"},
        },
        {"role": "assistant", "content": "22 ℃。"},
    ],
}
CALL = {"type": "function", "function": {"name": "get_current_weather", "arguments": {"location": "北京"}}}
CODE = "```python\ntool_call(location='北京')\n```"
USER, ASSISTANT = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}


def read_one(tmp_path, record, **options):
    file = tmp_path / "a.json"
    file.write_text(json.dumps([record], ensure_ascii=False), encoding="utf-8")
    (conversation,) = read_conversations(str(file), **options).conversations
    return conversation


def told(tmp_path, record):
    with pytest.raises(ConversationError) as caught:
        read_one(tmp_path, record)
    return [problem.text for problem in caught.value.problems]


def test_a_published_tool_message_is_a_thought_with_a_call_and_its_result(tmp_path):
    conversation = read_one(tmp_path, PUBLISHED)
    assert conversation.tools == (TOOL,)
    assert list(conversation.messages) == [
        Message(role="system", content="Answer the following questions."),
        user("北京天气怎么样"),
        Message(role="assistant", content="I need to look.", tool_calls=(CALL,)),
        Message(role="tool", content='{"temperature": 22, "unit": "℃"}', name="get_current_weather"),
        assistant("22 ℃。"),
    ]


def test_tool_messages_without_a_thought_or_in_a_row_are_separate_calls(tmp_path):
    called = {"role": "tool", "name": "get_current_weather", "parameters": {"location": "北京"}, "observation": "雨"}
    messages = read_one(tmp_path, {"messages": [USER, called, {**called, "loss": False}, ASSISTANT]}).messages
    result = Message(role="tool", content="雨", name="get_current_weather")
    assert list(messages) == [
        user("hi"),
        Message(role="assistant", content="", tool_calls=(CALL,)),
        result,
        Message(role="assistant", content="", tool_calls=(CALL,), loss_weight=0.0),
        result,
        assistant("yo"),
    ]


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        (
            [USER, {"role": "tool", "parameters": {}, "observation": "3"}, ASSISTANT],
            'message 2 has parameters or an observation, but no "name" of a tool',
        ),
        (
            [USER, {"role": "tool", "name": "add", "content": "3", "observation": "3"}, ASSISTANT],
            "message 2 has both a content and an observation; the observation is its content",
        ),
        (
            [USER, {"role": "tool", "name": "add", "parameters": {}}, ASSISTANT],
            "message 2 must have a text as content, not NoneType",
        ),
        (
            [USER, {"role": "tool", "name": "add", "parameters": "{", "observation": "3"}, ASSISTANT],
            'message 2 calls "add" with arguments that are not JSON: Expecting property name enclosed in double quotes;'
            " it was cut",
        ),
        (
            [USER, {**ASSISTANT, "loss": False}, {"role": "tool", "name": "add", "observation": "3"}, ASSISTANT],
            "message 2 and the call in message 3 are one turn of the assistant, but are scored otherwise; give both the"
            " same loss",
        ),
        (
            [USER, {"role": "tool", "name": "add", "observation": "3", "parameter": {}, "state": 1}, ASSISTANT],
            'message 2 has the unknown key "state" (data.unknown_keys=ignore reads on without it)',
        ),
    ],
)
def test_a_tool_message_that_is_not_whole_is_a_problem(tmp_path, messages, text):
    assert told(tmp_path, {"messages": messages}) == [text]


def test_tools_described_in_words_are_in_the_system_message_as_in_chatglm3(tmp_path):
    described = ["getWeather(city): the weather of a city"]  # as its format_tool_alpaca.py writes them
    called = {"role": "tool", "name": "getWeather", "parameters": {"city": "北京"}, "observation": "雨"}
    turns = [USER, {"role": "assistant", "content": "I need to look."}, called, ASSISTANT]
    conversation = read_one(tmp_path, {"tools": described, "conversations": turns})
    text = '[\n    "getWeather(city): the weather of a city"\n]'
    introduction = "Answer the following questions as best as you can. You have access to the following tools:"
    assert (conversation.messages[0].content, conversation.tools) == (f"{introduction}\n{text}", ())
    assert [message.role for message in conversation.messages] == ["system", "user", "assistant", "tool", "assistant"]
    own = read_one(
        tmp_path, {"tools": described, "conversations": [{"role": "system", "content": "Be brief."}, *turns]}
    )
    assert own.messages[0].content == f"Be brief.\n{text}"


# Metadata


def test_metadata_of_a_history_names_one_of_the_tools_or_the_interpreter(tmp_path):
    history = [
        {"role": "system", "content": "s", "tools": [TOOL]},
        {"role": "user", "content": "a"},
        {"role": "assistant", "metadata": "", "content": "let me see"},
        {"role": "assistant", "metadata": "get_current_weather", "content": CODE},
        {"role": "observation", "content": "雨"},
        {"role": "assistant", "metadata": "interpreter", "content": "```python\nprint(1)\n```"},
        {"role": "observation", "content": "1"},
        {"role": "assistant", "metadata": "", "content": "c"},
    ]
    interpreted = {"type": "function", "function": {"name": "interpreter", "arguments": {"code": "print(1)"}}}
    for record in ({"messages": history}, {"conversations": history}, history):
        conversation = read_one(tmp_path, record, format="auto")
        assert conversation.tools == (TOOL,)
        assert list(conversation.messages) == [
            Message(role="system", content="s"),
            user("a"),
            Message(role="assistant", content="let me see", tool_calls=(CALL,)),
            Message(role="tool", content="雨"),
            Message(role="assistant", content="", tool_calls=(interpreted,)),
            Message(role="tool", content="1"),
            assistant("c"),
        ]


def test_metadata_names_a_tool_that_is_listed_nowhere_if_an_observation_follows(tmp_path):
    told_in_words = [
        {"role": "system", "content": 'You may call [{"name": "get_current_weather"}].'},
        USER,
        {"role": "assistant", "metadata": "get_current_weather", "content": CODE},
        {"role": "observation", "content": "雨"},
        ASSISTANT,
    ]
    assert read_one(tmp_path, {"conversations": told_in_words}).messages[2].tool_calls == (CALL,)


@pytest.mark.parametrize("metadata", [{"model": "gpt-4"}, "gpt-4", "get_weather", ["get_current_weather"], 7])
@pytest.mark.parametrize("key", ["messages", "conversations"])
def test_any_other_metadata_is_an_unknown_key_and_never_a_call(tmp_path, metadata, key):
    record = {key: [USER, {**ASSISTANT, "metadata": metadata}], "tools": [TOOL]}
    (text,) = told(tmp_path, record)
    assert text.startswith('message 2 has the unknown key "metadata"; in ChatGLM3\'s records it is a text that names')
    assert read_one(tmp_path, record, unknown_keys="ignore").messages == (user("hi"), assistant("yo"))


# System messages and pairs


def test_a_system_message_that_has_only_tools_is_tools(tmp_path):
    record = {"messages": [{"role": "system", "tools": [TOOL]}, USER, ASSISTANT]}
    conversation = read_one(tmp_path, record)
    assert (conversation.messages, conversation.tools) == ((user("hi"), assistant("yo")), (TOOL,))
    other = {**record, "tools": [{"name": "add"}]}
    assert told(tmp_path, other) == ["has tools for the record and others in its system message; give them once"]


def test_advertisegen_s_content_and_summary_are_a_question_and_its_answer(tmp_path):
    record = {"content": "类型#裤*版型#宽松", "summary": "宽松的阔腿裤。"}
    assert list(read_one(tmp_path, record).messages) == [user("类型#裤*版型#宽松"), assistant("宽松的阔腿裤。")]


def test_pairs_may_have_a_history_and_a_system_message(tmp_path):
    record = {"prompt": "c", "response": "d", "history": [["a", "b"]], "system": "s", "id": 1}
    expected = [Message(role="system", content="s"), user("a"), assistant("b"), user("c"), assistant("d")]
    assert list(read_one(tmp_path, record, format="pairs").messages) == expected
    assert list(read_one(tmp_path, record).messages) == expected
    (text,) = told(tmp_path, {**record, "response": 3})
    assert text == '"response" must be a str, not int'


# Down to tokens


@pytest.fixture(scope="module")
def golden():
    return json.loads((DATA / "chatglm3_golden.json").read_text(encoding="utf-8"))


@needs_the_real_tokenizer
def test_a_record_of_the_published_format_has_the_tokens_of_the_original_s_code(tmp_path, golden):
    chat_format = load_chat_format(convert_tokenizer(REAL_TOKENIZER), "chatglm3")
    weather = golden["chat_input"][5]  # a system message with tools, and a question: the original's build_chat_input
    (history,) = weather["history"]
    call = next(one for one in golden["single_message"] if one["metadata"] == "get_current_weather")
    record = {
        "tools": history["tools"],
        "conversations": [
            {"role": "system", "content": history["content"]},
            {"role": "user", "content": weather["query"]},
            {"role": "tool", "name": call["metadata"], "parameters": {"location": "北京"}, "observation": "1"},
            {"role": "assistant", "content": "你好"},
        ],
    }
    said = [64797, 30910, 13, 344]  # <|observation|> and its empty metadata line, then the result's first token
    rendered = chat_format.render(read_one(tmp_path, record))
    called = [*weather["ids"][:-1], *call["ids"]]
    assert list(rendered.token_ids[: len(called)]) == called
    assert list(rendered.token_ids[len(called) :][:3]) == said[:3]
    assert list(rendered.token_ids[-6:]) == [64796, 30910, 13, 36474, 54591, 2]
    # Scored: the call through the observation's role token, which is its stop, and the answer through </s>.
    start = len(weather["ids"])
    scored = [place for place, weight in enumerate(rendered.target_weights) if weight > 0]
    end = len(rendered.token_ids)
    assert scored == [*range(start, len(called) + 1), *range(end - 5, end)]


@needs_the_real_tokenizer
def test_reasoning_is_refused_by_chatglm3_s_format_which_has_no_place_for_it():
    chat_format = load_chat_format(convert_tokenizer(REAL_TOKENIZER), "chatglm3")
    messages = (user("hi"), Message(role="assistant", content="yo", reasoning_content="who?"))
    with pytest.raises(
        ValueError, match=r"a\.json, record 7: message 2: chat_format chatglm3 does not show its reasoning"
    ):
        chat_format.render(Conversation(messages=messages, source="a.json, record 7"))
    with pytest.raises(
        ValueError, match=r"prompt: message 2: chat_format chatglm3 does not show its reasoning_content"
    ):
        chat_format.prompt([*messages, user("ok")])
