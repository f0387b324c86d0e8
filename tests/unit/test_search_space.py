"""What stands in search.space: every value has its field, every mapping at a value is one range of ours or a problem."""

import json
import re

import jsonschema
import pytest
import yaml

from components.experiment.check_search import without_search
from components.experiment.domains import DOMAINS
from components.experiment.draw_trials import sample_trials
from components.experiment.experiment_errors import ExperimentError
from components.experiment.experiment_warnings import experiment_warnings
from components.experiment.load_experiment import load_experiment
from components.experiment.parse_trial import SHARED_BY_ALL_TRIALS, leaves_of, read_branch
from components.experiment.schema import experiment_schema
from components.experiment.space import branches_of, change_trial, trial_spec
from components.experiment.spec import ExperimentSpec, TrialSpec
from tests.support.experiment_file import EXPERIMENT, problems

RATE, RANK = "optimizer.learning_rate", "method.rank"


def problem_of(path, leaf, written):
    """The only problem of the branch lora with this at one of its values."""
    (problem,) = problems(path, f"search.space.lora.{leaf}={written}")
    place, _, text = problem.partition(": ")
    assert place == f"search.space.lora.{leaf}"
    return text


OTHER_WORDS = [
    # ours, misspelt or overfull
    (RATE, "{loguniform: [1e-5, 1e-3]}", "learning_rate: {log_uniform: [1e-5, 1e-3]}"),
    (RATE, "{log-uniform: [1e-5, 1e-3]}", "learning_rate: {log_uniform: [1e-5, 1e-3]}"),
    (RATE, "{uniforms: [0.1, 0.2]}", "learning_rate: {uniform: [0.1, 0.2]}"),
    (RATE, "{choice: [0.1, 0.2], default: 0.1}", "learning_rate: {choice: [0.1, 0.2]}"),
    (RATE, "{choice: {values: [0.1, 0.2]}}", "learning_rate: {choice: [0.1, 0.2]}"),
    (RATE, "{choice: 0.1}", "learning_rate: {choice: [0.1]}"),
    (RATE, "[0.1, 0.2]", "learning_rate: {choice: [0.1, 0.2]}"),
    (RANK, "{choices: [2, 4]}", "rank: {choice: [2, 4]}"),
    (RANK, "{choice: [2, 4], uniform: [0, 1]}", None),
    (RANK, "{}", None),
    (RANK, "{learned: true}", None),
    # Ray Tune's
    (RATE, "{tune.loguniform: [1e-5, 1e-3]}", "learning_rate: {log_uniform: [1e-5, 1e-3]}"),
    (RATE, '"tune.loguniform(1e-5, 1e-3)"', "learning_rate: {log_uniform: [1.0e-05, 0.001]}"),
    (RATE, '"loguniform(1e-5, 1e-3)"', "learning_rate: {log_uniform: [1.0e-05, 0.001]}"),
    (RATE, '"tune.uniform(0.1, 0.2)"', "learning_rate: {uniform: [0.1, 0.2]}"),
    (RATE, "{quniform: [0.1, 0.3, 0.1]}", "learning_rate: {choice: [0.1, 0.2, 0.3]}"),
    (RATE, "{grid_search: [0.1, 0.2]}", "learning_rate: {grid: [0.1, 0.2]}"),
    (RATE, "{sample_from: 'lambda spec: spec.config.x'}", None),
    (RATE, "tune.sample_from(lambda spec: 1)", None),
    (RANK, "{randint: [4, 9]}", "rank: {integer: [4, 8]}"),
    (RANK, '"tune.qrandint(4, 16, 4)"', "rank: {choice: [4, 8, 12, 16]}"),
    (RANK, "{lograndint: [4, 65]}", "rank: {integer: [4, 64]}"),
    (RANK, '"tune.choice([4, 8])"', "rank: {choice: [4, 8]}"),
    # Optuna's
    (RATE, "{suggest_float: {low: 1e-5, high: 1e-3, log: true}}", "learning_rate: {log_uniform: [1e-5, 1e-3]}"),
    (RATE, "{type: float, low: 0.1, high: 0.2}", "learning_rate: {uniform: [0.1, 0.2]}"),
    (RATE, "'trial.suggest_float(\"lr\", 0.1, 0.2, log=True)'", "learning_rate: {log_uniform: [0.1, 0.2]}"),
    (RATE, "{low: 0.1, high: 0.3, step: 0.1}", "learning_rate: {choice: [0.1, 0.2, 0.3]}"),
    (RANK, "{suggest_int: {low: 4, high: 8}}", "rank: {integer: [4, 8]}"),
    (RANK, 'trial.suggest_categorical("rank", [4, 8])', "rank: {choice: [4, 8]}"),
    # W&B's
    (RATE, "{distribution: log_uniform_values, min: 1e-5, max: 1e-3}", "learning_rate: {log_uniform: [1e-5, 1e-3]}"),
    (RATE, "{distribution: log_uniform, min: -2, max: -1}", "learning_rate: {log_uniform: [0.135335, 0.367879]}"),
    (RATE, "{values: [0.1, 0.2]}", "learning_rate: {choice: [0.1, 0.2]}"),
    (RATE, "{value: 0.1}", "learning_rate: 0.1"),
    (RATE, "{min: 0.1, max: 0.2}", "learning_rate: {uniform: [0.1, 0.2]}"),
    (RATE, "{distribution: normal, mu: 0.5, sigma: 0.1}", "learning_rate: {uniform: [0.3, 0.7]}"),
    (RATE, "{mu: 0.5, sigma: 0.1}", "learning_rate: {uniform: [0.3, 0.7]}"),
    (RANK, "{min: 2, max: 4}", "rank: {integer: [2, 4]}"),
    (RANK, "{distribution: int_uniform, min: 4, max: 8}", "rank: {integer: [4, 8]}"),
    (RANK, "{distribution: q_uniform, min: 4, max: 16, q: 4}", "rank: {choice: [4, 8, 12, 16]}"),
    # ranges of ours that the field cannot have
    (RANK, "{log_uniform: [4, 8]}", "rank: {integer: [4, 8]}"),
    (RANK, "{uniform: [3.5, 8.5]}", "rank: {integer: [4, 8]}"),
    (RANK, "{uniform: [4.2, 4.8]}", "rank: {integer: [4, 5]}"),
    ("batch.rows_per_step", "{uniform: [4, 8]}", "rows_per_step: {integer: [4, 8]}"),
    ("method.rslora", "{integer: [0, 1]}", "rslora: {choice: [true, false]}"),
    ("batch.packing", "{min: 0, max: 1}", "packing: {choice: [true, false]}"),
    ("method.quantize", "{uniform: [0, 1]}", "quantize: {choice: [nf4, int8]}"),
    ("schedule.name", "{values: [cosine, linear]}", "name: {choice: [cosine, linear]}"),
    ("method.alpha", "{suggest_int: [16, 32]}", "alpha: {integer: [16, 32]}"),
    ("optimizer.betas", "{uniform: [0.8, 0.9]}", "betas: {choice: [[0.9, 0.999]]}"),
]


