"""The loss weight of an assistant's message, by the keys of several tools: loss, weight, train, training."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

WEIGHT_KEYS = ("loss", "weight")  # numbers; true and false are 1 and 0, as in ChatGLM3's own data
SWITCH_KEYS = ("train", "training")
LOSS_KEYS = (*WEIGHT_KEYS, *SWITCH_KEYS)
# Losses are summed in float32: beside a weight of 1, smaller weights would be lost, and larger ones would hide the others.
WEIGHT_RANGE = (1e-6, 1e6)
MAX_SHOWN_OF_A_VALUE = 40


def weight_of(keys: dict[str, Any]) -> float:
    """Returns the weight; 1 if no key gives one. weight_problems must have found nothing."""
    given = _loss_keys(keys)
    numbers = [float(given[key]) for key in WEIGHT_KEYS if key in given]
    return 0.0 if any(given.get(key) is False for key in SWITCH_KEYS) else numbers[0] if numbers else 1.0


def asks_to_be_scored(keys: dict[str, Any]) -> str | None:
    """Returns the key that asks to score a role that is never scored. Weights of 0 and 1 do not ask for it."""
    given = _loss_keys(keys)
    odd = [key for key in WEIGHT_KEYS if given.get(key, 0) not in (0, 1)]
    return next(iter([*odd, *(key for key in SWITCH_KEYS if given.get(key))]), None)


def weight_problems(keys: dict[str, Any]) -> list[str]:
    """Returns the problems of each key; if there are none, the contradictions between keys."""
    given = _loss_keys(keys)
    return (list(_value_problems(given)) or list(_contradictions(given))) if given else []


def _loss_keys(keys: dict[str, Any]) -> dict[str, Any]:
    return {key: keys[key] for key in LOSS_KEYS if keys.get(key) is not None}


def _value_problems(given: dict[str, Any]) -> Iterator[str]:
    for key in WEIGHT_KEYS:
        if not _is_weight(given.get(key, 0)):
            least, most = WEIGHT_RANGE
            yield f"has the loss weight {_excerpt(given[key])}; it must be 0, or a number from {least:g} to {most:g}"
    for key in SWITCH_KEYS:
        if not isinstance(given.get(key, True), bool):
            yield f"has {key}: {given[key]!r}; it must be true or false"


def _is_weight(weight: Any) -> bool:
    least, most = WEIGHT_RANGE
    return isinstance(weight, int | float) and (weight == 0 or least <= weight <= most)


def _excerpt(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= MAX_SHOWN_OF_A_VALUE else f"{text[:MAX_SHOWN_OF_A_VALUE]}..."


def _contradictions(given: dict[str, Any]) -> Iterator[str]:
    numbers = {float(given[key]) for key in WEIGHT_KEYS if key in given}
    scored = {given[key] for key in SWITCH_KEYS if key in given} | ({number > 0 for number in numbers})
    if len(numbers) > 1 or len(scored) > 1:
        said = ", ".join(f"{key}: {value!r}" for key, value in given.items())
        yield f"says in two ways how it is scored ({said}); say it once"
