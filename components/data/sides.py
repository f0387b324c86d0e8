"""The sides of a split, kept apart: what one of them says, in equal or nearly equal words, no other one has.

The verdict split keeps all of its conversations, whatever is added to the data. Eval gives way to it, and training to both:
so a new record that says what a held-out one says is dropped, and never the other way round.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from components.data.conversation_file import Conversations
from components.data.near_duplicates import NearDuplicates


@dataclass(frozen=True, slots=True, kw_only=True)
class Sides:
    """Distinct conversations of each side, in file order.

    `duplicates` counts equal conversations within a side. Removed from training were `leaked` conversations, whose words or
    group are held out, and `near_duplicates`, which say nearly what a held-out one says. `eval_leaked` were removed from
    eval for either reason beside the verdict split. `dropped` has a line for each of these three kinds.
    """

    train: Conversations
    eval: Conversations
    verdict: Conversations
    duplicates: int
    leaked: int
    near_duplicates: int
    eval_leaked: int
    dropped: tuple[str, ...]


def keep_apart(train: Conversations, held_out: Conversations, verdict: Conversations, *, threshold: float) -> Sides:
    """Removes from each side what a later one has. All are of one file; `threshold` is that of NearDuplicates."""
    sides = [_distinct(side) for side in (train, held_out, verdict)]
    every = Conversations(train.file, np.concatenate([side.numbers for side in sides]))
    first, second = len(sides[0]), len(sides[0]) + len(sides[1])
    of_train, of_eval, of_verdict = range(first), range(first, second), range(second, len(every))
    near = NearDuplicates(every.words, threshold=threshold)
    leaked_eval = _equal(every, of_eval, of_verdict)
    near_eval = near.find(sorted(set(of_eval) - leaked_eval.keys()), of_verdict)
    # What eval gave up for the verdict is not trained on either: else it would come and go with the verdict's.
    leaked = _equal(every, of_train, range(first, len(every)))
    near_train = near.find(sorted(set(of_train) - leaked.keys()), range(first, len(every)))
    near_ones = {
        index: (pair.other, f"says nearly ({pair.similarity:.2f}) what")
        for index, pair in {**near_eval, **near_train}.items()
    }
    why = {**leaked_eval, **leaked, **near_ones}
    return Sides(
        train=every.only(index for index in of_train if index not in why),
        eval=every.only(index for index in of_eval if index not in why),
        verdict=sides[2],
        duplicates=len(train) + len(held_out) + len(verdict) - len(every),
        leaked=len(leaked),
        near_duplicates=len(near_train),
        eval_leaked=len(leaked_eval) + len(near_eval),
        dropped=tuple(
            f"{every[index].source}: {how} {every[other].source} says ({'eval' if other in of_eval else 'verdict'})"
            for index, (other, how) in sorted(why.items())
        ),
    )


def _equal(every: Conversations, indices: Sequence[int], others: Sequence[int]) -> dict[int, tuple[int, str]]:
    """Returns, by index, those whose words or group one of `others` has: (that one, how they are alike)."""
    owners: dict[str, int] = {}
    for other in others:
        for key in every.keys(other):
            owners.setdefault(key, other)
    alike: dict[int, tuple[int, str]] = {}
    for index in indices:
        for key, how in zip(every.keys(index), ("says what", "is of the group of what"), strict=False):
            if key in owners:
                alike.setdefault(index, (owners[key], how))
    return alike


def _distinct(side: Conversations) -> Conversations:
    """Equal conversations have the same tokens in every format."""
    first: dict[bytes, int] = {}
    for index in range(len(side)):
        first.setdefault(side.equals(index), index)
    return side.only(first.values())
