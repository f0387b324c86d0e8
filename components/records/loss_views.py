"""The loss of one model on a split, seen from several sides. Plain values: they travel in results, reports and JSON."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence

from pydantic import BaseModel, ConfigDict, computed_field

MOST_SHOWN = 20  # groups of a side; the smaller ones are added up
OTHERS = "(others)"
_MAX_METRIC_LETTERS = 200  # MLflow's column in a database holds 250
_NOT_IN_METRIC_NAMES = re.compile(r"[^\w\-. ]")


class LossSlice(BaseModel):
    """Some of a split's targets. `loss_sum` is in weighted nats; `num_right` are those whose likeliest token is right."""

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="constants")

    name: str
    loss_sum: float
    num_targets: int
    num_right: int

    @computed_field  # type: ignore[prop-decorator]
    @property
    def loss(self) -> float:
        """Nats per target."""
        return self.loss_sum / self.num_targets

    @computed_field  # type: ignore[prop-decorator]
    @property
    def perplexity(self) -> float:
        return math.exp(self.loss) if self.loss < 700 else math.inf

    @computed_field  # type: ignore[prop-decorator]
    @property
    def token_accuracy(self) -> float:
        return self.num_right / self.num_targets


class EndCalibration(BaseModel):
    """Does the model end its turns where the data does? Probabilities are of a stop token as the next token.

    `at_ends` is the mean at the last token of each turn, `elsewhere` at all other targets (None if there are none).
    `error` is the expected calibration error over all targets: they are put into 10 bins by this probability, and the
    distance between a bin's mean probability and its share of ends is averaged over targets.
    """

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="constants")

    num_ends: int
    at_ends: float
    elsewhere: float | None
    error: float


class LossViews(BaseModel):
    """`whole` is the whole split. `sides` are turn, length, language, source and tag, each with its groups in order.

    turn: 1 is the first message of the assistant in its conversation, scored or not, 2 the second ...
    length: tokens of the sequence that the model has seen at the end of the turn, the turn included.
    language: the script of most letters of the answer. source: the file. tag: the value of data.tag.
    """

    model_config = ConfigDict(frozen=True)

    whole: LossSlice
    sides: dict[str, tuple[LossSlice, ...]]
    ends: EndCalibration

    def metrics(self) -> dict[str, float]:
        """Returns numbers by the names that MLflow takes: token_accuracy, loss_by_turn/1, loss_by_source/a.jsonl ..."""
        found = {
            "token_accuracy": self.whole.token_accuracy,
            "perplexity": self.whole.perplexity,
            "stop_at_ends": self.ends.at_ends,
            "stop_calibration_error": self.ends.error,
        }
        if self.ends.elsewhere is not None:
            found["stop_elsewhere"] = self.ends.elsewhere
        for side, slices in self.sides.items():
            for each in slices:
                found[f"loss_by_{side}/{_metric_name(each.name)}"] = each.loss
        return {name: value for name, value in found.items() if math.isfinite(value)}


def largest_first(slices: Sequence[LossSlice]) -> tuple[LossSlice, ...]:
    """Sorts by targets. Of more than MOST_SHOWN slices, the smallest become one."""
    ranked = sorted(slices, key=lambda each: (-each.num_targets, each.name))
    shown, rest = ranked[:MOST_SHOWN], ranked[MOST_SHOWN:]
    return (*shown, *([add_up(OTHERS, rest)] if rest else ()))


def add_up(name: str, slices: Sequence[LossSlice]) -> LossSlice:
    return LossSlice(
        name=name,
        loss_sum=math.fsum(each.loss_sum for each in slices),
        num_targets=sum(each.num_targets for each in slices),
        num_right=sum(each.num_right for each in slices),
    )


def sides_of(views: Sequence[LossViews]) -> Iterator[tuple[str, str, tuple[LossSlice | None, ...]]]:
    """Yields (side, group, that group's slice of each view) as the rows of a table; None where a view lacks the group."""
    for side, slices in views[0].sides.items():
        for each in slices:
            beside = ({other.name: other for other in view.sides.get(side, ())}.get(each.name) for view in views[1:])
            yield side, each.name, (each, *beside)


def _metric_name(name: str) -> str:
    """Slashes would be read as folders. The end of a path says more than its beginning."""
    return _NOT_IN_METRIC_NAMES.sub("_", name)[-_MAX_METRIC_LETTERS:]
