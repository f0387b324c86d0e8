"""Rendering with several workers: in order, and no further ahead than is read."""

import itertools
from concurrent.futures import ThreadPoolExecutor

from components.conversations.chat_formats import load_chat_format
from components.conversations.messages import Conversation
from components.data.parallel_rendering import AHEAD, Renderer
from components.experiment.spec import ChatFormatSpec
from tests.support.template_kinds import KINDS
from tests.support.toy import assistant, user


class CountingPool(ThreadPoolExecutor):
    submitted = 0

    def submit(self, *arguments):
        self.submitted += 1
        return super().submit(*arguments)


def test_no_more_chunks_wait_for_their_reader_than_keep_the_workers_busy(tmp_path):
    tokenizer = KINDS["appends"].tokenizer()
    tokenizer.save_pretrained(tmp_path)
    spec = ChatFormatSpec()
    chat_format = load_chat_format(tokenizer, spec)
    renderer = Renderer(chat_format, model_path=tmp_path, spec=spec, processes=2)
    endless = (Conversation(messages=(user("hi"), assistant("yo" * n))) for n in itertools.count(1))
    with CountingPool(1) as pool:
        rendered = renderer._in_order(pool, ([each] for each in endless))
        read = list(itertools.islice(rendered, 20))
        rendered.close()
    assert pool.submitted <= 20 + AHEAD * 2
    wanted = [Conversation(messages=(user("hi"), assistant("yo" * n))) for n in range(1, 21)]
    assert read == [chat_format.render(each) for each in wanted]


def test_whatever_a_conversation_raises_is_its_own_problem(tmp_path):
    spec = ChatFormatSpec()
    renderer = Renderer(
        load_chat_format(KINDS["appends"].tokenizer(), spec), model_path=tmp_path, spec=spec, processes=1
    )
    good = Conversation(messages=(user("hi"), assistant("yo")))
    odd = Conversation(messages=(user(None), assistant("yo")), source="a.jsonl, line 2")  # a reader would refuse it
    first, second, third = renderer.render([good, odd, good])
    assert first == third
    assert second.startswith("a.jsonl, line 2: cannot be rendered (")
