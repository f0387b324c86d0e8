"""What a slot tells Tune after each step of a trial: a report, or that and why the trial leaves."""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field

from components.records.events import Progress

METRIC, TIME = "objective", "target_tokens"  # Tune reads these keys of a result; the words are Progress' own
KEY = "slot_result"


class ExitReason(StrEnum):
    """Why a trial leaves its slot between two reports."""

    STOP = "stop"  # the search ends
    PREEMPTED = "preempted"  # a node of the slot is about to go, or has gone


class SlotResult(BaseModel):
    """One Tune result. It is a report only without `failure` and `exit_reason`."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")

    slot: str
    node: str | None = Field(None, description="The first worker's: IP address and Ray's id.")
    device: str | None = Field(None, description="The first worker's, in words.")
    progress: Progress | None = Field(None, description="The trial's last report, whether or not it is new.")
    failure: str | None = Field(None, description="Why the trial cannot go on; the slot can serve other trials.")
    ends_search: bool = Field(False, description="Every other trial would fail for the same reason.")
    lost: bool = Field(False, description="The failure is not the trial's own: the search may go on with it later.")
    exit_reason: ExitReason | None = None
    restarts: int = Field(0, description="Groups of workers that died on the way to this report.")
    done: bool = False

    @property
    def report(self) -> Progress | None:
        """The new report; None if this result is none."""
        return self.progress if self.failure is None and self.exit_reason is None else None

    @property
    def is_impossible(self) -> bool:
        """Whether the trial ends because of its configuration."""
        if self.failure is not None:
            return not self.lost
        return self.report is not None and self.report.diverged is not None

    @property
    def objective(self) -> float:
        """Schedulers ask for a number, also of a trial that has not reported: infinity."""
        return math.inf if self.progress is None or self.failure is not None else self.progress.objective

    @property
    def target_tokens(self) -> int:
        return 0 if self.progress is None else self.progress.target_tokens

    def to_tune(self) -> dict[str, Any]:
        """Returns a Tune result. All but Tune's own keys is one JSON text: Tune flattens results for its searchers."""
        return {METRIC: self.objective, TIME: self.target_tokens, "done": self.done, KEY: self.model_dump_json()}

    @classmethod
    def of(cls, result: Mapping[str, Any]) -> Self:
        """Reads a Tune result, flattened or not."""
        return cls.model_validate_json(result[KEY])
