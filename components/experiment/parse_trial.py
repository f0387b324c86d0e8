"""Reads a trial section or a branch along the types of TrialSpec, so that every key is known to be a field.

A mapping in place of a value is either one domain that the field can have, or a problem whose text suggests the nearest
valid domain. Nothing is dropped.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from components.experiment.branch_models import MODEL, read_model
from components.experiment.domain_suggestions import Suggestion, suggest_domain
from components.experiment.domains import DOMAINS, Domain, LogUniform
from components.experiment.experiment_errors import Problem, problems_of, unknown_key
from components.experiment.spec import TrialSpec
from components.experiment.type_introspection import members, options, sections

SHARED_BY_ALL_TRIALS = ("budget", "seed")
MAX_EXCERPT_LETTERS = 100
AUTO_RANGE, WIDEST = "optimizer.learning_rate", (1e-7, 1e-1)
Where = Literal["branch", "trial", "clone"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaf:
    """One value of a trial: the field `name` of `model`, at a dotted `path` into a TrialSpec."""

    path: str
    model: type[BaseModel]
    name: str

    @property
    def annotation(self) -> Any:
        return self.model.model_fields[self.name].annotation

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of domain that the field may have."""
        parts = members(self.annotation)
        if float in parts:
            return tuple(DOMAINS)
        if int in parts:
            return ("choice", "grid", "integer")
        return () if self.is_tag else ("choice", "grid")

    @property
    def is_tag(self) -> bool:
        """Whether it is the tag of a union, as `method.kind`."""
        return len(members(self.annotation)) == 1 == len(options(self.annotation))

    @property
    def noun(self) -> str:
        parts = members(self.annotation)
        if float in parts:
            return "a number"
        if int in parts:
            return "a whole number"
        if bool in parts:
            return "true or false"
        return "a list" if self.takes_lists else f"one of {', '.join(options(self.annotation))}"

    @property
    def takes_lists(self) -> bool:
        return any(get_origin(each) is tuple for each in members(self.annotation))

    @property
    def default(self) -> Any:
        value = self.model.model_fields[self.name].get_default()
        return list(value) if isinstance(value, tuple) else value

    def parse(self, value: Any, section: str) -> tuple[Any, list[Problem]]:
        """Returns the value as the field parses it, in JSON's types, and its problems. `section` locates its model."""
        location = join_path(section, self.name)
        try:
            parsed = self.model.model_validate({self.name: value})
        except ValidationError as error:
            found = problems_of(error, self.model, prefix=section)
            return value, [problem for problem in found if (problem.location + ".").startswith(location + ".")]
        return parsed.model_dump(mode="json")[self.name], []


@dataclass(frozen=True, slots=True)
class Reading:
    """The values and domains that were read, by dotted path into a TrialSpec; `problems` is what could not be read.

    `model` is a branch's own base model, None if it has the experiment's.
    """

    constants: dict[str, Any] = field(default_factory=dict)
    domains: dict[str, Domain] = field(default_factory=dict)
    model: Mapping[str, Any] | None = None
    problems: list[Problem] = field(default_factory=list)


def read_trial(tree: Any, *, kind: str, location: str, where: Where) -> Reading:
    """Reads a mapping in the form of the `trial:` section.

    Args:
        kind: the method, if the mapping names none.
        location: of the mapping in the file.
        where: what is read. Only the values of a branch may be domains.
    """
    reader = _Reader(kind, location, where)
    reader.read_section(TrialSpec, tree, ())
    return reader.reading


def read_branch(name: str, tree: Any, *, kind: str) -> Reading:
    """Reads one branch of search.space; `kind` is the method under `trial:`."""
    location = f"search.space.{name}"
    if name in TrialSpec.model_fields:
        text = f"is a value of a trial and no branch: write search.space.BRANCH.{name}, with a name for the branch"
        return Reading(problems=[Problem(location=location, text=text)])
    if not (isinstance(tree, Mapping) and MODEL in tree):
        return read_trial(tree, kind=kind, location=location, where="branch")
    rest = {key: value for key, value in tree.items() if key != MODEL}
    reading, model = read_trial(rest, kind=kind, location=location, where="branch"), tree[MODEL]
    problems = read_model(model, f"{location}.{MODEL}")
    return replace(reading, model=model, problems=[*problems, *reading.problems])