@pytest.mark.parametrize(("leaf", "written", "right"), OTHER_WORDS, ids=[written for _, written, _ in OTHER_WORDS])
def test_a_range_in_other_words_is_answered_with_ours_and_ours_is_accepted(path, leaf, written, right):
    text = problem_of(path, leaf, written)
    if right is not None:
        assert f"; write {right}" in text
    answer = right or re.search("; e.g. (.*)", text)[1]
    branch = branches_of(load_experiment(path, [f"search.space.lora.{leaf}={answer.partition(': ')[2]}"]))["lora"]
    assert leaf in {**branch.constants, **branch.domains}


def _nested(path, value):
    for key in reversed(path.split(".")):
        value = {key: value}
    return value


LEAVES = [leaf for leaf in leaves_of() if leaf.path.split(".")[0] not in SHARED_BY_ALL_TRIALS and not leaf.is_tag]


@pytest.mark.parametrize("leaf", LEAVES, ids=lambda leaf: leaf.path)
def test_no_mapping_at_any_value_is_dropped(leaf):
    mappings = [tree for _, written, _ in OTHER_WORDS if isinstance(tree := yaml.safe_load(written), dict)]
    assert len(mappings) > 30
    for tree in mappings:
        reading = read_branch("a", _nested(leaf.path, tree), kind="lora")
        if reading.problems:
            assert {problem.location.startswith(f"search.space.a.{leaf.path}") for problem in reading.problems} == {
                True
            }
            assert not reading.domains
        else:
            assert [*reading.domains] == [leaf.path]
        assert not reading.constants


