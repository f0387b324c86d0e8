"""Scores what a running trial's model says at an evaluation: every worker generates its share of the questions."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedTokenizerBase

from components.conversations.chat_formats import load_chat_format
from components.conversations.chat_formats.chat_format import ChatFormat
from components.conversations.load_format import format_spec_in
from components.conversations.messages import Conversation
from components.conversations.tokenizers.load_tokenizer import load_tokenizer
from components.data.token_store import TokenStore
from components.errors import InputError
from components.models.base.load_base import resolve_model
from components.models.base.reference import BaseReference
from components.models.load_trained import LoadedModel
from components.records.evaluation_record import ConversationScores
from components.scoring.batched_generation import generate_replies
from components.scoring.generation_plan import GenerationPlan
from components.scoring.questions import Question
from components.scoring.score_model import askable, asked_of, by_conversation, numbers_of
from components.scoring.scores import Numbers
from components.training.evaluate import over_workers
from components.training.loss import ScoredModel
from components.training.workers import Workers

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ReplyScores:
    """What is asked of the trials of a search. `conversations` are (index, conversation) of a list of `count`."""

    plan: GenerationPlan
    tokenizer: PreTrainedTokenizerBase
    chat_format: ChatFormat
    conversations: Sequence[tuple[int, Conversation]]
    count: int
    max_tokens: int

    @classmethod
    def of(cls, plan: GenerationPlan, store: TokenStore, base: BaseReference, max_tokens: int) -> ReplyScores:
        """`store` has the held-out conversations; their questions are asked unless the plan says `from: probes`."""
        directory = resolve_model(base.model, weights=False)
        tokenizer = load_tokenizer(directory)
        conversations, count = asked_of(plan, store)
        return cls(
            plan=plan,
            tokenizer=tokenizer,
            chat_format=load_chat_format(tokenizer, format_spec_in(directory, base.chat_format)),
            conversations=conversations,
            count=count,
            max_tokens=max_tokens,
        )

    def within(self, sample: Collection[int]) -> ReplyScores:
        """Returns what is asked of these conversations of the list alone."""
        return replace(self, conversations=[(index, each) for index, each in self.conversations if index in sample])

    def measure(self, scored: ScoredModel, workers: Workers, *, max_batch_tokens: int) -> dict[str, ConversationScores]:
        """Returns the scores of every conversation on every worker, by name; all workers call it.

        A score that says nothing of any conversation is left out. Raises InputError on every worker if a function of the
        user fails on one.
        """
        was_training = scored.training
        scored.eval()
        try:
            questions, numbers, problem = self._my_share(scored, workers, max_batch_tokens)
        finally:
            scored.train(was_training)
        (failed,) = workers.sum([float(problem is not None)])
        if failed:
            raise problem or InputError(
                f"{failed:.0f} of {workers.count} workers could not score what they generated; its log says why"
            )
        names = [score.name for score in self.plan.generate.scores]
        mine = [by_conversation(questions, numbers[name], self.count) for name in names]
        totals = zip(names, over_workers(mine, workers), strict=True)
        return {name: scores for name, scores in totals if any(scores.weights)}

    def _my_share(
        self, scored: ScoredModel, workers: Workers, max_batch_tokens: int
    ) -> tuple[list[Question], dict[str, Numbers], InputError | None]:
        """Returns this worker's questions and their numbers by score, or the problem, which other workers wait to hear of."""
        loaded = LoadedModel(
            model=scored.model,
            tokenizer=self.tokenizer,
            chat_format=self.chat_format,
            device=scored.device,
            attention=scored.attention,
            precision=scored.precision,
        )
        new = self.plan.generate.max_new_tokens
        questions = askable(
            self.conversations, self.chat_format, loaded.model.config, max_tokens=self.max_tokens, max_new_tokens=new
        )
        longest_first = sorted(questions, key=lambda question: -len(question.prompt))
        mine = longest_first[workers.worker_rank :: workers.count]
        prompts = [question.prompt for question in mine]
        replies = generate_replies(loaded, prompts, max_new_tokens=new, max_batch_tokens=max_batch_tokens)
        try:
            return mine, numbers_of(self.plan, mine, replies), None
        except InputError as error:
            log.error("%s", error)
            return mine, {}, error
