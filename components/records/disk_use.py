"""What a search keeps on its storage at most, in bytes: arithmetic over the sizes of its checkpoints."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pydantic import BaseModel, ConfigDict, Field

from components.experiment.spec import FullMethod, LoraMethod
from components.records.events import TrialHistory
from components.storage.size import GB, size_in_words

# The checkpoints that a running trial may have at once; cluster/driver/checkpoint_retention.py deletes the others.
ON_A_DISK = ("the best", "the latest", "one of an interruption", "one being written")
IN_A_BUCKET = ("the best", "the latest", "the one before it", "one of an interruption", "one being uploaded")


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class BranchDisk(_Record):
    """The trials of a branch, at its corner with the largest checkpoints."""

    branch: str
    kind: str = Field(description="Of its method.")
    rank: int = Field(0, description="Of LoRA, at that corner.")
    trials: int
    weights: int = Field(description="Of a checkpoint: the weights that were trained. The best ones stay.")
    optimizer: int = Field(description="Of a checkpoint: what only going on needs. It goes when the trial ends.")
    records: int = Field(description="A trial's lines in the journal, and its evaluations.")
    at_once: int = Field(description="How many can run at once.")
    on_gpu: bool = False
    pinned: int = Field(0, description="How many weights stay beside the best ones, as clones begin with them.")

    @property
    def checkpoint(self) -> int:
        return self.weights + self.optimizer


class DiskUse(_Record):
    """`checkpoints`: those that a running trial may have at once, in words."""

    branches: tuple[BranchDisk, ...]
    prepared: int
    checkpoints: tuple[str, ...] = ON_A_DISK
    max_concurrent: int | None = Field(None, description="search.max_concurrent_trials")

    @property
    def running(self) -> dict[str, int]:
        """How many trials of each branch run when most is kept: those with the largest checkpoints, and no more than fit.

        On GPUs, and likewise on CPUs, never more trials run than the cluster holds of the narrowest ones.
        """
        most_first = sorted(self.branches, key=self._more, reverse=True)
        left = {
            gpu: max((each.at_once for each in most_first if each.on_gpu is gpu), default=0) for gpu in (True, False)
        }
        in_all = sum(left.values()) if self.max_concurrent is None else self.max_concurrent
        counts = {}
        for each in most_first:
            count = min(each.trials, each.at_once, left[each.on_gpu], in_all)
            counts[each.branch] = count
            left[each.on_gpu], in_all = left[each.on_gpu] - count, in_all - count
        return counts

    @property
    def peak(self) -> int:
        """While trials run, the others having ended."""
        running = self.running
        return self.end + sum(running[each.branch] * self._more(each) for each in self.branches)

    @property
    def end(self) -> int:
        """Once all trials have ended: the best weights of each."""
        return self.prepared + self.records + sum((each.trials + each.pinned) * each.weights for each in self.branches)

    @property
    def records(self) -> int:
        """Journal and evaluations of all trials."""
        return sum(each.trials * each.records for each in self.branches)

    @property
    def largest_checkpoint(self) -> int:
        return max(each.checkpoint for each in self.branches)

    def with_clone(self, branch: str, method: LoraMethod | FullMethod, *, warm: bool) -> DiskUse | None:
        """Returns it with one more trial. None if no branch tells how large a checkpoint of its method is.

        It counts like the largest trial of its branch, a higher rank in proportion. Of a warm one the weights that it begins
        with stay, too.
        """
        alike = sorted(
            (each for each in self.branches if each.kind == method.kind), key=lambda each: each.branch != branch
        )
        if not alike:
            return None
        known = alike[0]
        growth = max(1.0, method.rank / known.rank) if isinstance(method, LoraMethod) else 1.0
        clone = known.model_copy(
            update={
                "branch": f"{branch}, clone {len(self.branches)}",
                "trials": 1,
                "at_once": 1,
                "pinned": int(warm),
                "weights": round(growth * known.weights),
                "optimizer": round(growth * known.optimizer),
            }
        )
        return self.model_copy(update={"branches": (*self.branches, clone)})

    def with_clones(self, histories: Iterable[TrialHistory]) -> DiskUse:
        """Returns it with the trials that people have asked for."""
        use = self
        for clone in [clone for history in histories for clone in history.clones if not clone.repeat]:
            use = use.with_clone(clone.branch, clone.spec.method, warm=clone.warm_from is not None) or use
        return use

    def is_within(self, gigabytes: float | None) -> bool:
        """`gigabytes`: storage.budget_gb"""
        return gigabytes is None or self.peak <= gigabytes * GB

    def on_cluster(self, at_once: Mapping[str, int]) -> DiskUse:
        """Returns it with so many trials of each branch at once."""
        branches = (each.model_copy(update={"at_once": at_once[each.branch]}) for each in self.branches)
        return self.model_copy(update={"branches": tuple(branches)})

    def arithmetic(self) -> list[str]:
        """The peak, a line for each branch and one for the rest."""
        running, copies, lines = self.running, len(self.checkpoints), []
        for each in self.branches:
            now, ended = running[each.branch], each.trials - running[each.branch]
            parts = []
            if now:
                size = size_in_words(now * copies * each.checkpoint)
                parts.append(f"{now} that run x {copies} checkpoints x {size_in_words(each.checkpoint)} = {size}")
            if ended or each.pinned:
                ended += each.pinned
                parts.append(
                    f"{ended} ended x {size_in_words(each.weights)} of weights = {size_in_words(ended * each.weights)}"
                )
            lines.append(f"{each.branch}: {each.trials} trials, {' + '.join(parts)}")
        records = size_in_words(self.records)
        lines.append(f"prepared data {size_in_words(self.prepared)}, journal and evaluations {records}")
        return lines

    def sentence(self) -> str:
        return f"disk: at most {size_in_words(self.peak)} while trials run, {size_in_words(self.end)} at the end"

    def _more(self, branch: BranchDisk) -> int:
        """What a running trial keeps beyond what it keeps once it has ended."""
        return len(self.checkpoints) * branch.checkpoint - branch.weights
