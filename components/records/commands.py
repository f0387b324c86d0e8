"""What a person may ask of a running search, and what comes of it. Plain types: the command line, the storage and the
driver tell each other nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt


class _Plain(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class StopTrial(_Plain):
    """End it after the step it is at, with a report."""

    kind: Literal["stop"] = "stop"
    trial: str = Field(description="Its number on the leaderboard, or its id.")


class ExtendTrial(_Plain):
    """Let it train longer. One of the two is given."""

    kind: Literal["extend"] = "extend"
    trial: str
    share: PositiveFloat | None = Field(None, description="0.5: half of its present budget more.")
    target_tokens: PositiveInt | None = Field(None, description="Its whole new budget.")


class CloneTrial(_Plain):
    """Start a trial like it, with changes."""

    kind: Literal["clone"] = "clone"
    trial: str
    changes: Mapping[str, Any] = Field(description="Dotted path into the trial's spec -> value.")
    warm: bool = Field(False, description="Begin with the weights of its best checkpoint.")


class Request(_Plain):
    """`request_id` sorts by time."""

    request_id: str
    by: str = Field(description="user@host")
    time: float
    wish: Annotated[StopTrial | ExtendTrial | CloneTrial, Field(discriminator="kind")]


class Reply(_Plain):
    """What the driver says to a request, once."""

    accepted: bool
    message: str


class RequestInbox(Protocol):
    """Where a driver finds what is asked of its search."""

    def take(self) -> list[Request]:
        """Requests that nobody has answered, each given out once, the oldest first. Does not wait."""
        ...

    def reply(self, request: Request, reply: Reply) -> None: ...
