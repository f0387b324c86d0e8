"""What every process of a search knows of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from components.data.layout import Layout
from components.data.passage import Passage
from components.experiment.spec import ExperimentSpec, ModelSpec
from components.models.base.reference import BaseReference
from components.records.earlier_trials import EarlierTrial
from components.scoring.generation_plan import GenerationPlan
from components.storage.folder import Folder


@dataclass(frozen=True, kw_only=True)
class SearchBase:
    """What depends on the base model: the same for all branches of one."""

    model: ModelSpec
    reference: BaseReference
    prepared: Folder
    pad_token_id: int
    layout: Layout = "trees"
    general: tuple[Passage, ...] = ()


@dataclass(frozen=True, kw_only=True)
class SearchContext:
    """Plain values only: it travels to every process of the search.

    `folder` is the search's own, on storage that every node sees. `budget` is each trial's, in target tokens; in bytes of
    targets if `other_bases` has any: those of branches with another base than the experiment's, by the branch's name.
    `rungs` are where trials report beside their regular evaluations, in the budget's units. `generation` is what is asked of
    the models at evaluations. `dollars_per_worker_hour` is known of the branches in it. `earlier_trials` are those of other
    searches, for a sampler that learns.
    """

    experiment: ExperimentSpec
    search_id: str
    folder: Folder
    prepared: Folder
    budget: int
    pad_token_id: int
    base: BaseReference
    layout: Layout = "trees"
    other_bases: dict[str, SearchBase] = field(default_factory=dict)
    generation: GenerationPlan | None = None
    rungs: tuple[int, ...] = ()
    dollars_per_worker_hour: dict[str, float] = field(default_factory=dict)
    earlier_trials: tuple[EarlierTrial, ...] = ()
    general: tuple[Passage, ...] = ()

    def base_of(self, branch: str) -> SearchBase:
        """Returns the base of a branch's trials."""
        own = SearchBase(
            model=self.experiment.model,
            reference=self.base,
            prepared=self.prepared,
            pad_token_id=self.pad_token_id,
            layout=self.layout,
            general=self.general,
        )
        return self.other_bases.get(branch, own)

    @property
    def checkpoints(self) -> Folder:
        return self.folder / "checkpoints"
