"""The section `evaluation:`: what is asked of a trial's model beside the loss on held-out conversations."""

from __future__ import annotations

from components.experiment.spec.section import Spec


class EvaluationSpec(Spec):
    """What is measured at evaluations and at the gate."""
