"""A person's commands to a running search, and the driver's replies: plain values that travel through the storage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError

from components.errors import InputError
from components.storage.foreign_files import reason_of

MAX_SHARE = 1000.0
MAX_TOKENS = 2**53  # what a float of JSON counts exactly
MAX_LETTERS = 200  # of a name

Trial = Annotated[
    str, Field(min_length=1, max_length=MAX_LETTERS, description="Its number on the leaderboard, or its id.")
]


class _Plain(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class StopTrial(_Plain):
    """Ends a trial after the step that it is at, with a report."""

    kind: Literal["stop"] = "stop"
    trial: Trial


class ExtendTrial(_Plain):
    """Lets a trial train longer. One of the two is given."""

    kind: Literal["extend"] = "extend"
    trial: Trial
    share: PositiveFloat | None = Field(None, le=MAX_SHARE, description="0.5: half of its present budget more.")
    target_tokens: PositiveInt | None = Field(None, le=MAX_TOKENS, description="Its whole new budget.")


class CloneTrial(_Plain):
    """Starts a trial like another one, with changes."""

    kind: Literal["clone"] = "clone"
    trial: Trial
    changes: Mapping[str, Any] = Field(description="Dotted path into the trial's spec -> value.")
    warm: bool = Field(False, description="Begin with the weights of its best checkpoint.")


TrialCommand = StopTrial | ExtendTrial | CloneTrial
C = TypeVar("C", StopTrial, ExtendTrial, CloneTrial)


def command_of(kind: type[C], **fields: Any) -> C:
    """Makes a command of what a person has written. Raises InputError for a value that breaks its rule."""
    try:
        return kind(**fields)
    except ValidationError as error:
        raise InputError(f"{kind.model_fields['kind'].default}: {reason_of(error)}") from None


class Request(_Plain):
    """A command, and who gave it. `request_id` sorts by time."""

    request_id: str
    by: str = Field(max_length=MAX_LETTERS, description="user@host")
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
