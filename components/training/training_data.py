"""What all trials of a search train on and are measured by."""

from __future__ import annotations

from dataclasses import dataclass, field

from components.data.layout import Layout
from components.data.passage import Passage
from components.data.prepare import PreparedDataset
from components.experiment.spec import MetricSpec
from components.scoring.generation_plan import GenerationPlan
from components.training.rung_sample import RungSample


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingData:
    """The data that all trials of a search train on. `general` is text that none of them is trained on.

    `by_bytes`: the search has several base models (budget_units.py). `sample`: by which rungs are decided; None: by all.
    """

    dataset: PreparedDataset
    max_tokens: int
    pad_token_id: int
    layout: Layout = "trees"
    metric: MetricSpec = field(default_factory=MetricSpec)  # what the search ranks its trials by
    generation: GenerationPlan | None = None  # what is asked of the model at evaluations
    general: tuple[Passage, ...] = ()
    by_bytes: bool = False
    sample: RungSample | None = None