def test_the_answer_says_what_was_written_and_what_may_stand_there(path):
    assert problem_of(path, RANK, "{choices: [2, 4]}") == (
        "{choices: [2, 4]} is neither a value nor one range of choice, grid, integer; write rank: {choice: [2, 4]}"
    )
    assert problem_of(path, RANK, "{log_uniform: [4, 8]}") == (
        "is a whole number, so {log_uniform: [4, 8]} cannot be drawn for it; write rank: {integer: [4, 8]} (each whole number"
        " is equally likely; list some as a choice for others)"
    )
    assert problem_of(path, RANK, "{choice: [2], uniform: [0, 1]}").startswith(
        "{choice: [2], uniform: [0, 1]} has 2 ranges: keep the choice or the uniform; e.g. rank: "
    )
    assert "randint leaves out its upper end 9" in problem_of(path, RANK, "{randint: [4, 9]}")


def test_all_ranges_that_are_none_come_together_with_all_else_that_is_wrong(path):
    found = problems(
        path,
        "name=",
        "trial.budget.epochs=soon",
        "trial.optimizer.epsilon={uniform: [0.1, 0.2]}",
        "search.space.lora.method.rank={choices: [2, 4]}",
        "search.space.lora.batch.rows_per_step=many",
        "search.space.full.optimizer.learning_rate={loguniform: [1e-5, 1e-3]}",
        "search.space.full.method.rank=3",
    )
    assert [problem.partition(": ")[0] for problem in found] == [
        "name",
        "trial.budget.epochs",
        "trial.optimizer.epsilon",
        "search.space.lora.method.rank",
        "search.space.lora.batch.rows_per_step",
        "search.space.full.method.rank",
        "search.space.full.optimizer.learning_rate",
    ]


@pytest.mark.parametrize("written", ["{choice: [lora, full]}", "[lora, full]", "{values: [lora, full]}"])
def test_a_method_that_is_to_be_drawn_gets_one_sentence(path, written):
    assert problem_of(path, "method.kind", written) == (
        "a method is not drawn: make a branch of search.space for each, e.g. {lora: {method: {kind: lora}}, full: {method:"
        " {kind: full}}}"
    )


def test_a_method_that_does_not_exist_is_answered_with_those_that_do(path):
    assert problem_of(path, "method.kind", "qlora") == (
        "is one of lora, full, not qlora; QLoRA is kind: lora with quantize: nf4"
    )


@pytest.mark.parametrize(
    ("leaf", "written", "text"),
    [
        (
            "optimizer.betas",
            "[{uniform: [0.8, 0.9]}, 0.999]",
            "a range cannot stand inside a list; choose among whole lists, e.g. betas: {choice: [[0.9, 0.999]]}",
        ),
        (
            "method.quantize",
            "{bits: {choice: [4, 8]}}",
            "{bits: {choice: [4, 8]}} is neither a value nor one range of choice, grid; e.g. quantize: {choice: [nf4, int8]}",
        ),
        (
            "schedule",
            "cosine",
            "has keys of its own (final_fraction, name, warmup_fraction), so it cannot be cosine; write schedule: {name:"
            " cosine}",
        ),
        ("schedule", "{}", "is empty: leave it out, or give some of final_fraction, name, warmup_fraction"),
        ("schedule", "", "is empty: leave it out, or give some of final_fraction, name, warmup_fraction"),
        (RANK, "{choice: [8, 4, 8]}", "8 stands twice in choice; each value is named once"),
        (RANK, "{choice: [8, 8.0]}", "8 stands twice in choice; each value is named once"),
        (RANK, "{choice: [null, 4]}", "input should be a valid integer, not None"),
        (
            RANK,
            "{choice: [true, 4]}",
            "input should be a valid integer, unable to parse string as an integer, not 'true'",
        ),
        (
            "method.target_modules",
            "[]",
            "input should be 'all-linear', not []; or tuple should have at least 1 item after validation, not 0, not []",
        ),
        (RATE, ".inf", "input should be a finite number, not inf"),
        (RATE, "{choice: [.nan]}", "input should be a finite number, not nan"),
    ],
)
def test_what_looks_like_a_value_and_is_none_is_refused(path, leaf, written, text):
    assert problem_of(path, leaf, written) == text


