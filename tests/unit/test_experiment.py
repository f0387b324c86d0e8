"""Experiment files: typing, overrides, the search space, and what people are told when something is wrong."""

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from components.experiment.check_search import check_search, without_search
from components.experiment.draw_trials import sample_trials
from components.experiment.experiment_errors import ExperimentError
from components.experiment.load_experiment import load_experiment
from components.experiment.schema import experiment_schema
from components.experiment.space import (
    branch_order,
    branches_of,
    num_trials,
    trial_spec,
)
from components.experiment.spec import SearchSpec
from tests.support.experiment_file import EXPERIMENT, problems


def test_numbers_like_1e_4_are_numbers_though_yaml_says_text(path):
    learning_rate = branches_of(load_experiment(path))["lora"].domains["optimizer.learning_rate"]
    assert learning_rate.extremes() == [0.0001, 0.002]


def test_searches_are_kept_where_the_machine_says_unless_the_experiment_does(path, monkeypatch):
    monkeypatch.setenv("TURNWISE_STORAGE", "s3://bucket/runs")
    assert load_experiment(path).folder.uri == "s3://bucket/runs/toy"
    assert load_experiment(path, ["storage.path=/shared"]).folder.uri == "/shared/toy"
    monkeypatch.delenv("TURNWISE_STORAGE")
    assert load_experiment(path).storage.path == "runs"


def test_a_misspelt_key_is_answered_with_the_nearest_valid_one(path):
    assert problems(path, "search.smapler=grid") == [
        'search.smapler: unknown key "smapler"; did you mean "sampler"? '
        f"(valid: {', '.join(sorted(SearchSpec.model_fields))})"
    ]


def test_a_misspelt_key_inside_a_branch_is_found_before_anything_starts(path):
    (problem,) = problems(path, "search.space.lora.method.rnk=3")
    assert problem.startswith('search.space.lora.method.rnk: unknown key "rnk"; did you mean "rank"?')


def test_a_full_fine_tune_has_no_rank(path):
    assert problems(path, "search.space.full.method.rank=3") == [
        'search.space.full.method.rank: unknown key "rank" (valid: kind)'
    ]


def test_all_problems_of_a_file_come_together(path):
    places = [problem.split(":")[0] for problem in problems(path, "data.max_tokens=abc", "data.split_sed=1", "name=")]
    assert places == ["name", "data.max_tokens", "data.split_sed"]


def test_a_range_upside_down_is_refused_with_its_rule(path):
    assert problems(path, "search.space.full.optimizer.learning_rate={log_uniform: [1, 0.1]}") == [
        "search.space.full.optimizer.learning_rate: log_uniform needs [low, high] with low < high, not [1.0, 0.1]"
    ]


def test_a_bad_end_of_a_range_is_found_though_the_other_end_is_good(path):
    (problem,) = problems(path, "search.space.lora.method.dropout={uniform: [0.0, 1.5]}")
    assert problem == "search.space.lora.method.dropout: input should be less than 1, not 1.5"


def test_a_batch_that_leaves_workers_idle_is_refused(path):
    (problem,) = problems(path, "resources.full.workers=2", "trial.batch.rows_per_step=1")
    assert problem == (
        "search.space.full: batch.rows_per_step=1 leaves workers idle: give each of the 2 workers a row, or the method"
        " fewer workers"
    )


@pytest.mark.parametrize(
    ("override", "told_so"),
    [
        (
            "resources.lora={workers: 2, parallel: fsdp}",
            "resources: lora.parallel=fsdp: only full fine-tuning is sharded; leave it ddp, and where the base model is too"
            " large for a GPU, set method.quantize: nf4",
        ),
        (
            "resources.full={workers: 2, cpu_offload: true}",
            "resources.full: cpu_offload: true goes with parallel: fsdp; set that, or leave cpu_offload out",
        ),
        (
            "resources.full={gpus_per_worker: 4}",
            "resources.full: gpus_per_worker=4: a worker uses one GPU; set gpus_per_worker: 1 and more workers",
        ),
        (
            "resources.full={workers: 2, gpus_per_worker: 0.5}",
            "resources.full: gpus_per_worker=0.5 with workers=2: workers of one trial cannot share a GPU; set"
            " gpus_per_worker: 1, or workers: 1",
        ),
    ],
)
def test_workers_that_cannot_share_a_trial_so_are_refused(path, override, told_so):
    assert problems(path, override) == [told_so]


def test_the_8_bit_optimizer_is_refused_where_weights_are_shared_out(path):
    (problem,) = problems(path, "resources.full.parallel=fsdp", "trial.optimizer.name=paged_adamw_8bit")
    assert problem == (
        "search.space.full: optimizer.name=paged_adamw_8bit cannot keep its state for shares of a weight, as parallel: fsdp"
        " has them; use adamw, and where memory is short more workers or cpu_offload: true"
    )


