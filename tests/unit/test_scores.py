"""Every score of what a model says, in English and Chinese, against values computed by hand or published by its library."""

import json
import re

import pytest

from components.conversations.chat_formats.rendered import RenderedConversation
from components.conversations.messages import Message
from components.conversations.readers.data_problems import ConversationError
from components.conversations.readers.read import read_conversations
from components.data.token_store import Entry, TokenStore, write_store
from components.errors import InputError
from components.experiment.spec import SCORES_OF_REPLIES
from components.registry.probes import load_probes
from components.scoring import expectations
from components.scoring.questions import Question
from components.scoring.reply import Reply
from components.scoring.scores import built_in
from components.scoring.writing import main_script, words_of
from tests.support.toy import assistant, user


def question(reference, **fields):
    message = reference if isinstance(reference, Message | None) else assistant(reference)
    return Question(index=0, history=(user("?"),), prompt=(1,), reference=message, **fields)


def reply(said, stopped=True):
    message = said if isinstance(said, Message) else assistant(said)
    return Reply(text=message.content, message=message, prompt_tokens=1, new_tokens=1, stopped=stopped)


def number(name, said, reference, *, json_schema=None, stopped=True, **fields):
    return built_in(name, json_schema).numbers([question(reference, **fields)], [reply(said, stopped)])[0]


def calling(name, arguments):
    return Message(role="assistant", content="", tool_calls=({"function": {"name": name, "arguments": arguments}},))


def test_every_name_has_a_score():
    for name in SCORES_OF_REPLIES:
        assert built_in(name, {}).of


# chrF of "我喜欢猫" against "我喜欢狗", F2 of n-grams of characters, of which orders 1 to 4 exist: 3/4, 2/3, 1/2, 0, so
# their mean, precision and recall alike, is 23/48. "abc" against "abcd": precision 1 in orders 1 to 3 and recall 3/4, 2/3,
# 1/2; order 4 exists in the reference only, and sacrebleu leaves it out: P = 1, R = 23/36, F2 = 5PR / (4P + R).
# BLEU of "我喜欢吃苹果" against "我喜欢吃梨子" by characters 4/6, 3/5, 2/4, 1/3: 100 x (1/15)^(1/4).
# "the cat sat on the mat" against "the cat sat on a mat": 5/6, 3/5, 2/4, 1/3, so (1/12)^(1/4).
# ROUGE-L, rouge-score's own example: "testing" of "testing one two" has precision 1 and recall 1/3.
@pytest.mark.parametrize(
    ("name", "said", "reference", "expected"),
    [
        ("chrf", "我喜欢猫", "我喜欢狗", 100 * 23 / 48),
        ("chrf", "abc", "abcd", 100 * 5 * (23 / 36) / (4 + 23 / 36)),
        ("chrf", "猫", "我喜欢狗", 0.0),
        ("bleu", "the cat sat on the mat", "the cat sat on a mat", 100 * (1 / 12) ** 0.25),
        ("bleu", "我喜欢吃苹果", "我喜欢吃梨子", 100 * (1 / 15) ** 0.25),
        ("bleu", "我喜欢吃苹果。", "我喜欢吃苹果。", 100.0),
        ("rouge_l", "testing", "testing one two", 0.5),
        ("rouge_l", "The cat sat!", "the cat sat down", 2 * 1 * 0.75 / 1.75),
        ("rouge_l", "我喜欢猫", "我喜欢狗。", 0.75),
        ("exact_match", " Paris.\n", "Paris.", 1.0),
        ("exact_match", "paris.", "Paris.", 0.0),
        ("exact_match", "北京", "北京", 1.0),
        ("length_ratio", "ab", "abcd", 0.5),
        ("length_ratio", "我喜欢狗。我", "我喜", 1 / 3),
        ("length_ratio", "", "我喜", 0.0),
        ("repetition", "a b c d a b c d", "x", 0.2),  # 5 grams, of which abcd twice
        ("repetition", "好的好的好的好的", "x", 0.6),  # 5 grams, 2 of them distinct
        ("repetition", "one two three", "x", 0.0),
        ("language_kept", "Certainly!", "当然可以。", 0.0),
        ("language_kept", "可以用 Python。你先写一个函数", "当然可以。", 1.0),
        ("language_kept", "当然可以。", "もちろんです。", 0.0),
        ("language_kept", "日本語で話します", "もちろんです。", 1.0),
        ("language_kept", "42", "forty-two", 0.0),
        ("json_valid", '{"a": 1}', '{"a": 2}', 1.0),
        ("json_valid", '```json\n{"名": "王"}\n```', "[1]", 1.0),
        ("json_valid", 'Sure: {"a": 1}', '{"a": 2}', 0.0),
        ("json_valid", '{"a": NaN}', '{"a": 2}', 0.0),
    ],
)
def test_a_score_has_the_value_computed_by_hand(name, said, reference, expected):
    assert number(name, said, reference) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("expect", "said", "met"),
    [
        ("Paris", "it is PARIS.", 1.0),
        ("Paris", "it is Rome.", 0.0),
        ("北京", "首都是北京。", 1.0),
        (r"/^\d{2} km$/", "42 km", 1.0),
        (r"/^\d{2} km$/", "about 42 km", 0.0),
        ("/[一二三]个/", "有三个", 1.0),
    ],
)
def test_expect_holds_words_or_matches_a_pattern(expect, said, met):
    assert number("expect", said, None, expect=expect) == met


