"""A judge elsewhere: asked in both orders over real HTTP, believed only where both agree, and told nobody's key."""

import io
import json
import time

import pytest
from rich.console import Console

from components.conversations.chat_formats.rendered import RenderedConversation
from components.conversations.messages import Conversation, Message
from components.data.token_store import Entry, TokenStore, write_store
from components.experiment.experiment_errors import problems_of
from components.experiment.spec import ExperimentSpec, JudgeSpec, RegistrySpec
from components.registry.judge import MAX_FAILED_IN_A_ROW, JudgeVerdict, judge_answers
from components.registry.judge_client import JudgeClient
from components.registry.judge_questions import questions_of
from components.registry.probes import Probe
from components.registry.side_results import side_results
from components.registry.verification_messages import VerificationReport
from components.registry.verification_worker import verify
from components.statistics.sign_test import sign_test
from tests.support.judge_server import judge_server
from tests.support.toy import assistant, user

KEY = "sk-very-secret-1234"
LONGER = ("a long answer", "short")


def questions(count):
    return [Probe(messages=({"role": "user", "content": f"question {n}"},)) for n in range(count)]


def prefers_longer(first, second, _):
    return "A" if len(first) > len(second) else "B"


def judged(decide, answers, others, **keys):
    """(verdict, requests) of a judge that decides so."""
    with judge_server(decide) as server:
        spec = JudgeSpec(url=server.url, model="toy-judge", **keys)
        client = JudgeClient(spec, waits=(0.0, 0.0))
        return judge_answers(spec, "base", questions(len(answers)), answers, others, client), server.requests


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def test_a_judge_of_length_prefers_the_longer_answers_in_either_order():
    answers, others = ["a long answer"] * 9 + ["no"] + ["same"] * 2, ["short"] * 9 + ["better one"] + ["same "] * 2
    verdict, requests = judged(prefers_longer, answers, others)
    assert (verdict.wins, verdict.losses, verdict.ties) == (9, 1, 2)
    assert verdict.win_rate == pytest.approx(10 / 12)
    assert verdict.p_value == pytest.approx(22 / 1024)
    assert len(requests) == 20  # equal answers are asked about by nobody
    assert {body["model"] for _, body in requests} == {"toy-judge"}
    assert verdict.sentence() == (
        "judge toy-judge: win rate 83% against the base (9 won, 1 lost, 2 tied of 12, sign test p = 0.021)"
    )


def test_a_judge_that_always_says_the_first_has_no_preference():
    verdict, _ = judged(lambda *_: "A", ["a"] * 8, ["b"] * 8)
    assert (verdict.wins, verdict.losses, verdict.ties) == (0, 0, 8)
    assert (verdict.win_rate, verdict.p_value) == (0.5, 1.0)


@pytest.mark.parametrize(
    ("said", "counted"),
    [
        ("A", "ties"),
        ("**T**", "ties"),
        ("<think>A is short, B is long.</think>\nAnswer: T", "ties"),
        ("Both A and B are good.", "malformed"),
        ("I cannot say.", "malformed"),
        ("", "malformed"),
        ((200, {}, "no json"), "malformed"),
        ((200, {}, '{"choices": []}'), "malformed"),
    ],
)
def test_replies_are_read_by_their_letter_or_counted(said, counted):
    verdict, _ = judged(lambda *_: said, ["a"], ["b"])
    assert {name: getattr(verdict, name) for name in ("wins", "losses", "ties", "malformed", "failed")} == {
        "wins": 0,
        "losses": 0,
        "malformed": 0,
        "ties": 0,
        "failed": 0,
    } | {counted: 1}


@pytest.mark.parametrize("status", [429, 500, 503])
def test_what_may_pass_is_tried_again(status):
    def busy_once(first, second, number):
        return (status, {"Retry-After": "0"}, "busy") if number == 1 else prefers_longer(first, second, number)

    verdict, requests = judged(busy_once, LONGER[:1], LONGER[1:])
    assert (verdict.wins, verdict.failed, len(requests)) == (1, 0, 3)


def test_a_model_that_takes_no_temperature_is_asked_without_one():
    def strict(first, second, number):
        return (400, {}, "temperature is not supported") if number == 1 else prefers_longer(first, second, number)

    verdict, requests = judged(strict, LONGER[:1], LONGER[1:])
    assert (verdict.wins, ["temperature" in body for _, body in requests]) == (1, [True, False, False])


def test_an_endpoint_that_refuses_the_key_is_asked_no_more():
    refusal = (401, {}, json.dumps({"error": {"message": f"Incorrect API key provided: {KEY}"}}))
    verdict, requests = judged(lambda *_: refusal, ["a"] * 40, ["b"] * 40)
    assert (verdict.failed, verdict.judged) == (40, 0)
    assert len(requests) <= 4  # those that were under way
    assert verdict.sentence() == (
        "judge toy-judge compared nothing with the base; 40 without a reply left out (HTTP 401 Unauthorized)"
    )


def test_an_endpoint_that_is_gone_is_given_up_and_one_that_hangs_is_left():
    spec = JudgeSpec(url="http://127.0.0.1:9/v1", model="m")
    client = JudgeClient(spec, waits=(0.0, 0.0))
    verdict = judge_answers(spec, "base", questions(30), ["a"] * 30, ["b"] * 30, client)
    assert (verdict.failed, verdict.problem) == (30, "no reply (URLError)")

    def hangs(first, second, number):
        time.sleep(0.5)
        return "A"

    slow, requests = judged(hangs, ["a"], ["b"], timeout_seconds=0.05)
    assert (slow.failed, len(requests)) == (1, 3)
    assert slow.problem.startswith("no reply (")
    assert MAX_FAILED_IN_A_ROW < 30


