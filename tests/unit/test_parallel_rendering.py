"""Rendering with several workers: in order, and no further ahead than is read."""

import contextlib
import itertools
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from components.conversations.chat_formats import load_chat_format
from components.conversations.messages import Conversation, Message
from components.data.parallel_rendering import Renderer, render_chunk
from components.data.process_pool import AHEAD, ProcessPool
from components.errors import InputError
from components.experiment.spec import ChatFormatSpec
from tests.support.template_kinds import KINDS
from tests.support.toy import assistant, user


class CountingPool(ThreadPoolExecutor):
    submitted = 0

    def submit(self, *arguments):
        self.submitted += 1
        return super().submit(*arguments)


def test_no_more_chunks_wait_for_their_reader_than_keep_the_workers_busy(tmp_path):
    chat_format = load_chat_format(KINDS["appends"].tokenizer(), ChatFormatSpec())
    endless = (Conversation(messages=(user("hi"), assistant("yo" * n))) for n in itertools.count(1))
    with CountingPool(1) as pool:
        workers = ProcessPool(2)
        workers._pool = pool
        rendered = workers.map(partial(render_chunk, chat_format), ([each] for each in endless))
        read = list(itertools.chain.from_iterable(itertools.islice(rendered, 20)))
        rendered.close()
    assert pool.submitted <= 20 + AHEAD * 2
    wanted = [Conversation(messages=(user("hi"), assistant("yo" * n))) for n in range(1, 21)]
    assert read == [chat_format.render(each) for each in wanted]


@pytest.mark.parametrize("kind", KINDS)
def test_conversations_rendered_together_have_the_tokens_that_each_has_alone(kind):
    chat_format = load_chat_format(KINDS[kind].tokenizer(), ChatFormatSpec())
    talks = [*talks_of_every_shape(), talks_of_every_shape()[0]]
    alone = [render_chunk(chat_format, [each])[0] for each in talks]
    one_by_one = []
    for each in talks:
        with contextlib.suppress(InputError):
            one_by_one.append(chat_format.render(each))
    assert render_chunk(chat_format, talks) == alone
    assert [each for each in alone if not isinstance(each, str)] == one_by_one
    assert one_by_one


def talks_of_every_shape():
    call = {"type": "function", "function": {"name": "add", "arguments": {"two": 2}}}
    tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
    long = " ".join(["hi yo be kind ok"] * 20)
    result = Message(role="tool", content="now five")
    calling = Message(role="assistant", content="", tool_calls=(call,))
    return [
        Conversation(messages=(user("hi"), assistant("yo")), source="a"),
        Conversation(messages=(user(long), assistant(f"{long} <|over|> <|turn|>")), source="b"),
        Conversation(messages=(user("hi"), assistant(long), user(f"<|turn|>{long}"), assistant("yo")), source="c"),
        Conversation(messages=(user("hi"), assistant(f"<think>{long}</think>hm"), user("so"), assistant("ok"))),
        Conversation(messages=(user("hi"), Message(role="assistant", content="ok", reasoning_content=long))),
        Conversation(messages=(user("hi"), assistant("yo", loss_weight=0.0), user(long), assistant(long))),
        Conversation(messages=(user("hi"), calling, result, assistant("ok")), tools=(tool,), source="d"),
        Conversation(messages=(Message(role="system", content=long), user("hi"), assistant("yo")), source="e"),
        Conversation(
            messages=tuple(turn for n in range(40) for turn in (user(f"hi {n}"), assistant(f"yo {n} {long}")))
        ),
    ]


def test_whatever_a_conversation_raises_is_its_own_problem(tmp_path):
    spec = ChatFormatSpec()
    chat_format = load_chat_format(KINDS["appends"].tokenizer(), spec)
    renderer = Renderer(chat_format=chat_format, pool=ProcessPool(1))
    good = Conversation(messages=(user("hi"), assistant("yo")))
    odd = Conversation(messages=(user(None), assistant("yo")), source="a.jsonl, line 2")  # a reader would refuse it
    first, second, third = renderer.render([good, odd, good])
    assert first == third
    assert second.startswith("a.jsonl, line 2: cannot be rendered (")
