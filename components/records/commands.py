"""A person's commands to a running search, and the driver's replies: plain values that travel through the storage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt


class _Plain(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class StopTrial(_Plain):
    """Ends a trial after the step that it is at, with a report."""

    kind: Literal["stop"] = "stop"
    trial: str = Field(description="Its number on the leaderboard, or its id.")


class ExtendTrial(_Plain):
    """Lets a trial train longer. One of the two is given."""

    kind: Literal["extend"] = "extend"
    trial: str
    share: PositiveFloat | None = Field(None, description="0.5: half of its present budget more.")
    target_tokens: PositiveInt | None = Field(None, description="Its whole new budget.")


class CloneTrial(_Plain):
    """Starts a trial like another one, with changes."""

    kind: Literal["clone"] = "clone"
    trial: str
    changes: Mapping[str, Any] = Field(description="Dotted path into the trial's spec -> value.")
    warm: bool = Field(False, description="Begin with the weights of its best checkpoint.")


TrialCommand = StopTrial | ExtendTrial | CloneTrial


class Request(_Plain):
    """A command, and who gave it. `request_id` sorts by time."""

    request_id: str
    by: str = Field(description="user@host")
    time: float
    command: Annotated[TrialCommand, Field(discriminator="kind")]


class CommandReply(_Plain):
    """The driver's one reply to a request."""

    accepted: bool
    message: str


class RequestInbox(Protocol):
    """Where a driver finds the requests to its search."""

    def poll(self) -> list[Request]:
        """Returns new requests that have no reply, each once, the oldest first. Does not wait."""
        ...

    def reply(self, request: Request, reply: CommandReply) -> None: ...
