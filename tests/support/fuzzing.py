"""Seeded mutations for tests that ask of any input: a plain result or a plain sentence, in bounded time.

FUZZ_INPUTS=N makes a test try N inputs instead of some hundreds, and FUZZ_SEED begins elsewhere.
"""

from __future__ import annotations

import copy
import os
import random
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

SEED = int(os.environ.get("FUZZ_SEED", "0"))
MAX_MESSAGE = 30_000  # letters: some screens, of several files


def num_inputs(few: int) -> int:
    return int(os.environ.get("FUZZ_INPUTS", few))


def cases(few: int) -> Iterator[random.Random]:
    """Yields a generator of its own for each input, so that one that fails can be repeated alone (FUZZ_SEED, FUZZ_INPUTS=1).

    With FUZZ_INPUTS it prints at the end which input took longest, and the most memory that this process had.
    """
    slowest = (0.0, SEED)
    for number in range(SEED, SEED + num_inputs(few)):
        began = time.process_time()
        yield random.Random(number)
        slowest = max(slowest, (time.process_time() - began, number))
    if "FUZZ_INPUTS" in os.environ:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"{num_inputs(few)} inputs, slowest {slowest[0]:.2f} s (seed {slowest[1]}), peak {peak:,.0f} MB")


def mutate_bytes(chance: random.Random, content: bytes, odd: Sequence[bytes]) -> bytes:
    """Flips, cuts, doubles and inserts bytes."""
    mutated = bytearray(content)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(mutated) + 1)
        what = chance.random()
        if what < 0.4 and mutated:
            mutated[min(at, len(mutated) - 1)] = chance.randrange(256)
        elif what < 0.7:
            mutated[at:at] = chance.choice(odd)
        elif what < 0.85:
            del mutated[at : at + chance.choice((1, 2, 10, 100))]
        else:
            mutated[at:at] = mutated[max(0, at - chance.randint(1, 60)) : at]
    return bytes(mutated)


def mutate_tree(chance: random.Random, tree: Any, leaf: Callable[[random.Random], Any]) -> Any:
    """Returns a copy with one to three of its values or keys replaced, removed or added."""
    tree = copy.deepcopy(tree)
    for _ in range(chance.randint(1, 3)):
        holders = list(_holders(tree))
        if not holders:
            return leaf(chance)
        holder = chance.choice(holders)
        keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
        what = chance.random()
        if not keys or what < 0.15:
            _add(chance, holder, copy.deepcopy(leaf(chance)))
        elif what < 0.3:
            del holder[chance.choice(keys)]
        elif what < 0.4 and isinstance(holder, dict):
            key = chance.choice(keys)
            holder[str(key) + chance.choice(("s", "_", " ", "\0"))] = holder.pop(key)
        else:
            holder[chance.choice(keys)] = copy.deepcopy(leaf(chance))
    return tree


def _add(chance: random.Random, holder: Any, value: Any) -> None:
    if isinstance(holder, dict):
        holder[chance.choice(("loss", "name", "tools", "x", "", "content", "kind", "model"))] = value
    else:
        holder.insert(chance.randrange(len(holder) + 1), value)


def _holders(tree: Any) -> Iterator[Any]:
    if isinstance(tree, dict | list):
        yield tree
        for value in list(tree.values()) if isinstance(tree, dict) else tree:
            yield from _holders(value)
