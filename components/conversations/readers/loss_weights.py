"""How much an assistant's message is scored, in the words of several tools: loss, weight, train, training."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

WEIGHTS = ("loss", "weight")  # numbers; true and false are 1 and 0, as ChatGLM3's own data has them
SWITCHES = ("train", "training")
LOSS_KEYS = (*WEIGHTS, *SWITCHES)
# Beside a weight of 1, less would be lost in float32, which losses are summed in, and more would lose the others.
LOSS_WEIGHTS = (1e-6, 1e6)
MAX_SHOWN_OF_A_VALUE = 40


def weight_of(keys: dict[str, Any]) -> float:
    """Of keys in which broken_weights finds nothing; 1 where nothing is said."""
    given = _given(keys)
    numbers = [float(given[key]) for key in WEIGHTS if key in given]
    return 0.0 if any(given.get(key) is False for key in SWITCHES) else numbers[0] if numbers else 1.0


def asks_to_be_scored(keys: dict[str, Any]) -> str | None:
    """The key that asks for it, of a role that is never scored. A weight of 0, or of 1, what all have, asks nothing."""
    given = _given(keys)
    odd = [key for key in WEIGHTS if given.get(key, 0) not in (0, 1)]
    return next(iter([*odd, *(key for key in SWITCHES if given.get(key))]), None)


def broken_weights(keys: dict[str, Any]) -> list[str]:
    """What is wrong with each, or else among them."""
    given = _given(keys)
    return (list(_broken(given)) or list(_contradictions(given))) if given else []


def _given(keys: dict[str, Any]) -> dict[str, Any]:
    return {key: keys[key] for key in LOSS_KEYS if keys.get(key) is not None}


def _broken(given: dict[str, Any]) -> Iterator[str]:
    for key in WEIGHTS:
        if not _is_weight(given.get(key, 0)):
            least, most = LOSS_WEIGHTS
            yield f"has the loss weight {_short(given[key])}; it must be 0, or a number from {least:g} to {most:g}"
    for key in SWITCHES:
        if not isinstance(given.get(key, True), bool):
            yield f"has {key}: {given[key]!r}; it must be true or false"


def _is_weight(weight: Any) -> bool:
    least, most = LOSS_WEIGHTS
    return isinstance(weight, int | float) and (weight == 0 or least <= weight <= most)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= MAX_SHOWN_OF_A_VALUE else f"{text[:MAX_SHOWN_OF_A_VALUE]}..."


def _contradictions(given: dict[str, Any]) -> Iterator[str]:
    numbers = {float(given[key]) for key in WEIGHTS if key in given}
    scored = {given[key] for key in SWITCHES if key in given} | ({number > 0 for number in numbers})
    if len(numbers) > 1 or len(scored) > 1:
        said = ", ".join(f"{key}: {value!r}" for key, value in given.items())
        yield f"says in two ways how it is scored ({said}); say it once"
