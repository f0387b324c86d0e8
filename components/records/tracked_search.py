"""What MLflow is to hold of a search beside its journal and its reports: kept in the search's folder, too.

So a server that was away can be filled afterwards from the folder alone, without the models and the data.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from components.experiment.spec import ExperimentSpec, MetricSpec, TrackingSpec
from components.storage.folder import Folder

TRACKED, MASK_PREVIEW = "tracked.json", "mask_preview.html"


class TrackedData(BaseModel):
    """The prepared data of one base model; `digests` by split."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    source: str
    digests: dict[str, str]
    counts: dict[str, int]


class TrackedSearch(BaseModel):
    """`experiment` is the one that its trials run with, apart from `tracking`, which may change."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    experiment: ExperimentSpec
    metric: MetricSpec = Field(description="What the trials are ranked by.")
    facts: dict[str, str] = Field(description="Tags of all runs: where else the search can be seen.")
    data: tuple[TrackedData, ...]

    def write(self, folder: Folder, mask_preview: str) -> None:
        folder.write_text(MASK_PREVIEW, mask_preview)
        without = self.experiment.model_copy(update={"tracking": TrackingSpec()})
        folder.write_text(TRACKED, self.model_copy(update={"experiment": without}).model_dump_json(indent=1) + "\n")

    @classmethod
    def read(cls, folder: Folder, tracking: TrackingSpec) -> TrackedSearch:
        """Raises FileNotFoundError where an earlier version began the search."""
        kept = cls.model_validate_json(folder.read_text(TRACKED))
        return kept.model_copy(update={"experiment": kept.experiment.model_copy(update={"tracking": tracking})})
