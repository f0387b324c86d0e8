"""What trials are ranked by, and where it is better: part of the section `search:`, and of every report."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

from components.experiment.spec.section import Spec

Direction = Literal["minimize", "maximize"]
EVAL_LOSS = "eval_loss"
GENERAL_LOSS = "general_loss"  # of text that no search trains on, passage by passage
# Scores of what a model says to a held-out conversation's last question. Each is a number per conversation; a trial's is
# their mean over the conversations that it says something of.
SCORES_OF_REPLIES: Mapping[str, tuple[Direction, str]] = {
    "chrf": ("maximize", "chrF of the answer against the reference, 0 to 100: n-grams of letters (sacrebleu)"),
    "bleu": ("maximize", "BLEU of the answer, 0 to 100: n-grams of words, or of Chinese characters (sacrebleu)"),
    "rouge_l": ("maximize", "ROUGE-L, 0 to 1: longest common sequence of words, or of Chinese characters (rouge-score)"),
    "exact_match": ("maximize", "1 if the answer is the reference, space at both ends aside"),
    "expect": ("maximize", "1 if the answer holds the record's `expect`: words, or a regular expression as /.../"),
    "json_valid": ("maximize", "1 if the answer is one JSON value, where the reference is a JSON object or list"),
    "json_schema": ("maximize", "1 if the answer is JSON that evaluation.generate.json_schema allows, as the reference is"),
    "tool_call": ("maximize", "1 if the calls have the reference's names and arguments, in its order, where it calls"),
    "stop_rate": ("maximize", "1 if the model ended its answer itself, before max_new_tokens"),
    "length_ratio": ("maximize", "letters of the shorter of answer and reference over those of the longer, 0 to 1"),
    "repetition": ("minimize", "share of the answer's 4-grams of words (characters in Chinese) that it had before"),
    "language_kept": ("maximize", "1 if the answer's main script is the reference's: Latin, Chinese, Cyrillic ..."),
}  # fmt: skip
_FUNCTION = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
FORMS = 'a name, {name: ..., direction: minimize | maximize}, or a function of yours as "module:function" with its direction'


class MetricSpec(Spec):
    """A number that every evaluation of a trial gives."""

    name: str = EVAL_LOSS
    direction: Direction = "minimize"

    def to_minimize(self, value: float) -> float:
        """Returns the value, with its sign turned where more is better: what every ranking sorts by, ascending."""
        return value if self.direction == "minimize" else -value

    @property
    def of_replies(self) -> bool:
        """Whether it needs the model to generate: its own loss does not."""
        return self.name in SCORES_OF_REPLIES or self.is_function

    @property
    def is_function(self) -> bool:
        return _FUNCTION.fullmatch(self.name) is not None

    @property
    def title(self) -> str:
        """For people: `eval loss`, `chrf`, `tone` of `my.scores:tone`."""
        return self.name.rpartition(":")[2].replace("_", " ")


def _read_metric(value: Any) -> Any:
    """Fills in what a name implies. Raises ValueError for an unknown name, or where only the user knows the direction."""
    if isinstance(value, MetricSpec):
        return value
    given = {"name": value} if isinstance(value, str) else value
    if not isinstance(given, dict) or not isinstance(given.get("name"), str):
        raise ValueError(f"want {FORMS}")
    name, direction = given["name"], given.get("direction")
    if _FUNCTION.fullmatch(name):
        if direction is None:
            raise ValueError(
                f"{name} is a function of yours: say where it is better, as {{name: {name}, direction: maximize}} or minimize"
            )
        return given
    known: dict[str, Direction] = {EVAL_LOSS: "minimize", **{key: each for key, (each, _) in SCORES_OF_REPLIES.items()}}
    if name not in known:
        nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f' (did you mean "{nearest[0]}"?)' if nearest else ""
        raise ValueError(f"no metric has this name{hint}; there are {', '.join(known)}, and {FORMS}")
    if direction not in (None, known[name]):
        raise ValueError(
            f"{name} is better where it is {_MORE[known[name]]}: leave direction out, or write {known[name]}"
        )
    return {**given, "direction": known[name]}


_MORE: dict[Direction, str] = {"minimize": "less", "maximize": "more"}
# A metric as a user writes it.
Metric = Annotated[MetricSpec, BeforeValidator(_read_metric, json_schema_input_type=str | MetricSpec)]
