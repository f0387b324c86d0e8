"""Suggestions for misspelt ranges, and for ranges in the notation of Ray Tune, Optuna or W&B.

An experiment file accepts none of these notations: the suggestion is part of the error message.
"""

from __future__ import annotations

import ast
import difflib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from components.experiment.domains import DOMAINS

MAX_STEPS = 16  # a range in steps is spelled out up to here


@dataclass(frozen=True, slots=True, kw_only=True)
class Suggestion:
    """`right` is a domain of Turnwise as a mapping, or a plain value; None if nothing fits. `note` says what is lost."""

    right: Any
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Arguments:
    """The arguments of one range, in any notation."""

    given: tuple[Any, ...] = ()
    low: Any = None
    high: Any = None
    step: Any = None
    log: bool = False
    values: Any = None

    def bounds(self) -> tuple[float, float] | None:
        low, high = read_number(self.low), read_number(self.high)
        return None if low is None or high is None else (low, high)


LOW = ("low", "lower", "min", "minimum", "minvalue", "lowerbound", "lb", "start", "from", "begin")
HIGH = ("high", "upper", "max", "maximum", "maxvalue", "upperbound", "ub", "stop", "to", "end")
STEP = ("step", "q", "stepsize", "interval")
VALUES = ("values", "choices", "categories", "options", "oneof", "items")
LOG = ("log", "logscale", "scale")
MEAN, SPREAD = ("mu", "mean", "loc"), ("sigma", "sd", "std", "stddev")
KIND = ("distribution", "dist", "type", "sampler", "kind")


def suggest_domain(written: Any) -> Suggestion | None:
    """Returns what to write instead of a mapping or a text that looks like a range; None if it does not look like one."""
    if isinstance(written, str):
        return _from_call(written)
    if not isinstance(written, Mapping) or not written:
        return None
    ours = [key for key in written if key in DOMAINS]
    if len(ours) > 1:
        both = " or ".join(f"the {key}" for key in ours)
        return Suggestion(right=None, note=f"has {len(ours)} ranges: keep {both}")
    return _from_mapping(written)


def _from_call(written: str) -> Suggestion | None:
    """Reads a call, e.g. `tune.loguniform(1e-5, 1e-3)`."""
    match = re.fullmatch(r"\s*(?:[\w.]*\.)?(\w+)\s*(\(.*\))\s*", written, re.DOTALL)
    word = _known_word(match[1]) if match else None
    if match is None or word is None:
        return None
    given, named = _call_arguments(match[2])
    return WORDS[word](_arguments(given, named))


def _call_arguments(text: str) -> tuple[list[Any], dict[str, Any]]:
    """Returns the arguments in `(1e-5, 1e-3, log=True)`; none if they are not plain values."""
    try:
        call = ast.parse(f"f{text}", mode="eval").body
        if not isinstance(call, ast.Call):
            return [], {}
        named = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords if keyword.arg}
        return [ast.literal_eval(argument) for argument in call.args], named
    except (SyntaxError, ValueError):
        return [], {}


def _from_mapping(written: Mapping[Any, Any]) -> Suggestion | None:
    keys = {_normalize(key): value for key, value in written.items()}
    for key, value in keys.items():
        if key in KIND and isinstance(value, str) and (word := _known_word(value)):
            return WORDS[word](_arguments([], {name: each for name, each in keys.items() if name != key}))
    for key, value in keys.items():
        if key not in (*LOW, *HIGH, *STEP, *LOG) and (word := _known_word(key)):
            rest = {name: each for name, each in keys.items() if name != key}
            if isinstance(value, Mapping):
                return WORDS[word](_arguments([], {**rest, **{_normalize(name): each for name, each in value.items()}}))
            is_list = isinstance(value, list | tuple) and WORDS[word] not in (_choice, _grid)
            return WORDS[word](_arguments(list(value) if is_list else [value], rest))
    arguments = _arguments([], keys)
    if arguments.values is not None:
        return _choice(arguments)
    if _first(keys, MEAN) is not None:
        return _normal(_arguments([_first(keys, MEAN), _first(keys, SPREAD)], {}))
    return _continuous(arguments) if arguments.bounds() else None


def _arguments(given: Sequence[Any], named: Mapping[str, Any]) -> _Arguments:
    named = {_normalize(name): value for name, value in named.items()}
    if not given and _first(named, MEAN) is not None:
        given = [_first(named, MEAN), _first(named, SPREAD)]
    if len(given) > 1 and isinstance(given[0], str) and read_number(given[0]) is None and not isinstance(given[1], str):
        given = given[1:]  # Optuna's name of the parameter
    log = _first(named, LOG)
    low, high, step = (*given, None, None, None)[:3]
    return _Arguments(
        given=tuple(given),
        low=_first(named, LOW, low),
        high=_first(named, HIGH, high),
        step=_first(named, STEP, step),
        log=log is True or log == "log",
        values=_first(named, VALUES, given[0] if given and isinstance(given[0], list | tuple) else None),
    )


def _choice(arguments: _Arguments) -> Suggestion | None:
    return _list_domain("choice", arguments)


def _grid(arguments: _Arguments) -> Suggestion | None:
    return _list_domain("grid", arguments)


def _list_domain(kind: str, arguments: _Arguments) -> Suggestion | None:
    values = arguments.values
    if values is None and arguments.bounds():
        return _continuous(arguments)
    if values is None and arguments.given and not isinstance(arguments.given[0], Mapping | None):
        values = arguments.given
    if isinstance(values, list | tuple) and values:
        return Suggestion(right={kind: list(values)})
    return None