def test_the_budget_is_shared_by_all_trials(path):
    (problem,) = problems(path, "search.space.lora.budget.epochs=3")
    assert problem.startswith("search.space.lora.budget.epochs: is shared by all trials")


def test_a_budget_has_one_measure(path):
    assert problems(path, "trial.budget.target_tokens=5", "trial.budget.epochs=1") == [
        "trial.budget: give exactly one of target_tokens and epochs"
    ]


def test_a_continuous_range_has_no_grid(path):
    assert [problem.split(":")[0] for problem in problems(path, "search.sampler=grid")] == [
        "search.space.lora.method.dropout",
        "search.space.lora.optimizer.learning_rate",
        "search.space.full.optimizer.learning_rate",
    ]


def test_a_key_that_stands_twice_is_an_error_not_a_choice(tmp_path):
    file = tmp_path / "twice.yaml"
    file.write_text("name: a\nname: b\n")
    (problem,) = problems(file)
    assert 'the key "name" stands twice' in problem


@pytest.mark.parametrize(
    ("content", "words"), [(None, "no such experiment file"), ("a: [", "not YAML"), ("- 1", "a mapping of keys")]
)
def test_what_is_no_experiment_file_is_said_to_be_none(tmp_path, content, words):
    file = tmp_path / "x.yaml"
    if content is not None:
        file.write_text(content)
    (problem,) = problems(file)
    assert words in problem


def test_an_override_needs_a_key_and_a_value(path):
    assert problems(path, "data.train") == ["--set data.train: write it as key.subkey=value"]
    assert problems(path, "name.x=1") == ["--set name.x=1: name is 'toy', which has no keys"]


def test_overrides_are_typed_like_the_file(path):
    experiment = load_experiment(path, ["trial.optimizer.learning_rate=1e-3", "trial.method.rank=2", "data.eval="])
    assert experiment.trial.optimizer.learning_rate == 0.001
    assert experiment.trial.method.rank == 2
    assert experiment.data.eval is None


def test_branches_share_the_trials_and_wide_ones_come_first(path):
    order = [branch.name for branch in branch_order(load_experiment(path, ["resources.full.workers=2"]))]
    assert order == ["full"] * 3 + ["lora"] * 4


def test_branches_that_want_the_same_workers_take_turns(path):
    order = [trial.branch for trial in sample_trials(load_experiment(path, ["resources.full.workers=1"]))]
    assert order == ["lora", "full"] * 3 + ["lora"]


def test_one_seed_draws_one_list_of_trials_and_every_draw_lies_in_its_range(path):
    first, again = (sample_trials(load_experiment(path)) for _ in range(2))
    assert first == again
    assert first != sample_trials(load_experiment(path, ["search.seed=1"]))
    for trial in first:
        low, high = {"lora": (1e-4, 2e-3), "full": (1e-5, 2e-4)}[trial.branch]
        assert low <= trial.spec.optimizer.learning_rate <= high
        assert trial.spec.method.kind == trial.branch


def test_a_grid_is_crossed_and_never_longer_than_the_search(path):
    overrides = [
        "search.sampler=grid",
        "search.space={a: {method: {rank: {grid: [1, 2]}, alpha: {choice: [8, 16]}}}}",
        "search.trials=3",
    ]
    varied = [tuple(trial.varied.values()) for trial in sample_trials(load_experiment(path, overrides))]
    assert varied == [(1, 8), (1, 16), (2, 8)]


GRIDS = (
    "search.space={a: {method: {rank: {grid: [1, 2, 3]}, alpha: {choice: [8, 16, 32]}}},"
    " b: {method: {rank: {grid: [4, 5, 6]}}}}"
)


def test_a_grid_runs_all_its_points_unless_told_otherwise(path):
    experiment = load_experiment(path, ["search.sampler=grid", GRIDS, "search.trials="])
    assert num_trials(experiment) == 12
    varied = [(trial.branch, *trial.varied.values()) for trial in sample_trials(experiment)]
    assert varied == [
        ("a", 1, 8),
        ("b", 4),
        ("a", 1, 16),
        ("b", 5),
        ("a", 1, 32),
        ("b", 6),
        ("a", 2, 8),
        ("a", 2, 16),
        ("a", 2, 32),
        ("a", 3, 8),
        ("a", 3, 16),
        ("a", 3, 32),
    ]


def test_trials_of_a_grid_that_one_branch_has_no_points_for_go_to_the_other(path):
    experiment = load_experiment(path, ["search.sampler=grid", GRIDS, "search.trials=11"])
    assert num_trials(experiment) == 11
    assert [trial.branch for trial in sample_trials(experiment)].count("a") == 8


