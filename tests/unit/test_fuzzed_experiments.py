"""Whatever an experiment file or `--set` holds, it is an experiment or refused in words of a screen, soon."""

from pathlib import Path

import yaml

from components.experiment.draw_trials import sample_trials
from components.experiment.experiment_errors import ExperimentError
from components.experiment.load_experiment import load_experiment
from components.experiment.spec import ExperimentSpec
from tests.support.experiment_file import EXPERIMENT
from tests.support.fuzzing import cases, mutate_bytes, mutate_tree, num_inputs

SCREEN = 20_000  # letters: at most 20 problems of a few lines
EXPERIMENTS = Path(__file__).parents[2] / "experiments"
TEXTS = [EXPERIMENT, *(path.read_text(encoding="utf-8") for path in sorted(EXPERIMENTS.glob("*.yaml")))]
LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
ODD = (
    ".inf",
    "-.inf",
    ".nan",
    "1e308",
    "1e999",
    "10**9",
    str(10**9),
    "9" * 5000,
    "9" * 300,
    "18446744073709551616",
    "-1",
    "0",
    "0b",
    "0x_",
    "²",
    "٣",
    "1_0",
    "2001-01-01",
    "2001-01-01T10:00:00Z",
    "1:30",
    "~",
    "!!python/object:os.system {}",
    "!!set {a}",
    "!!binary aGk=",
    "!foo bar",
    "!!timestamp 2001-01-01",
    "*a",
    "&a [*a]",
    "{<<: {rank: 3}}",
    "{<<: 3}",
    "? [a]\n: b",
    "[" * 200,
    "{a: " * 40 + "1" + "}" * 40,
    "[" * 25 + "]" * 25,
    "x" * 3000,
    "{choice: [1, 1]}",
    "{choice: [.inf]}",
    "{integer: [1, 1e308]}",
    "{integer: [1, 1000000000000000000000000000000]}",
    "{uniform: [-1e308, 1e308]}",
    "{log_uniform: [1e-320, 1]}",
    "{grid: []}",
    "{choice: [" + "1, " * 2000 + "1]}",
    "true",
    "no",
    "''",
    '"\\ud83d"',
    '"\\0"',
    '"\\x1b[2J"',
    "[]",
    "{}",
    "null",
    "%",
    "@",
    "`",
    "a: b: c",
    "- a\n- b",
    "{lora: {}}",
    "/(a+)+$/",
    "latest",
    "search:x/y",
    "auto",
    "\t",
    "\u202e",
    "a\u0085b",
)
VALUES = (
    None,
    "",
    "hi",
    0,
    -1,
    10**9,
    2**64,
    10**300,
    1e308,
    float("inf"),
    float("nan"),
    True,
    [],
    {},
    [[]],
    {"a": {}},
    "x" * 3000,
    {"choice": [1, 2]},
    {"choice": []},
    {"integer": [1, 10**30]},
    {"uniform": [0, 1e308]},
    {"grid": [1, 1]},
    {"min": 1, "max": 2},
    {"log_uniform": [0, 1]},
    ["a"] * 500,
    {f"k{n}": n for n in range(300)},
    {"kind": "lora"},
    {"kind": "full", "rank": 3},
    "tpe",
    "grid",
    "1e-4",
    "3",
    "hf:a@b@c",
    "s3://",
    "http://a:b@c",
    "eval_loss",
    {"name": "a:b"},
    {3: 4},
    {True: 1},
    "²",
)


def all_paths(tree, above=()):
    for key, value in tree.items() if isinstance(tree, dict) else ():
        yield ".".join((*above, str(key)))
        yield from all_paths(value, (*above, str(key)))


PATHS = sorted(
    {path for text in TEXTS for path in all_paths(yaml.safe_load(text))} | {"trial.seed", "search.seed", "x", "a..b"}
)


def test_whatever_a_file_and_its_overrides_hold_is_an_experiment_or_refused_in_words(tmp_path):
    file, outcomes = tmp_path / "a.yaml", {"loaded": 0, "refused": 0}
    trees = [yaml.safe_load(text) for text in TEXTS]
    for chance in cases(few=150):
        kind = chance.choice(("bytes", "tree", "set", "set", "set"))
        text = chance.choice(TEXTS)
        if kind == "bytes":
            content = mutate_bytes(chance, text.encode(), [each.encode("utf-8", "surrogatepass") for each in ODD])
        elif kind == "tree":
            tree = mutate_tree(chance, chance.choice(trees), lambda chance: chance.choice(VALUES))
            content = yaml.safe_dump(tree, sort_keys=False).encode()
        else:
            content = text.encode()
        file.write_bytes(content)
        overrides = [f"{chance.choice(PATHS)}={chance.choice(ODD)}" for _ in range(chance.randint(0, 2))]
        message = ""
        try:
            experiment = load_experiment(file, overrides)
            ExperimentSpec.model_validate_json(experiment.model_dump_json())
            if (experiment.search.trials or 0) <= 100:
                sample_trials(experiment)
            outcomes["loaded"] += 1
        except ExperimentError as error:
            message = str(error)
            outcomes["refused"] += 1
        assert len(message) < SCREEN, message
    assert min(outcomes.values()) > num_inputs(150) // 20, outcomes
