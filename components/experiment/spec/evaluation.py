"""The section `evaluation:`: what is asked of a trial's model beside the loss on held-out conversations."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from components.experiment.spec.section import Spec


class EvaluationSpec(Spec):
    """What is measured at evaluations and at the gate."""

    general: bool | str = Field(
        True,
        description="Text whose loss shows what a model has forgotten: `true` is the set that comes with this project, else a"
        ' file with a passage on each line (.jsonl: {"text": ...}); `false` measures nothing.',
    )

    @model_validator(mode="after")
    def _names_a_file(self) -> Self:
        if isinstance(self.general, str) and not self.general.strip():
            raise ValueError("general: names no file; give one, or true, or false")
        return self