def test_a_grid_has_no_more_trials_than_points(path):
    assert num_trials(load_experiment(path, ["search.sampler=grid", GRIDS, "search.trials=100"])) == 12


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_other_samplers_make_8_trials_by_default(path, sampler):
    experiment = load_experiment(path, [f"search.sampler={sampler}", "search.trials="])
    assert (num_trials(experiment), len(branch_order(experiment))) == (8, 8)


def test_a_branch_overrides_the_shared_trial_and_keeps_the_rest(path):
    experiment = load_experiment(path, ["trial.schedule.name=linear", "trial.method.rank=64"])
    full = trial_spec(experiment, branches_of(experiment)["full"], {"optimizer.learning_rate": 3e-5})
    assert (full.schedule.name, full.method.kind, full.optimizer.learning_rate) == ("linear", "full", 3e-5)


def test_the_schema_accepts_what_the_loader_does_and_no_misspelt_branch_key():
    validator = jsonschema.Draft202012Validator(json.loads(json.dumps(experiment_schema())))
    validator.check_schema(validator.schema)
    tree = yaml.safe_load(EXPERIMENT.replace("1e-", "1.0e-").replace("2e-", "2.0e-"))
    assert list(validator.iter_errors(tree)) == []
    tree["search"]["space"]["lora"]["optimizer"]["lerning_rate"] = 1
    assert len(list(validator.iter_errors(tree))) == 1


EXPERIMENTS = sorted((Path(__file__).parents[2] / "experiments").glob("*.yaml"))


@pytest.mark.parametrize("file", EXPERIMENTS, ids=lambda file: file.stem)
def test_our_experiments_are_valid_and_state_question_command_and_cost(file, monkeypatch):
    monkeypatch.chdir(file.parent.parent)
    header = [line for line in file.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    assert [line.split(":")[0] for line in header[:3]] == ["# Question", "# Run", "# Cost"]
    assert f"python workflows/tune.py experiments/{file.name}" in header[1]
    experiment = load_experiment(file)
    assert experiment.name == file.stem
    assert sample_trials(experiment)
    for named in (experiment.data.train, experiment.data.eval, experiment.registry.probes):
        assert named is None or Path(named).exists()


def test_one_trial_without_a_search_keeps_the_names_of_mlflow(path):
    alone = without_search(load_experiment(path, ["trial.method.rank=4"]))
    (trial,) = sample_trials(alone)
    assert (alone.name, alone.mlflow_experiment, alone.registered_model) == ("toy.train", "toy", "turnwise-toy")
    assert (trial.spec.method.kind, trial.spec.method.rank) == ("lora", 4)


def test_workers_may_ask_for_labelled_nodes_and_a_label_that_cannot_be_is_refused(path):
    labels = "resources.lora.node_labels={ray.io/market-type: spot, zone: '!in(a, b)'}"
    assert load_experiment(path, [labels]).resources.lora.node_labels == {
        "ray.io/market-type": "spot",
        "zone": "!in(a, b)",
    }
    assert problems(path, "resources.lora.node_labels={ray.io/market-type: 'spot or not'}") == [
        'resources.lora.node_labels: "ray.io/market-type: spot or not" is no label: want letters, digits, ".", "_" and "-",'
        " the value also as !value or in(one, another)"
    ]


def test_branches_take_turns_only_if_their_workers_want_the_same_nodes(path):
    same = [
        "resources.full.workers=1",
        "resources.full.node_labels={kind: big}",
        "resources.lora.node_labels={kind: big}",
    ]
    order = [trial.branch for trial in sample_trials(load_experiment(path, same))]
    assert order[:4] == ["lora", "full", "lora", "full"]
    order = [trial.branch for trial in sample_trials(load_experiment(path, same[:2]))]
    assert order in (["lora"] * 4 + ["full"] * 3, ["full"] * 3 + ["lora"] * 4)


def test_a_range_of_workers_is_min_and_max(path):
    workers = load_experiment(path, ["resources.full.workers=[1, 2]"]).resources.full
    assert (workers.min_workers, workers.max_workers, workers.elastic) == (1, 2, True)
    with pytest.raises(ExperimentError, match=r"resources.full: workers \[2, 1\] must be \[min, max\]"):
        load_experiment(path, ["resources.full.workers=[2, 1]"])


def test_every_worker_an_elastic_trial_may_have_needs_a_row(path):
    with pytest.raises(ExperimentError, match="give each of the 64 workers a row"):
        check_search(load_experiment(path, ["resources.full.workers=[1, 64]"]))
