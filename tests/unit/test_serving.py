"""The server asked by OpenAI's own client: what it says is what the models say alone."""

import asyncio
import json
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from components.experiment.spec import LoraMethod, ModelSpec
from components.inference.generate import reply_to
from components.models.load_trained import load_base, load_trained
from components.scoring.running_batch import RunningBatch
from components.serving.limits import Limits
from components.serving.run_server import _Server
from tests.support.servers import until
from tests.support.serving import base_and_adapters, serving
from tests.support.toy import toy_conversations, user

METHODS = {
    "small": LoraMethod(rank=2),
    "large": LoraMethod(rank=8, target_modules=("q_proj", "v_proj")),
    "dora": LoraMethod(rank=4, dora=True),
}
QUESTIONS = [conversation.messages[0].content for conversation in toy_conversations(6, seed=3)]
TOKENS = 24
SECONDS = 60
FEW = Limits(waiting=4, rows=2, messages=20, prompt_tokens=200, reply_tokens=150, choices=4, body_bytes=20_000)


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """name -> checkpoint of an adapter, and the directory of the base."""
    return base_and_adapters(tmp_path_factory.mktemp("models"), METHODS)


@pytest.fixture(scope="module")
def server(places):
    with serving({name: str(place) for name, place in places.items()}) as running:
        yield running


@pytest.fixture(scope="module")
def client(server):
    return openai.OpenAI(base_url=server.url, api_key="none", max_retries=0, timeout=SECONDS)


def asked(question):
    return [{"role": "user", "content": question}]


def greedy(client, model, question, **options):
    return client.chat.completions.create(
        model=model, messages=asked(question), temperature=0, max_tokens=TOKENS, **options
    )


@pytest.fixture(scope="module")
def alone(places):
    """(model, question) -> what that model says when it is loaded alone."""
    said = {}
    for name, place in places.items():
        loaded = load_base(ModelSpec(path=str(place))) if name == "base" else load_trained(place)
        for question in QUESTIONS:
            said[name, question] = reply_to(loaded, [user(question)], max_new_tokens=TOKENS)
    assert len({reply.text for reply in said.values()}) > len(QUESTIONS)
    return said


def test_adapters_of_one_base_and_the_base_asked_at_once_answer_as_alone(server, client, alone):
    pairs = list(alone)
    with ThreadPoolExecutor(len(pairs)) as people:
        completions = dict(zip(pairs, people.map(lambda pair: greedy(client, *pair), pairs), strict=True))
    for pair, completion in completions.items():
        (choice,) = completion.choices
        assert choice.message.content == alone[pair].message.content, pair
        assert choice.finish_reason == alone[pair].finish_reason
        assert completion.usage.prompt_tokens == alone[pair].prompt_tokens
        assert completion.usage.completion_tokens == alone[pair].new_tokens
    models = [server.models.get(name) for name in ("base", *METHODS)]
    assert len({served.thread for served in models}) == 1
    assert (
        len({served.loaded.model.get_input_embeddings().weight.data_ptr() for served in models}) == 1
    )  # in memory once


def test_a_stream_has_the_pieces_of_the_same_answer(client, alone):
    for question in QUESTIONS:
        chunks = list(greedy(client, "small", question, stream=True, stream_options={"include_usage": True}))
        *parts, last = chunks
        said = "".join(chunk.choices[0].delta.content or "" for chunk in parts)
        assert said == alone["small", question].message.content
        assert parts[0].choices[0].delta.role == "assistant"
        assert parts[-1].choices[0].finish_reason == alone["small", question].finish_reason
        assert last.choices == []
        assert last.usage.completion_tokens == alone["small", question].new_tokens
        assert len({chunk.id for chunk in chunks}) == 1


