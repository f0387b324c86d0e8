"""From checkpoint to champion: a version is made, verified in fresh processes, compared, and given the alias or not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from components.conversations.target_bytes import bits_per_byte
from components.data.prepare import PreparedDataset
from components.errors import VerificationError
from components.experiment.spec import CHALLENGER, ExperimentSpec
from components.models.base.reference import BaseReference
from components.records.events import TrialHistory
from components.registry.alias_moves import alias_holder, give_alias
from components.registry.candidate import RegistryCandidate
from components.registry.gate import GateDecision, check_report, compare_by, decide
from components.registry.judge_questions import questions_of
from components.registry.probes import Probe
from components.registry.proven import PROVEN_TAG, proven_in_full
from components.registry.result import RegistryResult
from components.registry.side_results import SideResults, side_results
from components.registry.verification_launcher import verify_in_subprocess
from components.registry.verification_messages import ABOUT_INCUMBENT, VerificationReport, VerificationSettings
from components.registry.versions import create_version, explain_deletion, find_version
from components.registry.vetoes import probes_problem, vetoes_of
from components.registry.write_descriptions import write_descriptions
from components.scoring.generation_plan import GenerationPlan
from components.statistics.no_worse import NoWorse
from components.statistics.paired_bootstrap import Comparison
from components.statistics.selection import Selection
from components.tracking.mlflow_runs import SearchRuns

GATE_TAG = "turnwise.gate"  # the decision in a sentence
PASSED_TAG = "turnwise.gate_passed"  # the decision for programs: an alias that was moved by hand says nothing
REPLACED_BECAUSE_TAG = "turnwise.replaced_because"  # a person's reason, where no comparison was possible
REPLACES_TAG, AGAINST_TAG = "turnwise.replaces", "turnwise.against_{}"
GUARDED_TAG = "turnwise.no_worse_{}"
BY_THE_GATE = f"it passed the gate ({GATE_TAG} says how)"
MAX_ROUNDS = 3


# Runs the work on a machine that is large enough for it, and returns its result.
Executor = Callable[[Callable[[], VerificationReport]], VerificationReport]


def run_locally(work: Callable[[], VerificationReport]) -> VerificationReport:
    return work()


def register_best(
    runs: SearchRuns,
    uri: str,
    experiment: ExperimentSpec,
    best: TrialHistory,
    dataset: PreparedDataset,
    probes: Sequence[Probe],
    executor: Executor = run_locally,
    *,
    replace: str | None = None,
    selection: Selection | None = None,
    general: Sequence[str] = (),
    generation: GenerationPlan | None = None,
    by_bytes: bool = False,
) -> RegistryResult:
    """Makes the best trial's best checkpoint a version, verifies it, and gives it the alias if it passes the gate.

    A version that does not pass stays, without the alias. A second call, after an interruption, goes on with the
    version of the first. Raises VerificationError if the version cannot be made or verified.

    Args:
        executor: where the version is verified; the machine must reach the registry, the data and the base model.
        replace: a person's reason to replace an incumbent that cannot be compared.
        selection: what the candidate was chosen from on the conversations that the gate judges by; None if it was chosen on
            others.
        general: texts on which candidate, base and incumbent are scored too, to see what was forgotten.
        generation: what candidate, base and incumbent are asked, where the gate judges or guards by their answers.
        by_bytes: the search had several base models: losses are judged in bits per byte, and the result says the base.
    """
    assert best.best is not None
    candidate = RegistryCandidate(
        runs=runs, uri=uri, experiment=experiment, trial=best, report=best.best, dataset=dataset
    )
    number = find_version(candidate) or create_version(candidate)
    promotion = Promotion(
        candidate,
        number,
        probes,
        executor,
        selection=selection,
        replace=replace,
        general=general,
        generation=generation,
        by_bytes=by_bytes,
    )
    with explain_deletion(candidate, number):
        outcome = promotion.run()
        sides = promotion.look_beside(outcome.report)
        write_descriptions(
            candidate,
            number,
            promoted=outcome.decision.passed,
            reason=outcome.decision.reason,
            comparisons=outcome.comparisons,
        )
    return RegistryResult(
        name=candidate.name,
        version=number,
        alias=experiment.registry.alias,
        promoted=outcome.decision.passed,
        reason=outcome.decision.reason,
        verdicts=outcome.comparisons,
        probes=tuple(probes),
        base_answers=outcome.report.base_answers,
        candidate_answers=outcome.report.candidate_answers,
        base_model=BaseReference.read(candidate.checkpoint).model.path if by_bytes else None,
        parameters=outcome.report.parameters,
        weight_bytes=outcome.report.weight_bytes,
        base_loss=sum(outcome.report.base_sums) / sum(outcome.report.num_targets),
        candidate_loss=sum(outcome.report.candidate_sums) / sum(outcome.report.num_targets),
        base_bits_per_byte=bits_per_byte(sum(outcome.report.base_sums), sum(outcome.report.target_bytes)),
        candidate_bits_per_byte=bits_per_byte(sum(outcome.report.candidate_sums), sum(outcome.report.target_bytes)),
        judged_by="eval" if dataset.verdict is None else "verdict",
        sides=sides,
    )


@dataclass(frozen=True, kw_only=True)
class PromotionOutcome:
    """`decision.passed` says whether the candidate holds the alias."""

    report: VerificationReport
    comparisons: tuple[Comparison, ...]
    decision: GateDecision


def _for_judge(candidate: RegistryCandidate, num_probes: int) -> dict[str, Any]:
    """Fields of the settings: the questions of held-out conversations that a judge sees after the probes."""
    judge = candidate.experiment.registry.judge
    if judge is None:
        return {}
    store = candidate.dataset.verdict or candidate.dataset.eval
    return {"judged": True, "more_questions": questions_of(store, judge.questions - num_probes)}


class Promotion:
    """One version's way through the gate, in a registry whose aliases others may move at any time."""

    def __init__(
        self,
        candidate: RegistryCandidate,
        number: str,
        probes: Sequence[Probe],
        executor: Executor,
        *,
        selection: Selection | None = None,
        replace: str | None = None,
        general: Sequence[str] = (),
        generation: GenerationPlan | None = None,
        by_bytes: bool = False,
    ) -> None:
        self.candidate, self.number, self.executor = candidate, number, executor
        self.selection, self.replace, self.by_bytes = selection, replace, by_bytes
        self.client, self.name = candidate.client, candidate.name
        self.alias = candidate.experiment.registry.alias
        self.settings = VerificationSettings(
            prepared=candidate.dataset.directory,
            max_tokens=candidate.experiment.data.max_tokens,
            rows_per_batch=candidate.trial.rows_per_micro_batch,
            probes=tuple(probes),
            timeout_seconds=60 * candidate.experiment.registry.proof_minutes,
            general=tuple(general),
            generation=generation,
            **_for_judge(candidate, len(probes)),
        )

    def run(self) -> PromotionOutcome:
        """Verifies, decides, and moves the alias if it is still where it was when the comparison began.

        A verification takes minutes, in which others may move the alias: the version that holds it at the end is the one to
        beat, so the comparison is repeated with that one, a few times.
        """
        report, holder = None, alias_holder(self.client, self.name, self.alias)
        for _ in range(MAX_ROUNDS):
            incumbent = None if holder == self.number else holder
            report = self._verify(incumbent, earlier=report)
            comparisons, guarded = self._compare(report)
            problem = probes_problem(report, self.settings.probes)
            decision = decide(
                incumbent, report, comparisons, guarded=guarded, probes_problem=problem, replace=self.replace
            )
            if holder == self.number:
                if reason := self._reason_of_earlier_pass():
                    passed = GateDecision(passed=True, reason=reason)
                    return PromotionOutcome(report=report, comparisons=comparisons, decision=passed)
                decision = self._explain_alias_set_by_hand(decision)
            holder, before = self._apply(decision, holder, comparisons), holder
            if holder == before:
                return PromotionOutcome(report=report, comparisons=comparisons, decision=decision)
        assert report is not None
        return PromotionOutcome(report=report, comparisons=comparisons, decision=self._give_up())

    def look_beside(self, report: VerificationReport) -> SideResults:
        """What a verification found beside the losses: as tags of the version, and as metrics of its trial's run."""
        questions = (*self.settings.probes, *self.settings.more_questions)
        sides = side_results(self.candidate.experiment.registry, report, questions)
        for key, value in sides.tags().items():
            self._tag(key, value)
        self.candidate.runs.log_trial_metrics(
            self.candidate.trial.trial_id, sides.metrics(), self.candidate.report.step
        )
        return sides

    def _compare(self, report: VerificationReport) -> tuple[tuple[Comparison, ...], tuple[NoWorse | str, ...]]:
        """Returns the comparisons by the metric of the search, and what the candidate must not lose."""
        experiment = self.candidate.experiment
        confidence, generate = experiment.registry.confidence, experiment.gate_generation
        directions = {score.name: score for score in (generate.scores if generate else ())}
        try:
            comparisons = compare_by(
                report, experiment.search.metric, confidence, self.selection, by_bytes=self.by_bytes
            )
        except VerificationError as error:
            raise self._not_proven(error) from None
        guarded = tuple(vetoes_of(report, experiment.registry.gate.no_worse, directions, confidence))
        for each in guarded:
            if not isinstance(each, str):
                self._tag(GUARDED_TAG.format(each.comparison.metric.replace(":", "/")), each.sentence())
        return comparisons, guarded

    def _verify(self, incumbent: str | None, earlier: VerificationReport | None) -> VerificationReport:
        """`earlier`: beside another incumbent."""
        if earlier is not None and incumbent is None:
            return earlier.model_copy(update=dict.fromkeys(ABOUT_INCUMBENT))
        version_uri = f"models:/{self.name}/{self.number}"
        try:
            report = self.executor(
                partial(
                    verify_in_subprocess,
                    version_uri,
                    f"models:/{self.name}/{incumbent}" if incumbent else None,
                    self.candidate.uri,
                    settings=self.settings,
                    earlier=earlier,
                )
            )
            check_report(report, self.candidate.report.eval_loss, version_uri)
        except (RuntimeError, ValueError) as error:  # ValueError: the prepared data is damaged
            self.client.delete_model_version_tag(self.name, self.number, PROVEN_TAG)
            raise self._not_proven(error) from None
        self._tag(PROVEN_TAG, proven_in_full(report, self.candidate.report.eval_loss))
        return report

    def _not_proven(self, error: Exception) -> VerificationError:
        self._record(GateDecision(passed=False, reason=f"not proven: {error}"))
        return VerificationError(str(error))

    def _apply(self, decision: GateDecision, holder: str | None, comparisons: Sequence[Comparison]) -> str | None:
        """Writes the tags first and moves the alias last, so that an alias never points at a version without its reason.

        Moves nothing if the alias is not held by `holder`, the version that was compared. Returns the version that held it
        at that moment. MLflow cannot move an alias on a condition: a move by others between the last two requests, some
        milliseconds, is not seen.
        """
        for comparison in comparisons:
            self._tag(AGAINST_TAG.format(comparison.other), comparison.sentence())
        if decision.passed and holder not in (None, self.number):
            self._tag(REPLACES_TAG, str(holder))
        if decision.passed and decision.replaced_because is not None:
            self._tag(REPLACED_BECAUSE_TAG, decision.replaced_because)
        self._record(decision)
        if decision.passed and alias_holder(self.client, self.name, CHALLENGER) == self.number:
            self.client.delete_registered_model_alias(self.name, CHALLENGER)
        found = alias_holder(self.client, self.name, self.alias)
        if found != holder:
            self._retract()
        elif decision.passed:
            give_alias(self.client, self.name, self.alias, self.number, holder, BY_THE_GATE)
        elif holder != self.number:
            self.client.set_registered_model_alias(self.name, CHALLENGER, self.number)
        return found

    def _retract(self) -> None:
        """Takes back a decision against a version that no longer holds the alias."""
        self._record(GateDecision(passed=False, reason="not decided: the alias moved while this version was compared"))
        for key in (REPLACES_TAG, REPLACED_BECAUSE_TAG, AGAINST_TAG.format("incumbent")):
            self.client.delete_model_version_tag(self.name, self.number, key)

    def _give_up(self) -> GateDecision:
        decision = GateDecision(
            passed=False,
            reason=f"the alias {self.alias} went from version to version while this one was compared, {MAX_ROUNDS} times",
        )
        self._record(decision)
        self.client.set_registered_model_alias(self.name, CHALLENGER, self.number)
        return decision

    def _reason_of_earlier_pass(self) -> str | None:
        """The reason for which an earlier attempt let the version pass, if one did."""
        tags = self.client.get_model_version(self.name, self.number).tags
        return tags[GATE_TAG] if tags.get(PASSED_TAG) == "true" else None

    def _explain_alias_set_by_hand(self, decision: GateDecision) -> GateDecision:
        """Of a version that holds the alias without having passed."""
        if decision.passed:
            return decision
        by_hand = f"it holds the alias {self.alias} because somebody gave it that, not this gate"
        return GateDecision(passed=False, reason=f"{decision.reason}; {by_hand}")

    def _record(self, decision: GateDecision) -> None:
        """Tags the version with the decision, for people and for programs."""
        self._tag(GATE_TAG, decision.reason)
        self._tag(PASSED_TAG, str(decision.passed).lower())

    def _tag(self, key: str, value: str) -> None:
        self.client.set_model_version_tag(self.name, self.number, key, value)
