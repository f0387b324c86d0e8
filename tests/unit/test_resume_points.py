"""Where a trial goes on, by what its folder holds."""

import pytest

from components.cluster.slots.resume import resume_point
from components.storage.open_folder import folder_at


def folder_with(tmp_path, *names):
    for name in names:
        (tmp_path / name).mkdir()
    return folder_at(tmp_path)


@pytest.mark.parametrize(
    ("standing", "last_report", "expected"),
    [
        ([], None, None),
        (["step_000000+000003"], None, "step_000000+000003"),
        (["step_000004"], None, None),  # Tune has not heard of that report: it must come again
        (["step_000004", "step_000008"], "step_000004", "step_000004"),
        (["step_000004", "step_000004+000006", "step_000004+000007"], "step_000004", "step_000004+000007"),
        (["step_000004", "step_000008", "step_000008+000009"], "step_000004", "step_000004"),
        (["step_000008", "step_000008+000009"], "step_000004", "step_000008+000009"),
        (["step_000004", ".step_000004+000006"], "step_000004", "step_000004"),  # was never finished
    ],
)
def test_a_trial_resumes_at_the_furthest_point_after_the_last_report_tune_knows(
    tmp_path, standing, last_report, expected
):
    trial = folder_with(tmp_path, *standing)
    place = resume_point(trial, str(trial / last_report) if last_report else None)
    assert place == (trial / expected if expected else None)


def test_a_trial_whose_checkpoints_are_all_gone_says_so(tmp_path):
    trial = folder_with(tmp_path, "step_000004+000006")
    with pytest.raises(FileNotFoundError, match="every later checkpoint"):
        resume_point(trial, str(trial / "step_000008"))
