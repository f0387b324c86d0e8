"""The section `data:`: which conversations are read, how they are split, and what happens to those that do not fit."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from components.experiment.spec.chat_format import SystemPlace
from components.experiment.spec.section import Seed, Share, Spec, check_uris

MOST_HELD_OUT = 0.5  # by eval and an automatic verdict split together


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
        description="Share held out where `eval` is not given, by a hash of a conversation's words or of its group.",
    )
    verdict: str | tuple[str, ...] | None = Field(
        None,
        description="Conversations for the gate alone, which nothing before it reads; without it `verdict_fraction`.",
    )
    verdict_fraction: Annotated[float, Field(ge=0.0, lt=1.0)] | Literal["auto"] = Field(
        "auto",
        description="Share for the gate alone, by the same hash: of `train`, or of `eval` where that is given, which then"
        " ranks trials by the rest. `auto` is `eval_fraction`, or half of `eval`, and none where that is too little to"
        " decide or leaves less than half to train on; 0 is none.",
    )
    group_by: str | None = Field(
        None,
        min_length=1,
        description="Field of each record (a text or a whole number; null: none) whose equal values stand on one side, e.g."
        " `user_id`; by default `group`, which a record may lack.",
    )
    near_duplicates: Annotated[float, Field(ge=0.5, le=1.0)] = Field(
        0.7,
        description="Similarity (Jaccard, of pieces of 8 bytes) from which on a conversation says the same as one of another"
        " side: it is not trained on if that one is held out, and not in eval if that one is in the verdict. 1: only equal"
        " words are.",
    )
    split_seed: Seed = Field(0, description="Part of that hash: another seed is another split.")
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
    max_tokens: Annotated[int, Field(ge=8, le=100_000_000)] = Field(
        1024, description="Longest row, in tokens; packed rows are filled up to it."
    )
    too_long: Literal["truncate", "drop", "fail"] = Field(
        "truncate", description="`truncate` cuts at the end of an assistant turn, so that its stop token stays."
    )

    on_cluster_from: Annotated[int, Field(ge=1)] | None = Field(
        100_000,
        description="From so many conversations on the CPUs of the search's cluster prepare them, and an interrupted"
        " preparation goes on where it was; processes of this machine prepare fewer. null: always they. Changes no token.",
    )

    @model_validator(mode="after")
    def _are_uris(self) -> Self:
        check_uris(train=self.train, eval=self.eval, verdict=self.verdict)
        return self

    @model_validator(mode="after")
    def _leave_some_to_train_on(self) -> Self:
        if self.verdict_is_split and self.eval is None and self.eval_fraction + self.verdict_share >= 1:
            raise ValueError(
                f"eval_fraction={self.eval_fraction} and verdict_fraction={self.verdict_fraction} leave nothing to train on:"
                " together they must be below 1"
            )
        return self

    @property
    def verdict_is_split(self) -> bool:
        """Whether a share of `train`, or of `eval`, is for the gate alone."""
        return self.verdict is None and self.verdict_share > 0

    @property
    def verdict_is_automatic(self) -> bool:
        """Whether a verdict split that is too small is not made."""
        return self.verdict is None and self.verdict_fraction == "auto"

    @property
    def verdict_share(self) -> float:
        """The share of `train`, or of `eval` where that is given."""
        if self.verdict_fraction != "auto":
            return self.verdict_fraction
        if self.eval is not None:
            return 0.5
        return self.eval_fraction if 2 * self.eval_fraction <= MOST_HELD_OUT else 0.0
