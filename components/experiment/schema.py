"""JSON Schema of experiment files, for editors: `python workflows/tune.py --schema`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from components.experiment.branch_models import MODEL
from components.experiment.domains import DOMAINS
from components.experiment.parse_trial import AUTO_RANGE, SHARED_BY_ALL_TRIALS, Leaf
from components.experiment.spec import ExperimentSpec, OptimizerSpec, TrialSpec
from components.experiment.type_introspection import sections


def experiment_schema() -> dict[str, Any]:
    """Returns ExperimentSpec's schema with search.space spelled out: a branch is a trial whose values may be domains."""
    schema = ExperimentSpec.model_json_schema()
    definitions = schema["$defs"]
    for name, domain in DOMAINS.items():
        definitions[f"domain_{name}"] = domain.model_json_schema()
    branch = _extend_with_domains(TrialSpec.model_json_schema(), definitions)
    for shared in SHARED_BY_ALL_TRIALS:
        del branch["properties"][shared]
    base = definitions["ModelSpec"]
    definitions["BranchModel"] = {**base, "required": [], "minProperties": 1}
    branch["properties"][MODEL] = {"$ref": "#/$defs/BranchModel", "description": "Its own base; by default `model:`."}
    definitions["Branch"] = branch
    named = definitions["SearchSpec"]["properties"]["space"]["patternProperties"]
    named.update({pattern: {"$ref": "#/$defs/Branch"} for pattern in named})
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    return schema


def _extend_with_domains(trial: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """Returns a trial's schema in which every value may also be a domain, and nothing is required."""
    nested = trial.pop("$defs")

    def extend_leaf(node: dict[str, Any], model: type[BaseModel], name: str) -> dict[str, Any]:
        node = {key: value for key, value in node.items() if key != "default"}
        if "$ref" in node:
            return _branch_of(node)
        if "discriminator" in node:
            return {"anyOf": [_branch_of(member) for member in node["oneOf"]]}
        leaf = Leaf(path=name, model=model, name=name)
        auto = [{"const": "auto"}] if f"optimizer.{name}" == AUTO_RANGE and model is OptimizerSpec else []
        return {"anyOf": [node, *auto, *({"$ref": f"#/$defs/domain_{kind}"} for kind in leaf.kinds)]}

    def extend(schema: dict[str, Any], model: type[BaseModel]) -> dict[str, Any]:
        rest = {key: value for key, value in schema.items() if key != "required"}
        return {
            **rest,
            "properties": {name: extend_leaf(node, model, name) for name, node in schema["properties"].items()},
        }

    for model in _sections_of(TrialSpec):
        definitions[f"Branch{model.__name__}"] = {**extend(nested[model.__name__], model), "minProperties": 1}
    return extend(trial, TrialSpec)


def _branch_of(node: dict[str, Any]) -> dict[str, Any]:
    return {"$ref": f"#/$defs/Branch{node['$ref'].rpartition('/')[2]}"}


def _sections_of(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    for info in model.model_fields.values():
        for section in sections(info.annotation):
            yield section
            yield from _sections_of(section)
