"""What is said where a side of the split is empty: why, and which fraction would do."""

from __future__ import annotations

from collections.abc import Mapping

from components.data.conversation_file import Conversations
from components.data.sides import Sides
from components.data.split_membership import fraction_that_holds_out, fraction_that_leaves, mark_of
from components.errors import InputError
from components.experiment.spec import DataSpec

ALONE = "for where each goes depends on itself alone"


def check_not_empty(source: Conversations, data: DataSpec, share: float, sides: Mapping[str, Conversations]) -> None:
    """Raises InputError if eval, a verdict of this share, or what is left of `source` for training is empty.

    Args:
        source: the conversations that were split.
    """
    wanted = [name for name in ("eval", "verdict", "train") if name != "verdict" or share]
    empty = [name for name in wanted if not sides[name]]
    if not empty:
        return
    marks = {mark_of(source.keys(index), data.split_seed) for index in range(len(source))}
    split_off = "data.eval" if data.eval is not None else "data.train"
    names = wanted[:2] if data.eval is not None else [wanted[-1], *wanted[:-1]]
    if len(marks) < len(names):
        counted = "conversation (or group of them)" if len(marks) == 1 else "conversations (or groups of them)"
        raise InputError(
            f"{split_off}: {len(marks)} distinct {counted} cannot be split into {' and '.join(names)}; add conversations, or"
            f" give data.{'verdict' if share else 'eval'}"
        )
    key, found, would, enough = _fraction_that_would_do(empty[0], marks, data, share)
    way_out = f"{enough} {would}; " if enough is not None else ""
    raise InputError(
        f"{key} {found} of {len(marks)} distinct conversations (or groups), {ALONE}; {way_out}or add conversations, or give"
        f" data.{'verdict' if 'verdict' in key else 'eval'}"
    )


def check_some_left(sides: Sides, data: DataSpec) -> None:
    """Raises InputError if all that would be trained on, or all of eval, is held out by another side."""
    near = "; data.near_duplicates=1 leaves out only what is equal" if sides.near_duplicates else ""
    if not sides.train:
        raise InputError(f"data.train: every conversation is held out as well, so there is none to train on{near}")
    if not sides.eval:
        raise InputError(f"data.eval: every conversation is in the verdict split as well, so none ranks trials{near}")


def _fraction_that_would_do(
    empty: str, marks: set[float], data: DataSpec, share: float
) -> tuple[str, str, str, float | None]:
    """Returns (the key with its value, what it does, what another value would do, that value)."""
    first = data.eval_fraction if data.eval is None else 0.0
    if empty == "verdict":
        later = [mark - first for mark in marks if mark >= first]
        return f"data.verdict_fraction={share}", "takes none", "takes some", fraction_that_holds_out(1, later)
    if data.eval is not None:
        found = "leaves none to rank trials"
        return f"data.verdict_fraction={share}", found, "leaves some", fraction_that_leaves(1, marks)
    if empty == "eval":
        found = "holds out none"
        return f"data.eval_fraction={first}", found, "holds out some", fraction_that_holds_out(1, marks)
    enough = fraction_that_leaves(1, marks)
    if not share:
        return f"data.eval_fraction={first}", "leaves none to train on", "leaves some", enough
    both = f"data.eval_fraction={first} and data.verdict_fraction={share}"
    return both, "leave none to train on", "for both together leaves some", enough
