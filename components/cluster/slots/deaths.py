"""Why a slot's worker groups died, and what follows for the trial that they trained."""

from __future__ import annotations

from dataclasses import dataclass, field

MAX_STRIKES = 2  # failures of a trial's own at the same place
MAX_DEATHS = 8  # from outside, without a new report
WAYS_OUT = (
    "set gradient_checkpointing: true or a smaller data.max_tokens, quantize the base (method.quantize: nf4), or give each"
    " worker more memory, or fewer trials at once where search.trials_per_slot is set"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What tells why a worker group died. `out_of_memory`: it computed rows, and with fewer of them at once it may live."""

    reason: str
    out_of_memory: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class FewerRows:
    """The trial goes on with at most so many rows in a micro-batch."""

    rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GiveUp:
    """The trial ends. `lost`: for no reason of its own, so the search may go on with it later."""

    reason: str
    lost: bool = False


@dataclass(slots=True)
class Deaths:
    """Of the worker groups of one slot. `evidence` is of the death that is judged next."""

    evidence: list[Evidence] = field(default_factory=list)
    strikes: int = 0  # since the last answer
    from_outside: int = 0  # since the trial's last report or start

    def judge(self, rows: int | None) -> FewerRows | GiveUp | None:
        """Judges one more death by its evidence; None: the next group repeats what this one was at.

        Args:
            rows: how many the trial has in a micro-batch at most; None while it is being started, before any row.
        """
        evidence, self.evidence = self.evidence, []
        out_of_memory = next((found for found in evidence if found.out_of_memory), None)
        if out_of_memory is not None and rows is not None:
            if rows > 1:
                return FewerRows(rows=rows // 2)
            return GiveUp(reason=f"out of memory with one row at a time: {out_of_memory.reason}; {WAYS_OUT}")
        if evidence:
            self.strikes += 1
            if self.strikes <= MAX_STRIKES:
                return None
            times = f"its workers failed {self.strikes} times at the same place"
            return GiveUp(reason=f"{times}, the last time: {evidence[0].reason}")
        self.from_outside += 1
        if self.from_outside <= MAX_DEATHS:
            return None
        times = f"its workers died {self.from_outside} times without a new report"
        return GiveUp(reason=f"{times}, killed from outside as far as is known", lost=True)
