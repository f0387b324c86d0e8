"""The scores of what a model says, by name: experiment/spec/metric.py has their directions and meanings.

A score says nothing (None) of a conversation that it has no measure for: json_valid where the reference is no JSON, for one.
Whether it does depends on the question alone, never on the answer: so all models are scored on the same conversations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from components.errors import InputError
from components.experiment.spec import MetricSpec
from components.scoring import overlap
from components.scoring.expectations import is_met
from components.scoring.questions import Question
from components.scoring.reply import Reply
from components.scoring.structure import NOT_JSON, JsonSchema, json_in, same_calls
from components.scoring.user_function import call_function, load_function
from components.scoring.writing import main_script, words_of

Numbers = list[float | None]
NGRAM = 4  # words, in repetition


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplyScore:
    """A score: `applies` says of which questions it says something, `of` is the number of such a question's answer."""

    applies: Callable[[Question], bool]
    of: Callable[[Question, Reply], float]

    def numbers(self, questions: Sequence[Question], replies: Sequence[Reply]) -> Numbers:
        pairs = zip(questions, replies, strict=True)
        return [float(self.of(question, reply)) if self.applies(question) else None for question, reply in pairs]


def score_replies(
    scores: Sequence[MetricSpec],
    questions: Sequence[Question],
    replies: Sequence[Reply],
    *,
    json_schema: Mapping[str, Any] | None = None,
    working_directory: str = "",
) -> dict[str, Numbers]:
    """Returns the number of each answer, or None, by the name of the score.

    Args:
        json_schema: for the score of that name.
        working_directory: where functions of the user are looked for.

    Raises:
        InputError: a function of the user cannot be imported, fails, or returns something else than numbers.
    """
    found: dict[str, Numbers] = {}
    for score in scores:
        if score.is_function:
            function = load_function(score.name, working_directory)
            found[score.name] = call_function(score.name, function, questions, replies)
        else:
            found[score.name] = built_in(score.name, json_schema).numbers(questions, replies)
    return found


def built_in(name: str, json_schema: Mapping[str, Any] | None = None) -> ReplyScore:
    """Returns the score of that name. Raises InputError for json_schema without one, or with one that is none."""
    if name != "json_schema":
        return _SCORES[name]
    if json_schema is None:
        raise InputError("score json_schema: evaluation.generate.json_schema gives no schema")
    schema = JsonSchema(json_schema)
    return ReplyScore(
        applies=lambda question: schema.allows(_reference(question)),
        of=lambda question, reply: schema.allows(_said(reply)),
    )


def _said(reply: Reply) -> str:
    return reply.message.content


def _reference(question: Question) -> str:
    return "" if question.reference is None else question.reference.content


def _has_words(question: Question) -> bool:
    return bool(_reference(question).strip())


def _always(question: Question) -> bool:
    return True


def _length_ratio(question: Question, reply: Reply) -> float:
    lengths = len(_said(reply).strip()), len(_reference(question).strip())
    return min(lengths) / max(lengths)


def repetition(text: str) -> float:
    """Returns the share of 4-grams of words that the text had before; 0 for a text without two of them."""
    words = words_of(text)
    grams = [tuple(words[start : start + NGRAM]) for start in range(len(words) - NGRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def _calls_right(question: Question, reply: Reply) -> bool:
    return question.reference is not None and same_calls(reply.message.tool_calls, question.reference.tool_calls)


_SCORES: dict[str, ReplyScore] = {
    "chrf": ReplyScore(applies=_has_words, of=lambda question, reply: overlap.chrf(_said(reply), _reference(question))),
    "bleu": ReplyScore(applies=_has_words, of=lambda question, reply: overlap.bleu(_said(reply), _reference(question))),
    "rouge_l": ReplyScore(
        applies=_has_words, of=lambda question, reply: overlap.rouge_l(_said(reply), _reference(question))
    ),
    "exact_match": ReplyScore(
        applies=_has_words, of=lambda question, reply: _said(reply).strip() == _reference(question).strip()
    ),
    "expect": ReplyScore(
        applies=lambda question: question.expect is not None,
        of=lambda question, reply: is_met(question.expect or "", _said(reply)),
    ),
    "json_valid": ReplyScore(
        applies=lambda question: isinstance(json_in(_reference(question)), dict | list),
        of=lambda question, reply: json_in(_said(reply)) is not NOT_JSON,
    ),
    "tool_call": ReplyScore(
        applies=lambda question: question.reference is not None and bool(question.reference.tool_calls),
        of=_calls_right,
    ),
    "stop_rate": ReplyScore(applies=_always, of=lambda question, reply: reply.stopped),
    "length_ratio": ReplyScore(applies=_has_words, of=_length_ratio),
    "repetition": ReplyScore(applies=_always, of=lambda question, reply: repetition(_said(reply))),
    "language_kept": ReplyScore(
        applies=lambda question: main_script(_reference(question)) is not None,
        of=lambda question, reply: main_script(_said(reply)) == main_script(_reference(question)),
    ),
}
