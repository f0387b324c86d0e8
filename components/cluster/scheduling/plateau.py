"""Ends a trial that no longer improves, by its own history alone: other trials are judged as if it had gone on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from components.cluster.scheduling.comparable import as_recorded
from components.experiment.spec import PlateauSpec
from components.records.events import Progress, TrialHistory


@dataclass(frozen=True, slots=True, kw_only=True)
class PlateauRule:
    """`budget` (target tokens) has `planned` regular evaluations. Reports at rungs, which lie closer, do not count."""

    evaluations: int
    min_improvement: float
    budget: int
    planned: int

    @classmethod
    def of(cls, spec: PlateauSpec, budget: int, evaluations: int) -> PlateauRule:
        return cls(
            evaluations=spec.evaluations, min_improvement=spec.min_improvement, budget=budget, planned=evaluations
        )

    @property
    def reason(self) -> str:
        return f"on a plateau: {self.evaluations} evaluations without an improvement of {self.min_improvement:g}"

    def stops(self, histories: Mapping[str, TrialHistory], trial_id: str, report: Progress) -> bool:
        earlier = (each for each in histories[trial_id].reports if each.step < report.step)
        regular: dict[int, float] = {}  # by the number of the evaluation
        for each in (*earlier, report):
            regular.setdefault(self._number(each.target_tokens), as_recorded(each.objective))
        regular.pop(0, None)
        if self._number(report.target_tokens) not in regular or len(regular) <= self.evaluations:
            return False
        objectives = list(regular.values())
        before, since = min(objectives[: -self.evaluations]), min(objectives[-self.evaluations :])
        return since > before - self.min_improvement

    def _number(self, target_tokens: int) -> int:
        """Returns how many regular evaluations lie up to here."""
        return target_tokens * self.planned // self.budget
