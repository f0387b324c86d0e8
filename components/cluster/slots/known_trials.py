"""What the journal says about trials that slots and workers ask the command board for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

from components.records.events import Extension, TrialHistory, TrialState

GOING_ON = (
    TrialState.RUNNING,
    TrialState.FAILED,
)  # trials that may need a slot; a failed one may have been lost with its slot


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownTrials:
    """What the journal says about trials that their slots and workers ask the board for, by trial id.

    `last_reports` are steps; `max_rows` is what fits into memory of trials that had run out of it; `stop_requests` are the
    trials that are to end, in the order of the requests.
    """

    extensions: Mapping[str, tuple[Extension, ...]] = field(default_factory=dict)
    last_reports: Mapping[str, int] = field(default_factory=dict)
    max_rows: Mapping[str, int] = field(default_factory=dict)
    stop_requests: tuple[str, ...] = ()

    @classmethod
    def of(cls, histories: Mapping[str, TrialHistory]) -> Self:
        going_on = {name: history for name, history in histories.items() if history.state in GOING_ON}
        return cls(
            extensions={name: history.extensions for name, history in going_on.items() if history.extensions},
            last_reports={name: history.last.step for name, history in going_on.items() if history.last},
            max_rows={name: history.max_rows for name, history in going_on.items() if history.max_rows},
            stop_requests=tuple(name for name, history in histories.items() if history.stop is not None),
        )

    def updated(self, later: KnownTrials) -> KnownTrials:
        return KnownTrials(
            extensions={**self.extensions, **later.extensions},
            last_reports={**self.last_reports, **later.last_reports},
            max_rows={**self.max_rows, **later.max_rows},
            stop_requests=tuple(dict.fromkeys((*self.stop_requests, *later.stop_requests))),
        )
