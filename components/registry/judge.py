"""Whose answers does a judge prefer? Every pair is shown in both orders, and counts only where both agree."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from pydantic import BaseModel, ConfigDict, Field

from components.experiment.spec import JudgeSpec
from components.registry.judge_client import JudgeClient, JudgeError, MalformedReplyError
from components.registry.probes import Probe
from components.statistics.sign_test import sign_test

AT_ONCE = 4  # requests
MAX_FAILED_IN_A_ROW = 5  # questions; then the endpoint is taken for gone


class JudgeVerdict(BaseModel):
    """Questions by whose answer was preferred. `ties`: neither in both orders, or the orders disagreed.

    `malformed` counts questions without a verdict because of a reply that could not be read, `failed` those because of no
    reply; `problem` is the last reason. `p_value` is that of wins against losses by the sign test.
    """

    model_config = ConfigDict(frozen=True)

    other: str = Field(description="base or incumbent")
    judge: str = Field(description="The model that judged.")
    wins: int
    losses: int
    ties: int
    failed: int = 0
    malformed: int = 0
    problem: str = ""

    @property
    def judged(self) -> int:
        return self.wins + self.losses + self.ties

    @property
    def p_value(self) -> float:
        return sign_test(self.wins, self.losses)

    @property
    def win_rate(self) -> float:
        """The share of questions that were won, a tie being half of one; 0.5 if nothing was judged."""
        return (self.wins + self.ties / 2) / self.judged if self.judged else 0.5

    def sentence(self) -> str:
        left_out = [
            f"{count} {what}"
            for count, what in ((self.failed, "without a reply"), (self.malformed, "with a reply that says nothing"))
            if count
        ]
        remark = f"; {' and '.join(left_out)} left out ({self.problem})" if left_out else ""
        if not self.judged:
            return f"judge {self.judge} compared nothing with the {self.other}{remark}"
        return (
            f"judge {self.judge}: win rate {self.win_rate:.0%} against the {self.other} ({self.wins} won, {self.losses} lost,"
            f" {self.ties} tied of {self.judged}, sign test p = {self.p_value:.2g}){remark}"
        )


def judge_answers(
    spec: JudgeSpec,
    other: str,
    questions: Sequence[Probe],
    answers: Sequence[str],
    other_answers: Sequence[str],
    client: JudgeClient | None = None,
) -> JudgeVerdict:
    """Compares the candidate's answers with another model's. Never raises for what an endpoint does."""
    asked = list(zip(questions, answers, other_answers, strict=True))
    panel = _Panel(client or JudgeClient(spec))
    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="judge") as threads:
        results = list(threads.map(lambda each: panel.compare(*each), asked))
    return JudgeVerdict(
        other=other,
        judge=spec.model,
        wins=results.count("win"),
        losses=results.count("loss"),
        ties=results.count("tie"),
        failed=results.count("failed"),
        malformed=results.count("malformed"),
        problem=panel.problem,
    )


class _Panel:
    """Judges single questions, until the endpoint seems to be gone."""

    def __init__(self, client: JudgeClient) -> None:
        self.client, self.problem = client, ""
        self._lock = threading.Lock()
        self._failed_in_a_row, self._gone = 0, False

    def compare(self, question: Probe, answer: str, other: str) -> str:
        """Returns win, loss, tie, failed or malformed."""
        if answer.strip() == other.strip():
            return "tie"  # no judge needs to be asked
        if self._gone:
            return "failed"
        conversation = "\n\n".join(f"{message['role']}: {message['content']}" for message in question.messages)
        try:
            first, second = (
                self.client.choose(conversation, answer, other),
                self.client.choose(conversation, other, answer),
            )
        except MalformedReplyError as error:
            self.problem = str(error)
            return "malformed"
        except JudgeError as error:
            self._fail(error)
            return "failed"
        with self._lock:
            self._failed_in_a_row = 0
        return {("A", "B"): "win", ("B", "A"): "loss"}.get((first, second), "tie")

    def _fail(self, error: JudgeError) -> None:
        with self._lock:
            self._failed_in_a_row += 1
            self.problem = str(error)
            self._gone |= error.final or self._failed_in_a_row >= MAX_FAILED_IN_A_ROW