def _uniform(arguments: _Arguments) -> Suggestion | None:
    return _continuous(arguments)


def _log_uniform(arguments: _Arguments) -> Suggestion | None:
    """If the low end is not positive, both ends are exponents of e, as in W&B's `log_uniform`."""
    bounds = arguments.bounds()
    if bounds is None:
        return None
    if bounds[0] > 0:
        return Suggestion(right={"log_uniform": [arguments.low, arguments.high]})
    try:
        low, high = (_round(math.exp(bound)) for bound in bounds)
    except OverflowError:
        return None
    return Suggestion(right={"log_uniform": [low, high]}, note="its ends are read as exponents of e")


def _continuous(arguments: _Arguments) -> Suggestion | None:
    """A range from low to high; with a step, the choice of its values."""
    bounds, step = arguments.bounds(), read_number(arguments.step)
    if bounds is None:
        return None
    if step is not None and step > 0 and (bounds[1] - bounds[0]) / step <= MAX_STEPS:
        count = int((bounds[1] - bounds[0]) / step + 1e-9)
        return Suggestion(right={"choice": [_round(bounds[0] + step * number) for number in range(count + 1)]})
    kind = "log_uniform" if arguments.log and bounds[0] > 0 else "uniform"
    return Suggestion(right={kind: [arguments.low, arguments.high]})


def _integer(arguments: _Arguments) -> Suggestion | None:
    """Both ends are included, as in Optuna's suggest_int and W&B's int_uniform."""
    bounds = arguments.bounds()
    if bounds is None or not all(bound.is_integer() for bound in bounds):
        return _continuous(arguments)
    if read_number(arguments.step) not in (None, 1.0):
        return _continuous(arguments)
    return Suggestion(right={"integer": [int(bounds[0]), int(bounds[1])]})


def _integer_below(arguments: _Arguments) -> Suggestion | None:
    """The upper end is excluded, as in Ray's randint and lograndint."""
    bounds = arguments.bounds()
    if bounds is None:
        return None
    low, high = int(bounds[0]), int(bounds[1]) - 1
    note = f"randint leaves out its upper end {int(bounds[1])}"
    return Suggestion(right={"integer": [low, high]} if low < high else low, note=note)


def _normal(arguments: _Arguments) -> Suggestion | None:
    return _two_sigmas(arguments, "uniform", lambda value: value)


def _log_normal(arguments: _Arguments) -> Suggestion | None:
    return _two_sigmas(arguments, "log_uniform", math.exp)


def _two_sigmas(arguments: _Arguments, kind: str, ends: Callable[[float], float]) -> Suggestion:
    nothing = Suggestion(right=None, note="is a normal distribution, which Turnwise has not")
    mean, spread = (read_number(value) for value in (*arguments.given, None, None)[:2])
    if mean is None or spread is None or not spread > 0:
        return nothing
    try:
        low, high = (_round(ends(mean + sign * 2 * spread)) for sign in (-1, 1))
    except OverflowError:
        return nothing
    note = "there is no normal distribution; this is two standard deviations to each side"
    return Suggestion(right={kind: [low, high]}, note=note)


def _constant(arguments: _Arguments) -> Suggestion | None:
    if not arguments.given or isinstance(arguments.given[0], Mapping):
        return None
    return Suggestion(right=arguments.given[0])


def _computed(_: _Arguments) -> Suggestion | None:
    return Suggestion(right=None, note="computes a value, which no range here can; make a branch for each case")


WORDS: dict[str, Callable[[_Arguments], Suggestion | None]] = {
    **dict.fromkeys(("choice", "choices", "categorical", "values", "options", "oneof", "discrete"), _choice),
    **dict.fromkeys(("grid", "gridsearch"), _grid),
    **dict.fromkeys(("uniform", "quniform", "float", "discreteuniform", "range", "real"), _uniform),
    **dict.fromkeys(("loguniform", "qloguniform", "loguniformvalues", "qloguniformvalues", "logfloat"), _log_uniform),
    **dict.fromkeys(("integer", "integers", "int", "intuniform", "qrandint", "qlograndint"), _integer),
    **dict.fromkeys(("randint", "lograndint"), _integer_below),
    **dict.fromkeys(("normal", "qnormal", "randn", "qrandn"), _normal),
    **dict.fromkeys(("lognormal", "qlognormal"), _log_normal),
    **dict.fromkeys(("value", "constant", "fixed"), _constant),
    **dict.fromkeys(("samplefrom", "function", "lambda"), _computed),
}


def _known_word(name: Any) -> str | None:
    """Returns the key of WORDS nearest to a name such as `tune.loguniform`, `log-uniform`, `suggest_float` or `chioce`."""
    plain = _normalize(name).removeprefix("suggest").removesuffix("distribution")
    return next(iter(difflib.get_close_matches(plain, WORDS, n=1, cutoff=0.8)), None)


def _normalize(name: Any) -> str:
    return re.sub(r"[^a-z0-9]", "", str(name).rpartition(".")[2].lower())


def _first(named: Mapping[str, Any], names: Sequence[str], default: Any = None) -> Any:
    return next((named[name] for name in names if name in named), default)


def read_number(value: Any) -> float | None:
    """Reads a number that may be text: YAML reads 1e-5 as text."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _round(value: float) -> float | int:
    """Removes the digits of binary rounding; whole numbers become integers."""
    rounded = float(f"{value:.6g}")
    return int(rounded) if rounded.is_integer() and abs(rounded) < 1e6 else rounded
