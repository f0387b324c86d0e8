"""Optimizer steps are packed in memory, and nobody who reads or writes them sees it."""

import pickle

import pytest
from pydantic import ValidationError

from components.records.events import Progress, StepMetrics
from components.records.packed_rows import PackedRows
from tests.support import records

STEP = '{"step":%d,"target_tokens":30,"loss":%s,"learning_rate":0.25,"grad_norm":Infinity,"seconds":2.5,"time":1800000077.75}'
BARE = records.progress(2, 1.0, steps=()).model_dump_json()


def progress_json(*steps):
    return BARE.replace('"steps":[]', f'"steps":[{",".join(steps)}]')


def test_steps_are_read_into_bytes_and_written_as_they_were():
    text = progress_json(STEP % (1, "1.2345678901234567"), STEP % (2, "-0.0"))
    read = Progress.model_validate_json(text)
    assert isinstance(read.steps, PackedRows)
    assert read.model_dump_json() == text
    assert Progress.model_validate(read.model_dump()) == read
    assert pickle.loads(pickle.dumps(read)) == read
    first, second = read.steps
    assert first == read.steps[0] == read.steps[-2]
    assert read.steps[1:] == (second,)
    assert type(first) is StepMetrics
    assert (first.step, type(first.step), first.loss) == (1, int, 1.2345678901234567)
    with pytest.raises(IndexError):
        read.steps[2]


def test_steps_made_here_equal_those_that_are_read():
    text = progress_json(STEP % (1, "1.5"), STEP % (2, "NaN"))
    steps = tuple(StepMetrics.model_validate_json(STEP % (number, loss)) for number, loss in ((1, "1.5"), (2, "NaN")))
    made = records.progress(2, 1.0, steps=steps)
    assert isinstance(made.steps, PackedRows)
    assert made.model_dump_json() == text
    assert made.steps[:1] == steps[:1]
    assert made.steps != steps  # NaN is not equal to itself
    assert made.model_copy(update={"steps": steps}).model_dump_json() == text


@pytest.mark.parametrize(
    ("step", "problem"),
    [
        ('{"step":1}', "Field required"),
        (STEP.replace('"step"', '"more":1,"step"') % (1, "1.0"), "Extra inputs are not permitted"),
        (STEP % (1, '"much"'), "Input should be a valid number"),
        (STEP % (2**63, "1.0"), "Input should be less than or equal to"),
        ("7", "Input should be"),
    ],
)
def test_what_is_no_step_is_refused(step, problem):
    with pytest.raises(ValidationError, match=problem):
        Progress.model_validate_json(progress_json(step))
