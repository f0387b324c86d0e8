"""Conversations that say nearly the same are found in any language, and those that share only boilerplate are not."""

import random
from itertools import product

import pytest

from components.conversations.messages import Conversation, Message
from components.conversations.readers.read import read_conversations
from components.data.near_duplicates import FEWEST, NearDuplicates, words_in
from tests.support.toy import assistant, toy_conversations, user

QUICKSTART = "experiments/data/quickstart.jsonl"
ENGLISH = (
    "My neighbor's dog barks every night when the last train passes, and nobody in the house can sleep any more.",
    "Talk to them on a quiet afternoon and bring a short list of the nights. Most people do not know how far a bark carries.",
)
CHINESE = (
    "邻居家的狗每天夜里末班火车经过的时候都会叫个不停，全家人都睡不好觉，我不知道应该怎么跟他们说这件事。",
    "找一个安静的下午去拜访，带上一张小纸条，写清楚是哪几个晚上。大多数人并不知道狗叫的声音能传多远。",
)
CODE = (
    "Write a loop that adds the squares of a list of numbers.",
    "total = 0\nfor n in xs:\n    total += n * n\nprint(total)",
)


def talk(question, answer, **fields):
    return Conversation(messages=(user(question), assistant(answer)), **fields)


def finder_of(talks, threshold=0.7):
    return NearDuplicates([words_in(each) for each in talks], threshold=threshold)


def similarity(one, other, threshold=0.7):
    """None if they are not near."""
    found = finder_of([one, other], threshold).find([0], [1])
    return found[0].similarity if found else None


@pytest.mark.parametrize(
    ("words", "changes"),
    [
        (ENGLISH, [("every night", "each night"), ("a short list", "a list")]),
        (CHINESE, [("末班火车", "末班列车"), ("安静的下午", "安静的午后")]),
        (CODE, [("numbers", "integers")]),
    ],
    ids=["English", "Chinese", "code"],
)
def test_a_word_that_is_changed_here_and_there_leaves_a_near_duplicate(words, changes):
    changed = list(words)
    for old, new in changes:
        changed = [text.replace(old, new) for text in changed]
    assert changed != list(words)
    assert 0.7 <= similarity(talk(*words), talk(*changed)) < 1
    assert similarity(talk(*words), talk(*changed), threshold=1.0) is None


def test_case_blanks_and_width_make_no_difference_at_any_threshold():
    one, other = talk("What is １＋１ ?", "Two,  I think"), talk("what is 1+1 ?", "two, i\nthink")
    assert similarity(one, other) == similarity(one, other, threshold=1.0) == 1.0
    assert len(words_in(one)) < FEWEST


@pytest.mark.parametrize(("one", "other"), [("2 + 2 = ?", "2 * 2 = ?"), ("say ab", "say ac"), ("你好吗", "你好呀")])
def test_short_conversations_are_near_only_if_their_words_are_equal(one, other):
    assert similarity(talk(one, "4"), talk(other, "4")) is None


def test_the_system_message_and_the_tools_results_are_not_what_is_said():
    long = Message(role="system", content=" ".join(ENGLISH) * 3)
    assert similarity(Conversation(messages=(long, *talk(*ENGLISH).messages)), talk(*ENGLISH)) == 1.0
    assert similarity(Conversation(messages=(long, *talk(*CHINESE).messages)), talk(*ENGLISH)) is None


def test_what_many_conversations_share_is_no_evidence():
    instruction = (
        "Read the review below and answer with one word only, positive or negative, and nothing else. Review: "
    )
    words = [f"{first} {second}" for first, second in product(("good", "bad", "slow", "fine", "odd"), repeat=2)]
    talks = [talk(f"{instruction}{each} film", "positive") for each in words]
    assert similarity(talks[0], talks[1]) > 0.7  # two alone cannot know it
    numbers = range(len(talks))
    assert not any(finder_of(talks).find([number], numbers[number + 1 :]) for number in numbers)


def test_planted_near_duplicates_are_found_and_only_these():
    generator = random.Random(0)
    words = ["".join(generator.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(6)) for _ in range(2000)]
    hanzi = [chr(0x4E00 + number) for number in range(2000)]

    def said(chinese):
        return generator.choices(hanzi, k=90) if chinese else generator.choices(words, k=50)

    held_out = [(said(chinese), chinese) for chinese in (False, True) * 150]
    fresh = [(said(chinese), chinese) for chinese in (False, True) * 300]
    near = []
    for text, chinese in held_out[::3]:
        changed = list(text)
        for position in generator.sample(range(len(text)), 3):
            changed[position] = "变" if chinese else "changed"
        near.append((changed, chinese))

    def talks(texts):
        return [talk(("" if chinese else " ").join(text), "noted") for text, chinese in texts]

    every = talks([*near, *fresh, *held_out])
    others = range(len(every) - len(held_out), len(every))
    found = finder_of(every).find(range(others.start), others)
    assert {index: pair.other - others.start for index, pair in found.items()} == {n: 3 * n for n in range(len(near))}


def test_the_quickstart_repeats_itself_on_purpose_and_only_a_few_are_near():
    talks = read_conversations(QUICKSTART).conversations
    finder, numbers = finder_of(talks), range(len(talks))
    near = set()
    for bit in range(8):  # any two numbers differ in a bit
        found = finder.find([n for n in numbers if n >> bit & 1], [n for n in numbers if not n >> bit & 1])
        near |= {(pair.index, pair.other) for pair in found.values()}
    assert {n + 1 for pair in near for n in pair} == {8, 13, 19, 27, 28, 42, 70}  # lines


def test_the_toy_conversations_of_these_tests_are_all_different():
    talks = list(dict.fromkeys(toy_conversations(300)))
    finder = finder_of(talks)
    assert not finder.find(range(0, len(talks), 2), range(1, len(talks), 2))
