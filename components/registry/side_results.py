"""What is said of a candidate beside the gate's decision: what it forgot, whose answers a judge prefers, its loss by turn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pydantic import BaseModel, ConfigDict

from components.experiment.spec import RegistrySpec
from components.records.loss_views import LossViews
from components.registry.forgetting import GeneralChange, compare_general
from components.registry.judge import JudgeVerdict, judge_answers
from components.registry.probes import Probe
from components.registry.verification_messages import VerificationReport


class SideResults(BaseModel):
    """`candidate_views` and `base_views` are of the split that the gate judges by. Nothing here decides."""

    model_config = ConfigDict(frozen=True)

    general: tuple[GeneralChange, ...] = ()
    judged: tuple[JudgeVerdict, ...] = ()
    candidate_views: LossViews | None = None
    base_views: LossViews | None = None

    def sentences(self) -> tuple[str, ...]:
        return (*(each.sentence() for each in self.general), *(each.sentence() for each in self.judged))

    def tags(self) -> dict[str, str]:
        """Of the registered version."""
        return {
            **{f"turnwise.general_against_{each.other}": each.sentence() for each in self.general},
            **{f"turnwise.judge_against_{each.other}": each.sentence() for each in self.judged},
        }

    def metrics(self) -> dict[str, float]:
        """Of the trial's MLflow run."""
        found = {} if self.candidate_views is None else self.candidate_views.metrics()
        for change in self.general:
            if change.unit == "nats per token":
                found |= {"general_loss": change.candidate_loss, f"general_change/{change.other}": change.change}
        for verdict in self.judged:
            if verdict.judged:
                found[f"judge_win_rate/{verdict.other}"] = verdict.win_rate
        return {f"eval/{name}": value for name, value in found.items()}


def side_results(registry: RegistrySpec, report: VerificationReport, questions: Sequence[Probe]) -> SideResults:
    """Compares what a verification found beside the losses, and asks the judge if there is one.

    Args:
        questions: those whose answers the report has as `candidate_said`.
    """
    general = (
        compare_general(other, report.candidate_general, scores, confidence=registry.confidence)
        for other, scores in (("base", report.base_general), ("incumbent", report.incumbent_general))
    )
    return SideResults(
        general=tuple(change for change in general if change is not None),
        judged=tuple(_judged(registry, report, questions)),
        candidate_views=report.candidate_views,
        base_views=report.base_views,
    )


def _judged(registry: RegistrySpec, report: VerificationReport, questions: Sequence[Probe]) -> Iterator[JudgeVerdict]:
    if registry.judge is None:
        return
    for other, said in (("base", report.base_said), ("incumbent", report.incumbent_said)):
        if said:
            yield judge_answers(registry.judge, other, questions, report.candidate_said, said)
