"""Scores what a model says on conversations: any loaded model, any list of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from components.conversations.chat_formats.chat_format import ChatFormat
from components.conversations.messages import Conversation, Message
from components.data.token_store import TokenStore
from components.errors import InputError
from components.experiment.spec import GenerateSpec, MetricSpec
from components.models.base.context import longest_of
from components.models.load_trained import LoadedModel
from components.records.evaluation_record import ConversationScores
from components.scoring.batched_generation import generate_replies
from components.scoring.generation_plan import GenerationPlan
from components.scoring.kept_casts import casts_kept
from components.scoring.questions import Question, generation_set, questions_of
from components.scoring.reply import Reply
from components.scoring.scores import Numbers, score_replies


def numbers_of(plan: GenerationPlan, questions: Sequence[Question], replies: Sequence[Reply]) -> dict[str, Numbers]:
    """Returns the number of each answer by every score. Raises InputError as score_replies does."""
    schema = plan.generate.json_schema
    return score_replies(
        plan.generate.scores,
        questions,
        replies,
        json_schema=schema if isinstance(schema, Mapping) else None,
        working_directory=plan.working_directory,
    )


def asked_of(plan: GenerationPlan, store: TokenStore) -> tuple[Sequence[tuple[int, Conversation]], int]:
    """Returns the (index, conversation) pairs that are asked, and of how many conversations those are a choice."""
    generate = plan.generate
    if generate.source == "probes":
        return list(enumerate(plan.probes))[: generate.conversations], len(plan.probes)
    return generation_set(store, generate.conversations), len(store)


def askable(
    conversations: Iterable[tuple[int, Conversation]],
    chat_format: ChatFormat,
    config: Any,
    *,
    max_tokens: int,
    max_new_tokens: int,
) -> list[Question]:
    """Returns the questions of (index, conversation) that fit a model: prompt into max_tokens, with its answer into its
    context.

    Args:
        config: the model's; its max_position_embeddings is its context.
    """
    context = longest_of(config)
    longest = max_tokens if context is None else min(max_tokens, context - max_new_tokens)
    return questions_of(conversations, chat_format, longest_prompt=longest)


def score_model(
    loaded: LoadedModel,
    conversations: Iterable[tuple[int, Conversation]],
    count: int,
    plan: GenerationPlan,
    *,
    max_tokens: int,
    max_batch_tokens: int,
) -> dict[str, ConversationScores]:
    """Returns the scores of a model on the (index, conversation) pairs, by name; the weight of the others of `count` is 0.

    A score that says nothing of a conversation, or a conversation whose question does not fit, has the weight 0 there.

    Args:
        max_tokens: of a prompt.
        max_batch_tokens: of all prompts and answers that are generated at once.

    Raises:
        InputError: a function of the user fails, or the model has no row for a token.
    """
    new = plan.generate.max_new_tokens
    questions = askable(
        conversations, loaded.chat_format, loaded.model.config, max_tokens=max_tokens, max_new_tokens=new
    )
    prompts = [question.prompt for question in questions]
    with casts_kept(loaded):  # and no longer: a score may be a user's function, with a model of its own
        replies = generate_replies(loaded, prompts, max_new_tokens=new, max_batch_tokens=max_batch_tokens)
    numbers = numbers_of(plan, questions, replies)
    return {name: by_conversation(questions, each, count) for name, each in numbers.items()}


def by_conversation(questions: Sequence[Question], numbers: Numbers, count: int) -> ConversationScores:
    """Returns the numbers in the order of all `count` conversations; weight 0 where there is none."""
    sums, weights = [0.0] * count, [0.0] * count
    for question, number in zip(questions, numbers, strict=True):
        if number is not None:
            sums[question.index], weights[question.index] = number, 1.0
    return ConversationScores(sums=tuple(sums), weights=tuple(weights))


def check_plan(plan: GenerationPlan, questions: Sequence[Question], metric: MetricSpec) -> list[str]:
    """Tries every score on the references themselves, before anything is trained. Returns remarks.

    Raises InputError if there is no question, if `metric`, which trials are ranked by, says nothing of any of them, or if a
    function of the user cannot be imported, fails, or returns something else than numbers.
    """
    generate = plan.generate
    if not questions:
        raise InputError(
            f"evaluation.generate: no conversation of {generate.source} leaves room for {generate.max_new_tokens} new tokens"
            " in the model's context; lower max_new_tokens"
        )
    known = numbers_of(plan, questions, [_reference_of(question) for question in questions])
    silent = [name for name, numbers in known.items() if all(number is None for number in numbers)]
    if metric.name in silent:
        raise InputError(f"search.metric={metric.name} {_nothing_said(metric.name, len(questions), generate)}")
    return [
        f"evaluation.generate.scores: {name} {_nothing_said(name, len(questions), generate)}, or leave it out"
        for name in silent
    ]


def _reference_of(question: Question) -> Reply:
    message = question.reference or Message(role="assistant", content="")
    return Reply(text=message.content, message=message, prompt_tokens=len(question.prompt), new_tokens=1, stopped=True)


_NEEDS = {
    "expect": "give records an `expect`",
    "json_valid": "it needs references that are JSON objects or lists",
    "json_schema": "it needs references that the schema allows",
    "tool_call": "it needs references that call tools",
}


def _nothing_said(name: str, count: int, generate: GenerateSpec) -> str:
    need = _NEEDS.get(name, "it needs references with words, as conversations of eval have them")
    return f"says nothing of any of the {count} questions ({generate.source}): {need}"
