"""Reads search.start_from: points of the space that are tried first, and the names of earlier searches."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from components.experiment.domain_suggestions import read_number
from components.experiment.domains import Choice, Domain, Grid, Integer, LogUniform, Uniform
from components.experiment.experiment_errors import ExperimentError, Problem, unknown_key
from components.experiment.parse_trial import to_yaml
from components.experiment.space import Branch, branch_order, branches_of, configuration_key, trial_spec
from components.experiment.spec import ExperimentSpec

LATEST = "latest"
_NAMED = re.compile(r"search:(?:(?P<experiment>[^/]+)/)?(?P<search>[^/]+)")
HOW = "write latest, search:ID, search:EXPERIMENT/ID, or a point, e.g. {branch: lora, method.rank: 16}"


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedSearch:
    """An earlier search of this storage; without `experiment` it is one of the same experiment."""

    experiment: str | None
    search_id: str

    def __str__(self) -> str:
        return f"search:{self.experiment}/{self.search_id}" if self.experiment else f"search:{self.search_id}"


def named_searches(experiment: ExperimentSpec) -> list[NamedSearch]:
    """Returns the earlier searches that the experiment names; LATEST is the id of the newest one that has ended."""
    names = [each for each in experiment.search.start_from if isinstance(each, str)]
    return [_named(name) for name in names]


def start_points(experiment: ExperimentSpec) -> dict[str, list[dict[str, Any]]]:
    """Returns the given values of the first trials of each branch, in their order, by dotted path.

    Raises ExperimentError with all that is wrong with them.
    """
    problems = list(start_problems(experiment))
    if problems:
        raise ExperimentError(problems)
    branches = branches_of(experiment)
    points: dict[str, list[dict[str, Any]]] = {name: [] for name in branches}
    for _, point in _written(experiment):
        branch = branches[point["branch"]]
        points[branch.name].append(
            {path: value_in(branch.domains[path], value) for path, value in _values(point) if path in branch.domains}
        )
    return points


def start_problems(experiment: ExperimentSpec) -> Iterator[Problem]:
    """Yields what is wrong with search.start_from: no such branch, no such value, a value outside its range."""
    branches = branches_of(experiment)
    counts = dict.fromkeys(branches, 0)
    whole: dict[str, int] = {}
    for number, name in enumerate(experiment.search.start_from):
        if isinstance(name, str) and name != LATEST and not _NAMED.fullmatch(name):
            yield Problem(location=f"search.start_from.{number}", text=f"{name} names no search; {HOW}")
    for number, point in _written(experiment):
        location = f"search.start_from.{number}"
        branch = branches.get(str(point.get("branch")))
        if branch is None:
            known = ", ".join(branches)
            yield Problem(location=location, text=f"has no branch of search.space ({known}); {HOW}")
            continue
        problems = list(_point_problems(branch, point, location))
        yield from problems
        counts[branch.name] += 1
        values = dict(_values(point))
        if not problems and branch.domains.keys() <= values.keys():
            drawn = {path: value_in(domain, values[path]) for path, domain in branch.domains.items()}
            key = configuration_key(trial_spec(experiment, branch, drawn))
            if key in whole:
                yield Problem(location=location, text=f"is search.start_from.{whole[key]} again; give each point once")
            whole.setdefault(key, number)
    order = [branch.name for branch in branch_order(experiment)] if any(counts.values()) else []
    for name, count in counts.items():
        if count > order.count(name):
            text = f"gives {count} points of {name}, which has {order.count(name)} trials; raise search.trials"
            yield Problem(location="search.start_from", text=text)


def value_in(domain: Domain, written: Any) -> Any:
    """Returns a written value as the domain has it. Raises ValueError if it lies outside."""
    match domain:
        case Choice(choice=values) | Grid(grid=values):
            found = [value for value in values if to_yaml(value) == to_yaml(written) or _is_same_number(value, written)]
            if found:
                return found[0]
        case Uniform(uniform=(low, high)) | LogUniform(log_uniform=(low, high)) | Integer(integer=(low, high)):
            number = read_number(written)
            if number is not None and low <= number <= high:
                if not isinstance(domain, Integer):
                    return number
                if number.is_integer():
                    return int(number)
    raise ValueError(f"{to_yaml(written)} is not in {to_yaml(domain.model_dump(mode='json'))}")


def _point_problems(branch: Branch, point: Mapping[str, Any], location: str) -> Iterator[Problem]:
    for path, value in _values(point):
        here = f"search.space.{branch.name}.{path}"
        if path in branch.domains:
            try:
                value_in(branch.domains[path], value)
            except ValueError as error:
                text = f"{error}; give a value of that range, or widen {here}"
                yield Problem(location=f"{location}.{path}", text=text)
        elif path not in branch.constants:
            text = unknown_key(path, sorted([*branch.domains, *branch.constants]))
            yield Problem(location=f"{location}.{path}", text=f"{text}: a point has values that {branch.name} varies")
        elif to_yaml(branch.constants[path]) != to_yaml(value) and not _is_same_number(branch.constants[path], value):
            text = (
                f"{to_yaml(value)}, but {here} is {to_yaml(branch.constants[path])}; leave it out, or give it a range"
            )
            yield Problem(location=f"{location}.{path}", text=text)


def _written(experiment: ExperimentSpec) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, each in enumerate(experiment.search.start_from):
        if not isinstance(each, str):
            yield number, each


def _values(point: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (dotted path, value); `method: {rank: 16}` is method.rank, too."""
    for key, value in point.items():
        if isinstance(value, Mapping):
            yield from _values(value, f"{above}{key}.")
        elif above or key != "branch":
            yield f"{above}{key}", value


def _named(name: str) -> NamedSearch:
    match = _NAMED.fullmatch(name)
    if match is None:
        return NamedSearch(experiment=None, search_id=LATEST)
    return NamedSearch(experiment=match["experiment"], search_id=match["search"])


def _is_same_number(one: Any, other: Any) -> bool:
    return read_number(one) is not None and read_number(one) == read_number(other)
