"""The kinds of range a hyperparameter can have in a search space, e.g. `rank: {choice: [8, 16]}`.

A domain knows its extremes (checked before anything starts), how to draw from a seeded generator, and its grid points.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from components.experiment.spec import Spec

MAX_LISTED = 1000  # values of a choice or grid
# No hyperparameter is larger, and a machine counts what lies between.
Whole = Annotated[int, Field(ge=-(10**15), le=10**15)]


class Choice(Spec):
    """One of the listed values, each as likely as the others."""

    choice: tuple[Any, ...] = Field(min_length=1, max_length=MAX_LISTED)

    def extremes(self) -> list[Any]:
        return list(self.choice)

    def draw(self, generator: random.Random) -> Any:
        return generator.choice(self.choice)

    def points(self) -> Sequence[Any] | None:
        return list(self.choice)


class Grid(Spec):
    """Every listed value in turn. `sampler: grid` crosses the grids of a branch; other samplers draw from it."""

    grid: tuple[Any, ...] = Field(min_length=1, max_length=MAX_LISTED)

    def extremes(self) -> list[Any]:
        return list(self.grid)

    def draw(self, generator: random.Random) -> Any:
        return generator.choice(self.grid)

    def points(self) -> Sequence[Any] | None:
        return list(self.grid)


def _check_bounds(bounds: tuple[float, float], kind: str) -> None:
    low, high = bounds
    if low >= high:
        raise ValueError(f"{kind} needs [low, high] with low < high, not [{low}, {high}]")


class Uniform(Spec):
    """A real number in [low, high)."""

    uniform: tuple[float, float]

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        _check_bounds(self.uniform, "uniform")
        return self

    def extremes(self) -> list[Any]:
        return list(self.uniform)

    def draw(self, generator: random.Random) -> Any:
        return generator.uniform(*self.uniform)

    def points(self) -> Sequence[Any] | None:
        return None


class LogUniform(Spec):
    """A positive real number in [low, high), its logarithm uniform."""

    log_uniform: tuple[float, float]

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        _check_bounds(self.log_uniform, "log_uniform")
        if self.log_uniform[0] <= 0:
            raise ValueError(f"log_uniform needs a low bound above 0, not {self.log_uniform[0]}")
        return self

    def extremes(self) -> list[Any]:
        return list(self.log_uniform)

    def draw(self, generator: random.Random) -> Any:
        low, high = self.log_uniform
        return math.exp(generator.uniform(math.log(low), math.log(high)))

    def points(self) -> Sequence[Any] | None:
        return None


class Integer(Spec):
    """A whole number from low to high, both included."""

    integer: tuple[Whole, Whole]

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        _check_bounds(self.integer, "integer")
        return self

    def extremes(self) -> list[Any]:
        return list(self.integer)

    def draw(self, generator: random.Random) -> Any:
        return generator.randint(*self.integer)

    def points(self) -> Sequence[Any] | None:
        return range(self.integer[0], self.integer[1] + 1)


Domain = Choice | Grid | Uniform | LogUniform | Integer

DOMAINS: dict[str, type[Choice] | type[Grid] | type[Uniform] | type[LogUniform] | type[Integer]] = {
    "choice": Choice,
    "grid": Grid,
    "uniform": Uniform,
    "log_uniform": LogUniform,
    "integer": Integer,
}
