"""The section `data:`: which conversations are read, how they are split, and what happens to those that do not fit."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from components.experiment.spec.chat_format import SystemPlace
from components.experiment.spec.section import Share, Spec, check_uris


class DataSpec(Spec):
    """The conversations of an experiment, and the rules for those that cannot be used as they are."""

    train: str | tuple[str, ...] = Field(
        description="File or URI, list of them, glob, or `hf:DATASET[:SPLIT][@REVISION]`."
    )
    eval: str | tuple[str, ...] | None = Field(
        None, description="Held-out conversations; without it `eval_fraction` is split off."
    )
    eval_fraction: Share = Field(
        0.1,
        description="Share held out where `eval` is not given, by a hash of a conversation's words or of its `group`.",
    )
    split_seed: NonNegativeInt = Field(0, description="Part of that hash: another seed is another split.")
    format: Literal["auto", "messages", "sharegpt", "alpaca", "pairs", "nested"] = "auto"
    on_bad_row: Literal["fail", "drop"] = Field(
        "fail",
        description="`drop` leaves bad records out, but mends those in which only the order of messages is wrong: what"
        " follows the last answer, or stands before the first question, is cut; messages of one side in a row become one.",
    )
    unknown_keys: Literal["fail", "ignore"] = Field(
        "fail",
        description="A key that nothing reads and that might change what is trained makes its record a bad one, or is"
        " counted and left out. Keys of a whole record that change no token (`id`, `source`) are only counted.",
    )
    tag: str | None = Field(
        None,
        min_length=1,
        description="A key of each record whose value is a label (`topic`): the loss on held-out data is shown by it.",
    )
    system: SystemPlace = Field(
        "native",
        description="`prepend` writes a system text at the head of the first question, for chat templates without a system"
        " role.",
    )
    train_on_reasoning: bool = Field(
        True, description="Whether an assistant's reasoning is scored like its answer, or only read."
    )
    max_tokens: PositiveInt = Field(1024, ge=8, description="Longest row, in tokens; packed rows are filled up to it.")
    too_long: Literal["truncate", "drop", "fail"] = Field(
        "truncate", description="`truncate` cuts at the end of an assistant turn, so that its stop token stays."
    )

    @model_validator(mode="after")
    def _are_uris(self) -> Self:
        check_uris(train=self.train, eval=self.eval)
        return self