def test_a_range_below_text_is_a_problem_of_the_text(path):
    (problem,) = problems(path, "search.space.lora={schedule: {name: {cosine: {choice: [1, 2]}}}}")
    assert problem.startswith(
        "search.space.lora.schedule.name: {cosine: {choice: [1, 2]}} is neither a value nor one range of choice, grid; e.g."
    )


def test_bounds_that_are_no_whole_numbers_are_answered_with_those_that_are(path):
    (problem,) = problems(path, "search.space.lora.method.rank={integer: [4, 8.5]}")
    assert problem.endswith("not 8.5; write rank: {integer: [4, 8]}")


def test_what_all_trials_share_has_no_range(path):
    assert problems(
        path, "trial.optimizer.learning_rate={log_uniform: [1e-5, 1e-3]}", "trial.budget.epochs={choice: [1, 2]}"
    ) == [
        "trial.optimizer.learning_rate: {log_uniform: [1e-5, 1e-3]} is a range: all trials share what stands under trial:, so"
        " write search.space.BRANCH.optimizer.learning_rate: {log_uniform: [1e-5, 1e-3]}",
        "trial.budget.epochs: {choice: [1, 2]} is a range: all trials share one value",
    ]
    assert problems(path, "search.space.lora.seed={integer: [0, 3]}") == [
        "search.space.lora.seed: is shared by all trials; set it under trial: as seed"
    ]


def test_a_space_without_branches_is_told_where_they_go(path):
    assert problems(path, "search.space={method: {rank: {choice: [4, 8]}}}") == [
        "search.space.method: is a value of a trial and no branch: write search.space.BRANCH.method, with a name for the"
        " branch"
    ]


def test_a_branch_is_not_named_after_the_method_it_does_not_train(path):
    (problem,) = problems(path, "search.space.full={optimizer: {learning_rate: 1.0e-5}}")
    assert problem == (
        "search.space.full: is named after the method full and trains lora: give it method.kind: full, or another name"
    )


def test_an_override_below_a_misspelt_branch_makes_no_new_branch(path):
    assert problems(path, "search.space.lroa.method.rank=4") == [
        '--set search.space.lroa.method.rank=4: unknown key "lroa"; did you mean "lora"? (valid: full, lora); a new branch is'
        " set whole, as search.space.lroa={...}"
    ]
    assert "small" in branches_of(load_experiment(path, ["search.space.small={method: {rank: 2}}"]))


def test_a_branch_may_be_the_trial_as_it_stands(path):
    experiment = load_experiment(path, ["search.space={plain: {}}", "search.trials=1", "trial.method.rank=2"])
    (trial,) = sample_trials(experiment)
    assert trial.spec == experiment.trial


def test_the_values_of_a_choice_have_the_type_of_the_field(path):
    overrides = ["search.space.lora.method.rank={choice: ['4', 8.0]}", "search.space.lora.optimizer.learning_rate=1e-4"]
    branch = branches_of(load_experiment(path, overrides))["lora"]
    assert [repr(value) for value in branch.domains["method.rank"].choice] == ["4", "8"]
    assert branch.constants["optimizer.learning_rate"] == 0.0001


def test_a_choice_may_leave_a_value_out_where_the_field_may(path):
    branch = branches_of(load_experiment(path, ["search.space.lora.method.quantize={choice: [null, nf4]}"]))["lora"]
    assert branch.domains["method.quantize"].choice == (None, "nf4")


def test_a_value_without_a_place_in_the_trial_is_never_dropped(path):
    experiment = load_experiment(path)
    branch = branches_of(experiment)["lora"]
    with pytest.raises(ValueError, match=r"optimizer\.learning_rate\.peak: there is no such value in a trial"):
        trial_spec(experiment, branch, {"optimizer.learning_rate.peak": 1})
    with pytest.raises(ValueError, match=r"nowhere\.rank: there is no such value"):
        trial_spec(experiment, branch, {"nowhere.rank": 1})


