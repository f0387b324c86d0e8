"""A score that is a function of the user: found in the working directory, and refused by name where it is none."""

import pytest

from components.conversations.messages import Conversation
from components.errors import InputError
from components.experiment.spec import MetricSpec
from components.scoring.questions import questions_of
from components.scoring.reply import Reply
from components.scoring.scores import score_replies
from tests.support.toy import assistant, user


class Format:
    """A letter, a token."""

    def prompt(self, messages, tools=()):
        return [ord(letter) for message in messages for letter in message.content]


CONVERSATIONS = [
    Conversation(messages=(user("one"), assistant("1"), user("two"), assistant("2")), source="a, line 1"),
    Conversation(messages=(user("three"), assistant("3")), source="a, line 2", expect="3"),
]
QUESTIONS = questions_of(enumerate(CONVERSATIONS), Format())


def reply(text):
    return Reply(text=text, message=assistant(text), prompt_tokens=1, new_tokens=1, stopped=True)


def scored(folder, module, body, answers=("22", "3")):
    """What a function of this body says; each test has a module of its own, because Python keeps modules by name."""
    (folder / f"{module}.py").write_text(f"def tone(conversations, answers):\n    {body}\n")
    metric = MetricSpec(name=f"{module}:tone", direction="maximize")
    (numbers,) = score_replies([metric], QUESTIONS, list(map(reply, answers)), working_directory=str(folder)).values()
    return numbers


def test_a_function_gets_conversations_and_answers_and_its_numbers_are_taken(tmp_path):
    told = "c['messages'][-1]['content'], c['reference'], c['expect'], c['answer']['stopped'], len(c['messages'])"
    body = f"return [len(a) if ({told}) in {{('two', '2', None, True, 3), ('three', '3', '3', True, 1)}} else -1"
    assert scored(tmp_path, "lengths_of", body + " for c, a in zip(conversations, answers)]") == [2.0, 1.0]


def test_a_function_may_say_nothing_of_a_conversation(tmp_path):
    assert scored(tmp_path, "sometimes_said", "return [None, True]") == [None, 1.0]


@pytest.mark.parametrize(
    ("module", "body", "problem"),
    [
        ("too_few", "return [1.0]", "returned 1 numbers for 2 conversations"),
        ("no_list", "return None", "returned NoneType None"),
        ("words", "return ['good', 'bad']", r"returned list \['good', 'bad'\]"),
        ("not_finite", "return [1.0, float('nan')]", "returned nan for a, line 2; return a finite number, or None"),
        ("raises", "raise KeyError('tone')", "raised KeyError: 'tone'"),
    ],
)
def test_what_is_no_list_of_numbers_is_refused(module, body, problem, tmp_path):
    with pytest.raises(InputError, match=f"score {module}:tone: it {problem}"):
        scored(tmp_path, module, body)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("no_such_module:tone", r"cannot be imported \(ModuleNotFoundError.*is looked for in /.* and on PYTHONPATH"),
        ("broken_module:tone", r"cannot be imported \(ZeroDivisionError"),
        ("there_module:mood", r"there_module.py has no function mood; write def function\(conversations, answers\)"),
    ],
)
def test_a_function_that_is_not_there_is_refused(name, problem, tmp_path):
    (tmp_path / "broken_module.py").write_text("1 / 0\n")
    (tmp_path / "there_module.py").write_text("mood = 3\n")
    metric = MetricSpec(name=name, direction="maximize")
    with pytest.raises(InputError, match=f"score {name}: .*{problem}"):
        score_replies([metric], QUESTIONS, [reply("a")] * 2, working_directory=str(tmp_path))


def test_the_last_scored_answer_whose_prompt_fits_is_asked_for_again():
    conversation = Conversation(
        messages=(
            user("one"),
            assistant("1"),
            user("two"),
            assistant("2"),
            user("six"),
            assistant("6", loss_weight=0.0),
        )
    )
    asked = [
        [
            question.history[-1].content
            for question in questions_of([(4, conversation)], Format(), longest_prompt=longest)
        ]
        for longest in (None, 7, 6, 2)
    ]
    assert asked == [["two"], ["two"], ["one"], []]


def test_probes_are_asked_their_last_question_without_a_reference():
    (question,) = questions_of([(0, Conversation(messages=(user("Who?"),), expect="me"))], Format())
    assert (question.history[-1].content, question.reference, question.expect) == ("Who?", None, "me")