def test_a_redirect_takes_the_key_nowhere():
    with judge_server(prefers_longer) as other:
        elsewhere = f"{other.url}/chat/completions"
        for status in (302, 307):
            verdict, _ = judged(lambda *_, status=status: (status, {"Location": elsewhere}, ""), ["a"], ["b"])
            assert verdict.failed == 1
        assert other.requests == []


def test_the_key_is_sent_and_stands_in_nothing_that_is_kept(caplog, capsys):
    caplog.set_level(0)
    bad = (500, {}, f"no {KEY}")
    verdict, requests = judged(lambda *_: bad, ["a"], ["b"])
    assert {headers["Authorization"] for headers, _ in requests} == {f"Bearer {KEY}"}
    spec = JudgeSpec(url="https://host/v1", model="m")
    console = Console(file=io.StringIO())
    console.print(verdict)
    kept = [verdict.model_dump_json(), verdict.sentence(), spec.model_dump_json(), console.file.getvalue(), caplog.text]
    assert KEY not in "".join([*kept, *capsys.readouterr()])


def test_without_a_key_none_is_sent(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    _, requests = judged(prefers_longer, ["a"], ["bb"])
    assert all("Authorization" not in headers for headers, _ in requests)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("ftp://host/v1", "must begin with http:// or https://"),
        ("http:///v1", "must begin with http:// or https://"),
        ("https://ann:secret@host/v1", "by the variable that registry.judge.key_env names"),
        ("https://host/v1?api_key=secret", "by the variable that registry.judge.key_env names"),
        ("https://host/v1?of=secret", "must hold no query or fragment"),
    ],
)
def test_an_address_that_holds_a_secret_is_refused_without_showing_it(url, words):
    tree = {
        "name": "toy",
        "model": {"path": "m"},
        "data": {"train": "a.jsonl"},
        "search": {"space": {"lora": {"method": {"kind": "lora"}}}},
        "registry": {"judge": {"url": url, "model": "m"}},
    }
    with pytest.raises(ValueError, match="url") as refused:
        ExperimentSpec.model_validate(tree)
    texts = [str(problem) for problem in problems_of(refused.value, ExperimentSpec)]
    assert any(words in text for text in texts)
    assert "secret" not in "".join(texts)


@pytest.mark.parametrize(
    ("wins", "losses", "p"), [(0, 0, 1.0), (1, 0, 1.0), (5, 5, 1.0), (8, 2, 112 / 1024), (6, 0, 1 / 32)]
)
def test_the_sign_test_is_exact(wins, losses, p):
    assert sign_test(wins, losses) == pytest.approx(p)
    assert sign_test(losses, wins) == sign_test(wins, losses)


# What is judged


def test_the_last_questions_of_conversations_in_words_are_asked(tmp_path):
    talk = Conversation(messages=(user("hi"), assistant("yo"), user("ok"), assistant("bye")), source="a, line 1")
    calls = ({"id": "1", "type": "function", "function": {"name": "add", "arguments": {}}},)
    calling = Conversation(
        messages=(
            user("hi"),
            Message(role="assistant", content="", tool_calls=calls),
            Message(role="tool", content="2"),
        ),
        source="a, line 2",
    )
    rendered = RenderedConversation(token_ids=(1, 2), target_weights=(0, 1), turn_ends=(2,))
    entries = [Entry(source=each.source, rendered=rendered, conversation=each) for each in (calling, talk, talk)]
    write_store(tmp_path / "data.arrow", entries)
    store = TokenStore(tmp_path / "data.arrow")
    (probe,) = questions_of(store, 1)
    assert [message["content"] for message in probe.messages] == ["hi", "yo", "ok"]
    assert len(questions_of(store, 5)) == 2
    assert questions_of(store, -3) == ()


def test_a_verification_answers_the_probes_and_more_questions_for_a_judge(asked, versions):
    more = tuple(questions(2))
    found = verify(asked("lora", judged=True, more_questions=more))
    assert len(found.candidate_said) == len(found.base_said) == 3
    assert found.candidate_said[:1] == found.candidate_answers
    fields = {"incumbent": versions / "lora", "digest": found.digest}
    beside = verify(asked("lora", "incumbent", judged=True, more_questions=more, **fields))
    assert beside.incumbent_said == found.candidate_said
    assert verify(asked("lora")).candidate_said == ()


def test_side_results_ask_the_judge_about_base_and_incumbent():
    report = VerificationReport(
        code="code",
        reply="hello",
        candidate_sums=(1.0,),
        base_sums=(2.0,),
        incumbent_sums=None,
        incumbent_problem=None,
        num_targets=(10,),
        candidate_answers=(),
        base_answers=(),
        candidate_said=("a long answer",) * 6,
        base_said=("short",) * 6,
        incumbent_said=("an even longer answer",) * 6,
    )
    with judge_server(prefers_longer) as server:
        registry = RegistrySpec(judge=JudgeSpec(url=server.url, model="toy-judge"))
        found = side_results(registry, report, questions(6))
    assert [(each.other, each.wins, each.losses) for each in found.judged] == [("base", 6, 0), ("incumbent", 0, 6)]
    assert found.metrics() == {"eval/judge_win_rate/base": 1.0, "eval/judge_win_rate/incumbent": 0.0}
    assert found.tags()["turnwise.judge_against_base"] == found.judged[0].sentence() == found.sentences()[0]
    assert side_results(RegistrySpec(), report, questions(6)).judged == ()
    assert JudgeVerdict.model_validate_json(found.judged[0].model_dump_json()) == found.judged[0]
