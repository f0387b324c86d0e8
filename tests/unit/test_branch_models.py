"""A branch of the search space may have a base model of its own."""

import json

import jsonschema
import pytest

from components.experiment.branch_models import branches_by_model, joined, models_of, view_of
from components.experiment.load_experiment import load_experiment
from components.experiment.read_yaml import read_yaml
from components.experiment.schema import experiment_schema
from components.experiment.space import branches_of
from components.experiment.spec import ModelSpec
from tests.support.experiment_file import problems

SMALL = "search.space.lora.model={path: small}"


def test_a_branch_has_its_own_model_or_the_experiment_s(path):
    experiment = load_experiment(path, [SMALL, "model.revision=abc", "model.dtype=fp32"])
    own, default = ModelSpec(path="small", dtype="fp32"), ModelSpec(path="somewhere", revision="abc", dtype="fp32")
    assert models_of(experiment) == {"lora": own, "full": default}
    assert {name: branch.model for name, branch in branches_of(experiment).items()} == models_of(experiment)
    assert list(branches_by_model(experiment).items()) == [(default, ("full",)), (own, ("lora",))]


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("search.space.lora.model=small", "search.space.lora.model: is a section, e.g. {path: somewhere}"),
        ("search.space.lora.model={}", "a model is not drawn, so make a branch for each"),
        (
            "search.space.lora.model={paths: a}",
            'search.space.lora.model.paths: unknown key "paths"; did you mean "path"',
        ),
        ("search.space.lora.model={path: {choice: [a, b]}}", "search.space.lora.model.path: "),
        ("search.space.lora.model={path: a, dtype: bf16, attention: flash_attention_2}", "computes on GPUs only"),
    ],
)
def test_what_is_no_model_of_a_branch_is_said_with_its_place(path, override, problem):
    assert any(problem in found for found in problems(path, override)), problems(path, override)


def test_the_schema_knows_the_model_of_a_branch(path):
    validator = jsonschema.Draft202012Validator(json.loads(json.dumps(experiment_schema())))
    tree = read_yaml(path)
    tree["search"]["space"] = {"lora": {"model": {"path": "small"}}}
    assert validator.is_valid(tree)
    tree["search"]["space"]["lora"]["model"] = {"paths": "small"}
    assert not validator.is_valid(tree)


def test_what_is_decided_for_one_base_holds_for_its_branches_only(path):
    experiment = load_experiment(path, [SMALL])
    views = [view_of(experiment, model, names) for model, names in branches_by_model(experiment).items()]
    assert [list(view.search.space) for view in views] == [["full"], ["lora"]]
    apart = views[1].trial.batch.model_copy(update={"packing": False})
    views[1] = views[1].model_copy(
        update={
            "trial": views[1].trial.model_copy(update={"batch": apart}),
            "model": views[1].model.model_copy(update={"attention": "eager"}),
        }
    )
    settled = joined(experiment, views)
    assert list(settled.search.space) == ["lora", "full"]
    assert {name: model.attention for name, model in models_of(settled).items()} == {"lora": "eager", "full": "auto"}
    constants = {name: branch.constants.get("batch.packing") for name, branch in branches_of(settled).items()}
    assert constants == {"lora": False, "full": None}