@pytest.mark.parametrize(
    ("expect", "problem"),
    [
        ("/(a|a)*$/", "does not end on a text of 40 letters; write it without a repeat inside a repeat"),
        ("/((a{1000}){1000}){1000}/", "no regular expression: larger than 1,000 letters, or than 10,000 repeats"),
        (f"/{'(' * 400}a{')' * 400}/", "no regular expression: maximum recursion depth exceeded"),
    ],
)
def test_an_expression_that_never_ends_is_refused_where_it_is_read(tmp_path, expect, problem):
    with pytest.raises(ConversationError) as caught:
        read_conversations(written(tmp_path, expect=expect))
    assert problem in str(caught.value)


def test_an_answer_on_which_an_expression_never_ends_does_not_hold_it(monkeypatch):
    monkeypatch.setattr(expectations, "MAX_SECONDS", 0.2)
    assert number("expect", "zq" * 40 + "!", None, expect="/(zq|zq)*$/") == 0.0
    assert number("expect", "a zq", None, expect="/(zq|zq)*$/") == 1.0


SCHEMA = {"type": "object", "required": ["城市"], "properties": {"城市": {"type": "string"}}}


@pytest.mark.parametrize(("said", "allowed"), [('{"城市": "上海"}', 1.0), ('{"城市": 3}', 0.0), ("上海", 0.0)])
def test_a_json_schema_is_held_to(said, allowed):
    assert number("json_schema", said, '{"城市": "北京"}', json_schema=SCHEMA) == allowed


def test_a_json_schema_that_is_none_is_refused():
    with pytest.raises(InputError, match=r"evaluation.generate.json_schema: not a JSON Schema: 'text'"):
        built_in("json_schema", {"type": "text"})


@pytest.mark.parametrize(
    ("said", "right"),
    [
        (calling("add", {"b": 2, "a": 1}), 1.0),
        (calling("add", '{"a": 1, "b": 2}'), 1.0),  # as OpenAI's API has arguments
        (calling("add", {"a": 1, "b": 3}), 0.0),
        (calling("sub", {"a": 1, "b": 2}), 0.0),
        (assistant("3"), 0.0),
    ],
)
def test_a_tool_call_needs_the_right_name_and_arguments(said, right):
    assert number("tool_call", said, calling("add", {"a": 1, "b": 2})) == right


def test_an_answer_that_was_cut_off_did_not_stop():
    assert [number("stop_rate", "so", "so", stopped=stopped) for stopped in (True, False)] == [1.0, 0.0]


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("chrf", calling("add", {})),
        ("rouge_l", None),
        ("exact_match", " "),
        ("json_valid", "42"),
        ("json_schema", '{"town": "Rome"}'),
        ("tool_call", "no call"),
        ("language_kept", "42"),
        ("expect", "no expectation"),
    ],
)
def test_a_score_says_nothing_where_it_has_no_measure(name, reference):
    assert number(name, "any", reference, json_schema=SCHEMA) is None


def test_words_are_those_of_all_scripts():
    assert words_of("Don't 你好, café_x 3") == ["don", "t", "你", "好", "café", "x", "3"]


@pytest.mark.parametrize(("text", "script"), [("Привет, you", "CYRILLIC"), ("漢字", "CJK"), ("3 + 4", None)])
def test_the_script_of_most_letters_is_the_main_one(text, script):
    assert main_script(text) == script


# Where an expectation comes from


def written(folder, **keys):
    record = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}], **keys}
    (folder / "data.jsonl").write_text(json.dumps(record) + "\n")
    return str(folder / "data.jsonl")


def test_a_record_says_what_its_answer_should_hold_and_a_store_keeps_it(tmp_path):
    (conversation,) = read_conversations(written(tmp_path, expect="/y./")).conversations
    rendered = RenderedConversation(token_ids=[1, 2], target_weights=[0.0, 1.0], turn_ends=[2])
    write_store(tmp_path / "data.arrow", [Entry(source="a", rendered=rendered, conversation=conversation)])
    assert TokenStore(tmp_path / "data.arrow").conversation(0) == conversation
    assert conversation.expect == "/y./"


@pytest.mark.parametrize(
    ("expect", "problem"),
    [
        ("/(/", '"expect" /(/: no regular expression: missing )'),
        (3, '"expect" must be words or a regular expression as /.../, not 3'),
    ],
)
def test_an_expectation_that_cannot_be_met_is_refused(tmp_path, expect, problem):
    with pytest.raises(ConversationError, match=re.escape(problem)):
        read_conversations(written(tmp_path, expect=expect))
    (tmp_path / "probes.jsonl").write_text(
        json.dumps({"messages": [{"role": "user", "content": "hi"}], "expect": "/(/"})
    )
    with pytest.raises(InputError, match="no regular expression"):
        load_probes(tmp_path / "probes.jsonl")