def test_a_seed_draws_the_same_replies_again_and_no_seed_draws_others(client):
    def drawn(**options):
        completion = client.chat.completions.create(
            model="base", messages=asked(QUESTIONS[0]), n=4, max_tokens=TOKENS, temperature=0.9, top_p=0.95, **options
        )
        assert [choice.index for choice in completion.choices] == [0, 1, 2, 3]
        return [choice.message.content for choice in completion.choices]

    assert drawn(seed=5) == drawn(seed=5) != drawn(seed=6)
    assert len(set(drawn(seed=5))) > 1
    assert drawn() != drawn()


def test_a_reply_ends_before_a_stop_text_which_is_not_shown(client, alone):
    pair, reply = max(alone.items(), key=lambda one: len(set(one[1].message.content.strip()[:12])))
    words = reply.message.content
    stop = words.strip()[3:6]
    expected = words[: words.index(stop)]
    assert expected.strip()
    whole = greedy(client, *pair, stop=[stop, "never said"])
    assert (whole.choices[0].message.content, whole.choices[0].finish_reason) == (expected, "stop")
    assert whole.usage.completion_tokens < reply.new_tokens
    chunks = list(greedy(client, *pair, stop=stop, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected


def test_log_probabilities_are_those_of_the_tokens_that_were_said(client, alone):
    completion = greedy(client, "base", QUESTIONS[0], logprobs=True, top_logprobs=3)
    tokens = completion.choices[0].logprobs.content
    assert "".join(token.token for token in tokens) == completion.choices[0].message.content
    for token in tokens:
        assert len(token.top_logprobs) == 3
        assert token.logprob == max(other.logprob for other in token.top_logprobs) <= 0  # greedy
    streamed = greedy(client, "base", QUESTIONS[0], logprobs=True, stream=True)
    pieces = [chunk.choices[0].logprobs for chunk in streamed if chunk.choices[0].logprobs]
    assert [token.token for piece in pieces for token in piece.content] == [token.token for token in tokens]


def test_a_completion_goes_on_from_a_text(server, client, places):
    loaded = server.models.get("base").loaded
    prompt = loaded.tokenizer.decode(loaded.chat_format.prompt([user(QUESTIONS[0])]))
    expected = reply_to(loaded, [user(QUESTIONS[0])], max_new_tokens=TOKENS)
    completion = client.completions.create(model="base", prompt=[prompt, "abc"], temperature=0, max_tokens=TOKENS)
    assert completion.choices[0].text == expected.text
    assert [choice.index for choice in completion.choices] == [0, 1]
    streamed = client.completions.create(model="base", prompt=prompt, temperature=0, max_tokens=TOKENS, stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed) == expected.text


def test_models_health_and_metrics_say_what_there_is(server, client):
    assert [model.id for model in client.models.list()] == ["base", *METHODS]
    assert client.models.retrieve("dora").id == "dora"
    health = client.get("/../health", cast_to=object)
    assert health["status"] == "ok"
    assert [model["id"] for model in health["models"]] == ["base", *METHODS]
    greedy(client, "large", QUESTIONS[0])
    metrics = client.get("/../metrics", cast_to=str)
    assert 'turnwise_requests_total{model="large",status="200"}' in metrics
    assert "turnwise_replies_waiting 0.0" in metrics


def test_what_a_model_cannot_do_is_said_by_the_api_s_errors(client):
    with pytest.raises(openai.NotFoundError, match="there is no 'other' here; there are base, small, large, dora"):
        greedy(client, "other", "hi")
    with pytest.raises(openai.BadRequestError, match="message 1 is from 'robot'"):
        client.chat.completions.create(model="base", messages=[{"role": "robot", "content": "hi"}])
    with pytest.raises(openai.BadRequestError, match="there is no room for an answer"):
        greedy(client, "base", "a" * 3000)
    with pytest.raises(openai.BadRequestError, match="prompt 1: empty"):
        client.completions.create(model="base", prompt=[])
    with pytest.raises(openai.BadRequestError, match="is in prompt 1"):
        client.completions.create(model="base", prompt=[5, 100_000])


def test_limits_are_told_by_name(places):
    with serving({"base": str(places["base"])}, FEW) as server:
        client = openai.OpenAI(base_url=server.url, api_key="none", max_retries=0, timeout=SECONDS)
        for options, words in [
            ({"n": 5}, "n: 5, and the limit is 4"),
            ({"max_tokens": 151}, "max_tokens: 151, and the limit is 150"),
            ({"messages": asked("hi") * 21}, "messages: 21 of them, and the limit is 20"),
            ({"messages": asked("a" * 300)}, "the prompt's tokens: 3.., and the limit is 200"),
        ]:
            with pytest.raises(openai.BadRequestError, match=words):
                client.chat.completions.create(**{"model": "base", "messages": asked("hi"), **options})
        with pytest.raises(openai.APIStatusError, match="the body has more than 20,000 bytes") as error:
            client.chat.completions.create(model="base", messages=asked("a" * 30_000))
        assert error.value.status_code == 413
        assert client.chat.completions.create(model="base", messages=asked("hi"), max_tokens=3).choices


def test_who_comes_when_too_many_wait_is_told_to_come_again(places):
    with serving({"base": str(places["base"])}, FEW) as server:
        client = openai.OpenAI(base_url=server.url, api_key="none", max_retries=0, timeout=SECONDS)
        thread, entered, go_on = server.models.get("base").thread, threading.Event(), threading.Event()

        def hold():
            with thread.pausing():
                entered.set()
                go_on.wait(SECONDS)

        holder = threading.Thread(target=hold)
        holder.start()
        entered.wait(SECONDS)
        with ThreadPoolExecutor(1) as people:
            waiting = people.submit(
                client.chat.completions.create, model="base", messages=asked("hi"), n=4, max_tokens=4
            )
            until(lambda: thread.waiting == 4, SECONDS)
            with pytest.raises(openai.RateLimitError, match="4 replies wait already, which is the limit") as error:
                greedy(client, "base", "hi")
            assert error.value.response.headers["retry-after"] == "1"
            go_on.set()
            assert len(waiting.result(SECONDS).choices) == 4
        holder.join()


def test_who_leaves_makes_room_for_others(places):
    limits = Limits(rows=1, reply_tokens=10_000)
    with serving({"base": str(places["base"])}, limits) as server:
        thread = server.models.get("base").thread
        client = openai.OpenAI(base_url=server.url, api_key="none", max_retries=0, timeout=SECONDS)
        long = {"model": "base", "messages": asked(QUESTIONS[0]), "temperature": 0, "max_tokens": 900}
        with client.chat.completions.create(**long, stream=True) as stream:
            next(iter(stream))
            until(lambda: thread.at_work == 1, SECONDS)
        until(lambda: thread.at_work == 0, SECONDS)
        with pytest.raises(openai.APITimeoutError):
            client.with_options(timeout=0.2).chat.completions.create(**long)
        until(lambda: thread.at_work == thread.waiting == 0, SECONDS)
        text = client.get("/../metrics", cast_to=str)
        assert 'turnwise_requests_total{model="base",status="499"} 2.0' in text


def test_who_leaves_before_its_turn_is_no_longer_waited_for(places):
    with serving({"base": str(places["base"])}, FEW) as server, ThreadPoolExecutor(1) as people:
        thread = server.models.get("base").thread
        client = openai.OpenAI(base_url=server.url, api_key="none", max_retries=0, timeout=SECONDS)
        with thread.pausing():
            with pytest.raises(openai.APITimeoutError):
                client.with_options(timeout=0.3).chat.completions.create(model="base", messages=asked("hi"), n=4)
            patient = client.with_options(max_retries=5)  # the server hears a moment later that the first one left
            another = people.submit(patient.chat.completions.create, model="base", messages=asked("hi"), n=3)
            until(lambda: thread.waiting == 3, SECONDS)
        assert len(another.result(SECONDS).choices) == 3


def test_a_reply_whose_prompt_is_being_read_when_its_model_is_replaced_is_made(places, monkeypatch):
    reading, read = threading.Event(), RunningBatch.add

    def slowly(batch, rows):
        reading.set()
        time.sleep(0.5)
        read(batch, rows)

    with (
        serving({"base": str(places["base"]), "small": str(places["small"])}) as server,
        ThreadPoolExecutor(1) as people,
    ):
        client = openai.OpenAI(base_url=server.url, api_key="none", max_retries=0, timeout=SECONDS)
        monkeypatch.setattr(RunningBatch, "add", slowly)
        reply = people.submit(greedy, client, "small", QUESTIONS[0])
        assert reading.wait(SECONDS)
        served = server.models.get("small")
        served.thread.remove_model(served.loaded)
        assert reply.result(SECONDS).choices[0].message.content
        assert served.thread.models == 1


def test_a_server_that_ends_tells_those_who_wait(places):
    with serving({"base": str(places["base"])}, Limits(rows=1, reply_tokens=10_000)) as server:
        client = openai.OpenAI(base_url=server.url, api_key="none", max_retries=0, timeout=SECONDS)
        long = {"model": "base", "messages": asked(QUESTIONS[0]), "temperature": 0, "max_tokens": 900, "n": 8}
        with client.chat.completions.create(**long, stream=True) as stream:
            next(iter(stream))
            ending = _Server(server.config, server.models)
            ending.handle_exit(signal.SIGTERM, None)
            with pytest.raises(openai.APIError, match="the server ends"):
                list(stream)
        assert ending.should_exit


def test_a_request_that_takes_too_long_is_ended(places):
    with serving({"base": str(places["base"])}, Limits(request_seconds=0.2, reply_tokens=10_000)) as server:
        client = openai.OpenAI(base_url=server.url, api_key="none", max_retries=0, timeout=SECONDS)
        long = {"model": "base", "messages": asked(QUESTIONS[0]), "temperature": 0, "max_tokens": 900}
        with pytest.raises(openai.InternalServerError, match=r"not answered within 0\.2 seconds") as error:
            client.chat.completions.create(**long)
        assert error.value.status_code == 504
        with pytest.raises(openai.APIError, match=r"not answered within 0\.2 seconds"):
            list(client.chat.completions.create(**long, stream=True))
        until(lambda: server.models.get("base").thread.at_work == 0, SECONDS)


def test_a_model_whose_numbers_are_odd_ends_its_request_and_not_the_server(places, tmp_path):
    with serving({"base": str(places["base"]), "small": str(places["small"])}) as server:
        client = openai.OpenAI(base_url=server.url, api_key="none", max_retries=0, timeout=SECONDS)
        head = server.models.get("base").loaded.model.get_output_embeddings().weight
        kept = head.detach().clone()
        head.data.fill_(float("nan"))
        with pytest.raises(openai.InternalServerError, match="the model's output is not a number"):
            client.chat.completions.create(model="base", messages=asked("hi"), temperature=1.0)
        head.data.copy_(kept)
        assert client.chat.completions.create(model="base", messages=asked("hi"), max_tokens=3).choices
        assert greedy(client, "small", QUESTIONS[0]).choices


def test_many_clients_of_an_event_loop_are_answered(server, alone):
    async def ask_all():
        client = openai.AsyncOpenAI(base_url=server.url, api_key="none", max_retries=0, timeout=SECONDS)
        questions = QUESTIONS * 4
        return await asyncio.gather(
            *(
                client.chat.completions.create(
                    model="small", messages=asked(question), temperature=0, max_tokens=TOKENS
                )
                for question in questions
            )
        )

    completions = asyncio.run(ask_all())
    said = [completion.choices[0].message.content for completion in completions]
    assert said == [alone["small", question].message.content for question in QUESTIONS * 4]


def test_everything_is_json_that_other_clients_read(server, client):
    raw = client.chat.completions.with_raw_response.create(model="base", messages=asked("hi"), max_tokens=2)
    assert set(json.loads(raw.text)) == {"id", "object", "created", "model", "choices", "usage"}
