"""The plan of a whole search, branch by branch. It shows itself in a terminal and in a notebook."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table
from rich.text import Text

from components.notebook import html_of, text_of
from components.planning.branch_plan import BranchPlan, PlanRecord
from components.planning.disk_table import disk_parts
from components.planning.plan_tables import plan_parts, shortage_sentences
from components.records.disk_use import DiskUse


class ExperimentPlan(PlanRecord):
    """`utilization`: the share of a GPU's peak that is assumed where it was not measured."""

    experiment: str
    model: str
    prices_as_of: str
    utilization: float
    branches: tuple[BranchPlan, ...]
    disk: DiskUse
    disk_budget_gb: float | None = None

    @property
    def without_room(self) -> tuple[str, ...]:
        """Names of the branches that no machine of the table can hold."""
        return tuple(branch.branch for branch in self.branches if not branch.fits_somewhere)

    def shortage(self) -> str:
        """The arithmetic of what fits nowhere, in a sentence for each branch; empty where everything fits."""
        return "\n".join(shortage_sentences(self.branches))

    def parts(self) -> Iterator[Table | Text]:
        """Tables, and lines of text that need not be wrapped, in the order in which they are shown."""
        yield from plan_parts(self.branches, prices_as_of=self.prices_as_of, utilization=self.utilization)
        yield from disk_parts(self.disk, self.disk_budget_gb)

    def __rich_console__(self, *_: object) -> Iterator[Table | Text]:
        yield from self.parts()

    def __str__(self) -> str:
        return text_of(self)

    def _repr_html_(self) -> str:
        return html_of(self)