def test_a_clone_has_values_and_no_ranges(path):
    experiment = load_experiment(path)
    with pytest.raises(ExperimentError) as caught:
        change_trial(
            experiment, TrialSpec(), {"method.rank": {"choices": [2, 4]}, "optimizer.betas": [{"uniform": [0, 1]}, 1]}
        )
    assert [str(problem) for problem in caught.value.problems] == [
        "method.rank: {choices: [2, 4]} is neither a value nor one range of choice, grid, integer; a clone has one value,"
        " e.g. method.rank=16",
        "optimizer.betas: a range cannot stand inside a list; choose among whole lists, e.g. betas: {choice: [[0.9, 0.999]]}",
    ]


def test_a_section_that_a_clone_changes_keeps_its_other_values(path):
    parent = TrialSpec.model_validate({"optimizer": {"weight_decay": 0.5}, "method": {"rank": 2}})
    changed = change_trial(load_experiment(path), parent, {"optimizer": {"learning_rate": 0.1}, "method": {"alpha": 4}})
    assert (changed.optimizer.learning_rate, changed.optimizer.weight_decay) == (0.1, 0.5)
    assert (changed.method.rank, changed.method.alpha) == (2, 4.0)


def test_numbers_are_no_booleans_and_finite(path):
    assert problems(
        path, "trial.seed=true", "trial.optimizer.max_grad_norm=.inf", "resources.lora.cpus_per_worker=true"
    ) == [
        "resources.lora.cpus_per_worker: input should be a valid number, unable to parse string as a number, not 'true'",
        "trial.seed: input should be a valid integer, unable to parse string as an integer, not 'true'",
        "trial.optimizer.max_grad_norm: input should be a finite number, not inf",
    ]


def test_yaml_means_what_people_mean(path):
    experiment = load_experiment(
        path, ["name=no", "trial.method.rank=010", "trial.batch.packing=no", "data.split_seed=1_000"]
    )
    assert (experiment.name, experiment.trial.method.rank, experiment.trial.batch.packing) == ("no", 10, False)
    assert experiment.data.split_seed == 1000
    assert problems(path, "trial.budget={target_tokens: 1:30}") == [
        "trial.budget.target_tokens: input should be a valid integer, unable to parse string as an integer, not '1:30'"
    ]


def test_branches_may_share_what_yaml_merges(tmp_path):
    text = EXPERIMENT.replace("    lora:\n", "    lora: &lora\n").replace(
        "    full:\n", "    dora: {<<: *lora, precision: fp32}\n    full:\n"
    )
    (tmp_path / "toy.yaml").write_text(text)
    branches = branches_of(load_experiment(tmp_path / "toy.yaml"))
    assert branches["dora"].domains == branches["lora"].domains
    assert branches["dora"].constants == {"method.kind": "lora", "precision": "fp32"}


def test_every_branch_gets_a_trial(path):
    assert problems(path, "search.trials=1") == [
        "search.trials: 1 cannot be shared by 2 branches: each needs a trial; set search.trials: 2 or more"
    ]
    nine = ", ".join(f"b{number}: {{method: {{rank: {number}}}}}" for number in range(1, 10))
    assert problems(path, "search.trials=", f"search.space={{{nine}}}") == [
        "search.trials: 8, the default, cannot be shared by 9 branches: each needs a trial; set search.trials: 9 or more"
    ]


def test_a_grid_that_nobody_can_have_meant_is_refused_and_not_built(path):
    big = "search.space={a: {method: {rank: {integer: [1, 1000000]}, alpha: {choice: [1, 2]}}}}"
    assert problems(path, "search.sampler=grid", "search.trials=", big) == [
        "search.trials: the grid has 2,000,000 points; list fewer values, or set how many trials may run"
    ]
    trials = sample_trials(load_experiment(path, ["search.sampler=grid", "search.trials=3", big]))
    assert [tuple(trial.varied.values()) for trial in trials] == [(1, 1), (1, 2), (2, 1)]


