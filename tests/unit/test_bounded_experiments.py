"""Experiment files and overrides without bounds: refused in a sentence, before anything is built or counted up to."""

from itertools import pairwise

import pytest

from components.experiment.experiment_errors import ExperimentError
from components.experiment.load_experiment import load_experiment
from tests.support.experiment_file import problems

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in pairwise("abcdefgh")
)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (LAUGHS, "more than 20,000 values"),
        ("a: &a [*a]", "more than 30 levels of lists and mappings in each other"),
        ("a: " + "[" * 100_000, "more than 30 levels of lists and mappings in each other"),
        ("a: &a {b: {c: {d: 1}}}\ne: " + "[" * 28 + "*a" + "]" * 28, "more than 30 levels of lists and mappings"),
        ("a: " + "x" * 200_001, "more than 200,000 letters"),
        ("a: " + "9" * 5000, "line 1: a number of 5,000 letters"),
        ("a: !!python/object/apply:os.system [ls]", "line 1: the tag !!python/object/apply:os.system; write the value"),
        ("a: !!set {b}", "line 1: the tag !!set; write the value without one"),
        ("a: !b c", "line 1: the tag !b; write the value without one"),
        ('a: ["\\ud83d"]', r"line 1: '\ud83d' is half a character, and no text"),
        ("? [a]\n: b", "line 1: a list or a mapping as a key; a key is one word"),
        ("a: \0", "unacceptable character #x0000"),
        ("a: {<<: 3}", "not YAML: while constructing a mapping in"),
    ],
)
def test_a_file_without_bounds_is_refused_before_it_is_built(path, text, problem):
    path.write_text(text)
    (said,) = problems(path)
    assert said.startswith(f"{path}: not YAML: ")
    assert problem in " ".join(said.split())
    assert len(said) < 500


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("search.trials=1000000000", "input should be less than or equal to 100000, not 1000000000"),
        ("search.confirm={top: 1001}", "input should be less than or equal to 1000, not 1001"),
        ("trial.budget.epochs=.inf", "input should be a finite number, not inf"),
        ("trial.budget.epochs=1.0e+308", "input should be less than or equal to 1000000, not 1e+308"),
        ("trial.budget.evaluations=10001", "input should be less than or equal to 10000, not 10001"),
        ("trial.batch.rows_per_step=1000001", "input should be less than or equal to 1000000, not 1000001"),
        (
            "search.space={a: {method: {rank: {integer: [1, 1000000000000000000000]}}}}",
            "input should be less than or equal to 1000000000000000, not 1000000000000000000000",
        ),
        ("trial.seed=18446744073709551616", "input should be less than 4294967296, not 18446744073709551616"),
        ("search.seed=²", "input should be a valid integer, unable to parse string as an integer, not '²'"),
        ("data.train=\udc80.jsonl", "train: holds half a character, or a byte that is no UTF-8; write it as text"),
        ("data.max_tokens=2024-01-01", "unable to parse string as an integer, not '2024-01-01'"),
    ],
)
def test_a_number_that_nothing_real_has_is_refused_in_words(path, override, problem):
    (said,) = problems(path, override)
    assert said.endswith(problem)


def test_a_message_is_never_longer_than_a_screen(path):
    long = "x" * 100_000
    said = problems(path, f"trial.method.rank={long}")
    said += problems(
        path, f"search.space={{{', '.join(f'branch{n}: {{}}' for n in range(300))}}}", "search.space.x.y=1"
    )
    assert [len(each) < 1000 for each in said] == [True, True]
    (path).write_text(path.read_text() + "\n".join(f"{long[:300]}{n}: 1" for n in range(300)))
    with pytest.raises(ExperimentError) as caught:
        load_experiment(path)
    assert len(caught.value.problems) == 300
    assert str(caught.value).endswith("and 280 more")
    assert len(str(caught.value)) < 20_000