def leaves_of(model: type[BaseModel] = TrialSpec, above: tuple[str, ...] = ()) -> Iterator[Leaf]:
    """Yields every value that a trial can have. A path may come twice, once for each method."""
    for name, info in model.model_fields.items():
        if inner := sections(info.annotation):
            for member in inner:
                yield from leaves_of(member, (*above, name))
        else:
            yield Leaf(path=".".join((*above, name)), model=model, name=name)


def join_path(location: str, path: str) -> str:
    """Returns a dotted location; each part may be empty."""
    return ".".join(filter(None, (location, path)))


def to_yaml(value: Any) -> str:
    """Returns the value as one line of YAML."""
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=math.inf)
    return text.removesuffix("\n").removesuffix("\n...")


class _Reader:
    def __init__(self, kind: str, location: str, where: Where) -> None:
        self.kind, self.location, self.where = kind, location, where
        self.reading = Reading()

    def read_section(self, model: type[BaseModel], tree: Any, path: tuple[str, ...]) -> None:
        is_empty = tree == {} and path and self.where != "trial"
        if not isinstance(tree, Mapping) or is_empty or set(tree) & set(DOMAINS):
            self._refuse(path, _section_advice(model, tree, path))
            return
        for key, value in tree.items():
            here = (*path, str(key))
            info = model.model_fields.get(str(key))
            if info is None:
                self._refuse(here, unknown_key(str(key), sorted(model.model_fields)))
            elif here[0] in SHARED_BY_ALL_TRIALS and self.where != "trial":
                self._refuse_shared(value if sections(info.annotation) else None, here)
            elif inner := sections(info.annotation):
                self._read_member(inner, info.discriminator, value, here)
            else:
                self._read_leaf(Leaf(path=".".join(here), model=model, name=str(key)), value)

    def _read_member(self, models: Sequence[type[BaseModel]], tag: Any, tree: Any, path: tuple[str, ...]) -> None:
        """Reads a section; of a tagged union, the member that its tag names."""
        if len(models) == 1:
            self.read_section(models[0], tree, path)
            return
        kinds = {options(model.model_fields[tag].annotation)[0]: model for model in models}
        named = tree.get(tag, self.kind) if isinstance(tree, Mapping) else self.kind
        if isinstance(named, str) and named in kinds:
            self.read_section(kinds[named], tree, path)
        else:
            self._refuse((*path, tag), self._method_advice(named, tuple(kinds)))

    def _method_advice(self, named: Any, kinds: tuple[str, ...]) -> str:
        if self.where == "branch" and (isinstance(named, Mapping | list) or suggest_domain(named) is not None):
            each = ", ".join(f"{kind}: {{method: {{kind: {kind}}}}}" for kind in kinds)
            return f"a method is not drawn: make a branch of search.space for each, e.g. {{{each}}}"
        hint = "; QLoRA is kind: lora with quantize: nf4" if "qlora" in str(named).lower() else ""
        return f"is one of {', '.join(kinds)}, not {_excerpt(named)}{hint}"

    def _read_leaf(self, leaf: Leaf, value: Any) -> None:
        kind = _domain_kind(value)
        if value == "auto" and leaf.path == AUTO_RANGE:
            self._read_auto(leaf)
        elif (
            kind in leaf.kinds
            and isinstance(value[kind], list | tuple)
            and value[kind]
            and not _holds_mapping(value[kind])
        ):
            self._read_domain(leaf, value)
        elif isinstance(value, Mapping) or suggest_domain(value) is not None:
            self._refuse_range(leaf, value, suggest_domain(value))
        elif _holds_mapping(value):
            example = to_yaml({leaf.name: _example(leaf)})[1:-1]
            self._refuse(leaf.path, f"a range cannot stand inside a list; choose among whole lists, e.g. {example}")
        elif isinstance(value, list | tuple) and not leaf.takes_lists:
            self._refuse_range(leaf, value, suggest_domain({"choice": value}))
        else:
            self.reading.constants[leaf.path], problems = leaf.parse(value, self._section(leaf))
            self.reading.problems.extend(problems)

    def _read_auto(self, leaf: Leaf) -> None:
        """Reads a range that the model's size decides (learning_rate_prior.py): until it is known, the widest one."""
        if self.where == "branch":
            self.reading.domains[leaf.path] = LogUniform(log_uniform=WIDEST)
        else:
            self._refuse(leaf.path, f"auto is a range: {self._advice(leaf, {'auto': leaf.path})}")

    def _read_domain(self, leaf: Leaf, value: Mapping[str, Any]) -> None:
        domain, problems = parse_domain(leaf, value, self._section(leaf))
        if self.where != "branch":
            self._refuse(leaf.path, f"{_excerpt(value)} is a range: {self._advice(leaf, value)}")
        elif domain is not None:
            self.reading.domains[leaf.path] = domain
        else:
            right = self._fit(leaf, value) if "integer" in value else None
            advice = f"; {self._advice(leaf, right)}" if right is not None else ""
            self.reading.problems.extend(Problem(location=each.location, text=each.text + advice) for each in problems)

    def _refuse_range(self, leaf: Leaf, written: Any, meant: Suggestion | None) -> None:
        """Refuses a mapping, a list or a text where one value or one domain is expected."""
        right = None if meant is None or meant.right is None else self._fit(leaf, meant.right)
        kind, note = _domain_kind(written), "" if meant is None else meant.note
        if kind is not None and kind not in leaf.kinds:
            reason = f"is {leaf.noun}, so {_excerpt(written)} cannot be drawn for it"
            note = (
                "each whole number is equally likely; list some as a choice for others"
                if "integer" in leaf.kinds
                else note
            )
        elif right is None and note:
            reason, note = f"{_excerpt(written)} {note}", ""
        else:
            reason = f"{_excerpt(written)} is neither a value nor one range of {', '.join(leaf.kinds)}"
        advice = self._advice(leaf, right) if right is not None else f"e.g. {self._assignment(leaf, _example(leaf))}"
        self._refuse(leaf.path, f"{reason}; {advice}" + f" ({note})" * bool(note))

    def _fit(self, leaf: Leaf, right: Any) -> Any:
        """Returns the nearest domain or value that the field can have; None if there is none."""
        nearest = _nearest_domain(leaf, right) if isinstance(right, Mapping) else right
        if nearest is None:
            return None
        if isinstance(nearest, Mapping):
            domain, _ = parse_domain(leaf, nearest, self._section(leaf))
            return nearest if domain is not None else None
        return nearest if not leaf.parse(nearest, self._section(leaf))[1] else None

    def _advice(self, leaf: Leaf, right: Any) -> str:
        if not isinstance(right, Mapping) or self.where == "branch":
            return f"write {self._assignment(leaf, right)}"
        if leaf.path.partition(".")[0] in SHARED_BY_ALL_TRIALS:
            return "all trials share one value"
        if self.where == "clone":
            return f"a clone has one value, e.g. {leaf.path}={to_yaml(leaf.default)}"
        written = "auto" if "auto" in right else to_yaml(right)
        return f"all trials share what stands under trial:, so write search.space.BRANCH.{leaf.path}: {written}"

    def _assignment(self, leaf: Leaf, right: Any) -> str:
        if isinstance(right, Mapping) and self.where == "clone":
            return f"{leaf.path}={to_yaml(leaf.default)}"
        return f"{leaf.name}: {to_yaml(right)}"

    def _refuse_shared(self, value: Any, path: tuple[str, ...]) -> None:
        text = {
            "branch": "is shared by all trials; set it under trial: as {}",
            "clone": "is shared by all trials of a search, so that they can be compared",
        }[self.where]
        for here in [(*path, str(key)) for key in value] if isinstance(value, Mapping) and value else [path]:
            self._refuse(here, text.format(".".join(here)))

    def _refuse(self, path: tuple[str, ...] | str, text: str) -> None:
        dotted = path if isinstance(path, str) else ".".join(path)
        self.reading.problems.append(Problem(location=join_path(self.location, dotted), text=text))

    def _section(self, leaf: Leaf) -> str:
        return join_path(self.location, leaf.path.rpartition(".")[0])