GRID = ["search.sampler=grid", "search.space={a: {method: {rank: {grid: [1, 2, 3]}}}, b: {method: {rank: 4}}}"]
REMARKS = [
    (["search.trials=7"], []),
    ([*GRID, "search.trials="], ["search.sampler=grid: all 4 points are tried"]),
    (
        [*GRID, "search.trials=3"],
        [
            "search.trials=3: the grid has 4 points, of which only the first are tried (a 2 of 3, b 1 of 1); leave it out to"
            " try all"
        ],
    ),
    (
        ["search.space={a: {method: {rank: 4}}, b: {method: {rank: {choice: [1, 2]}}}}"],
        [
            "search.trials=7, but branch a has only 1 configuration: 1 trial",
            "search.trials=7, but branch b has only 2 different configurations: 2 trials",
        ],
    ),
    (
        ["trial.method.rank=2", "trial.optimizer.learning_rate=0.5", "trial.method.alpha=8"],
        [
            "trial.method.rank=2 is used by no trial: every branch of search.space has its own",
            "trial.optimizer.learning_rate=0.5 is used by no trial: every branch of search.space has its own",
        ],
    ),
    (
        [
            "search.space={full: {method: {kind: full}, optimizer: {learning_rate: {uniform: [0.1, 0.2]}}}}",
            "trial.method.rank=2",
        ],
        ["trial.method.rank=2 is used by no trial: no branch of search.space is lora"],
    ),
    (
        ["search.space={lora: {optimizer: {learning_rate: {uniform: [0.1, 0.2]}}}}", "resources.full.workers=2"],
        ["resources.full is used by no trial: no branch of search.space is full"],
    ),
    (
        ["trial.schedule.name=constant", "search.space.lora.schedule.final_fraction={choice: [0.1, 0.2]}"],
        ["schedule.final_fraction does nothing in search.space.lora: its schedule is constant"],
    ),
    (
        ["data.eval=b.jsonl", "data.eval_fraction=0.2"],
        ["data.eval_fraction does nothing: data.eval names what is held out"],
    ),
    (["model.path=/", "model.revision=v2"], ["model.revision=v2 does nothing: model.path=/ is no hub id"]),
]


@pytest.mark.parametrize(("overrides", "remarks"), REMARKS)
def test_what_is_legal_and_hardly_meant_is_said(path, overrides, remarks):
    assert experiment_warnings(load_experiment(path, overrides)) == remarks


def test_one_trial_of_a_file_that_is_for_a_search_needs_no_remark(path):
    alone = without_search(load_experiment(path, ["resources.full.workers=2", "trial.method.rank=2"]))
    assert experiment_warnings(alone) == []


EXAMPLES = {
    "choice": {"choice": [1]},
    "grid": {"grid": [1]},
    "uniform": {"uniform": [0.25, 0.5]},
    "log_uniform": {"log_uniform": [0.25, 0.5]},
    "integer": {"integer": [1, 2]},
    "misspelt": {"loguniform": [0.25, 0.5]},
    "two": {"choice": [1], "grid": [1]},
    "none": {},
}


@pytest.mark.parametrize("leaf", LEAVES, ids=lambda leaf: leaf.path)
def test_the_schema_accepts_the_ranges_that_the_loader_accepts_and_no_others(tmp_path, leaf):
    validator = jsonschema.Draft202012Validator(json.loads(json.dumps(experiment_schema())))
    for kind, example in EXAMPLES.items():
        written = {name: [leaf.default] for name in example} if kind in ("choice", "grid") else example
        tree = yaml.safe_load(EXPERIMENT.replace("1e-", "1.0e-").replace("2e-", "2.0e-"))
        tree["search"]["space"] = {"a": _nested(leaf.path, written)}
        (tmp_path / "toy.yaml").write_text(yaml.safe_dump(tree))
        accepted = kind in leaf.kinds
        assert validator.is_valid(tree) is accepted, (kind, leaf.path)
        if accepted and kind in DOMAINS and kind != "integer":
            assert leaf.path in branches_of(ExperimentSpec.model_validate(tree))["a"].domains
        if not accepted:
            assert problems(tmp_path / "toy.yaml")
