"""JSON Schema of experiment files, for editors: `python workflows/tune.py --schema`."""

from __future__ import annotations

from typing import Any

from components.experiment.domains import DOMAINS
from components.experiment.spec import ExperimentSpec, TrialSpec


def experiment_schema() -> dict[str, Any]:
    """ExperimentSpec's schema, with search.space spelled out: a branch is a trial in which any value may be a domain."""
    schema = ExperimentSpec.model_json_schema()
    definitions = schema["$defs"]
    for name, domain in DOMAINS.items():
        definitions[f"domain_{name}"] = domain.model_json_schema()
    branch = _with_domains(TrialSpec.model_json_schema(), definitions)
    for shared in ("budget", "seed"):
        del branch["properties"][shared]
    definitions["Branch"] = branch
    named = definitions["SearchSpec"]["properties"]["space"]["patternProperties"]
    named.update({pattern: {"$ref": "#/$defs/Branch"} for pattern in named})
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    return schema


def _with_domains(trial: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """A copy of a trial's schema in which every leaf also accepts a domain, and nothing is required."""
    nested = trial.pop("$defs")
    any_domain = [{"$ref": f"#/$defs/domain_{name}"} for name in DOMAINS]

    def open_up(node: dict[str, Any]) -> dict[str, Any]:
        node = {key: value for key, value in node.items() if key != "default"}
        if "$ref" in node:
            return {"$ref": f"#/$defs/Branch{node['$ref'].rpartition('/')[2]}"}
        if "discriminator" in node:
            return {"anyOf": [open_up(member) for member in node["oneOf"]]}
        if node.get("type") == "object" and "properties" in node:
            opened = {name: open_up(child) for name, child in node["properties"].items()}
            return {**{key: value for key, value in node.items() if key != "required"}, "properties": opened}
        return {"anyOf": [node, *any_domain]}

    for name, definition in nested.items():
        definitions[f"Branch{name}"] = open_up(definition)
    return open_up(trial)