def parse_domain(leaf: Leaf, written: Mapping[str, Any], section: str) -> tuple[Domain | None, list[Problem]]:
    """Returns a domain whose values the field has parsed, and its problems."""
    (kind,) = written
    location = join_path(section, leaf.name)
    try:
        domain = DOMAINS[kind].model_validate(written)
    except ValidationError as error:
        return None, problems_of(error, DOMAINS[kind], prefix=location)
    parsed = [leaf.parse(value, section) for value in domain.extremes()]
    problems = [problem for _, found in parsed for problem in found]
    if problems:
        return None, problems
    if kind not in ("choice", "grid"):
        return domain, []
    values = [value for value, _ in parsed]
    repeated = next((value for position, value in enumerate(values) if value in values[:position]), ...)
    if repeated is not ...:
        return None, [
            Problem(location=location, text=f"{to_yaml(repeated)} stands twice in {kind}; each value is named once")
        ]
    return DOMAINS[kind].model_validate({kind: values}), []


def _nearest_domain(leaf: Leaf, right: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Returns the nearest kind of domain that the field can have; its bounds may still be invalid."""
    (kind,) = right
    if kind in leaf.kinds and kind != "integer":
        return right
    if "integer" not in leaf.kinds:
        return _example(leaf)
    try:
        ends = [float(end) for end in right[kind]]
        low, high = math.ceil(ends[0]), math.floor(ends[1])
    except (TypeError, ValueError, OverflowError, IndexError):
        return None
    if float in members(leaf.annotation):
        return right if ends == [low, high] else {"uniform": ends}
    if low > high:
        low, high = high, low  # there is no whole number in between: take its neighbors
    return {"integer": [low, high]} if low < high else {"choice": [low]}


def _example(leaf: Leaf) -> Mapping[str, Any]:
    """Returns an example of a domain that the field can have."""
    default, parts = leaf.default, members(leaf.annotation)
    if bool in parts:
        return {"choice": [True, False]}
    if float in parts:
        return {"uniform": [default / 2, default] if default else [0.0, 0.1]}
    if int in parts:
        return {"integer": [default or 1, 2 * (default or 1)]}
    values = options(leaf.annotation)
    return {"choice": [default] if leaf.takes_lists or not values else list(values)}


def _section_advice(model: type[BaseModel], tree: Any, path: tuple[str, ...]) -> str:
    name, keys = path[-1] if path else "a branch", ", ".join(sorted(model.model_fields))
    if isinstance(tree, Mapping) and tree:
        return (
            f"{name} is a section: write a range at each of its values that varies ({keys}), or make a branch for each"
        )
    if tree is None or tree == {}:
        return f"is empty: leave it out, or give some of {keys}"
    taken = [key for key, info in model.model_fields.items() if tree in options(info.annotation)]
    hint = f"; write {name}: {{{taken[0]}: {tree}}}" if taken else ""
    return f"has keys of its own ({keys}), so it cannot be {_excerpt(tree)}{hint}"


def _domain_kind(value: Any) -> str | None:
    if isinstance(value, Mapping) and len(value) == 1:
        (key,) = value
        return key if key in DOMAINS else None
    return None


def _holds_mapping(value: Any) -> bool:
    if isinstance(value, Mapping):
        return True
    return isinstance(value, list | tuple) and any(_holds_mapping(each) for each in value)


def _excerpt(value: Any) -> str:
    text = to_yaml(value)
    return text if len(text) <= MAX_EXCERPT_LETTERS else f"{text[:MAX_EXCERPT_LETTERS]}..."
