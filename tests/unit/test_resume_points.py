"""Where a trial goes on, by what the journal says and what its folder holds."""

import pytest

from components.cluster.slots.resume import newest_checkpoint
from components.cluster.slots.worker import go_on_after
from components.storage.open_folder import folder_at
from components.training.workers import OneWorker
from tests.support.sessions import FULL, Signals, curve, reports, session


@pytest.mark.parametrize(
    ("standing", "last_reported", "expected"),
    [
        ([], 0, None),
        (["step_000000+000003"], 0, "step_000000+000003"),
        (["step_000004"], 0, None),  # the journal has no such report: it must come again
        (["step_000004", "step_000008"], 4, "step_000004"),
        (["step_000004", "step_000004+000006", "step_000004+000007"], 4, "step_000004+000007"),
        (["step_000004", "step_000008", "step_000008+000009"], 4, "step_000004"),
        (["step_000004", "step_000004+000006"], 8, "step_000004+000006"),  # up to the report it trains silently
        (["step_000008", "step_000008+000009"], 4, None),  # the journal was cut: those points come again
        (["step_000004", ".step_000004+000006"], 4, "step_000004"),  # was never finished
    ],
)
def test_a_trial_goes_on_from_its_newest_checkpoint_that_the_journal_knows(tmp_path, standing, last_reported, expected):
    for name in standing:
        (tmp_path / name).mkdir()
    found = newest_checkpoint(folder_at(tmp_path), last_reported)
    assert found == (folder_at(tmp_path) / expected if expected else None)


@pytest.mark.parametrize("left", ["all", "an interim one, too", "not the last one"])
@pytest.mark.parametrize("journaled", [0, 1, 2])
def test_points_that_a_journal_lacks_are_made_again_and_the_trial_ends_equal(toy, tmp_path, journaled, left):
    """`left` says which of its checkpoints are there: they may be ahead of the journal, or behind it."""
    whole = reports(session(toy, tmp_path / "whole"), FULL)
    of = session(toy, tmp_path / "cut")
    of.start("trial", FULL)
    known = [of.advance() for _ in range(2)]
    if left == "an interim one, too":
        of.advance(Signals(preempted=lambda: True))
    elif left == "not the last one":
        folder_at(known[-1].checkpoint).delete()
    later = session(toy, tmp_path / "cut")
    later.start("trial", FULL)
    go_on_after(later, known[journaled - 1].step if journaled else 0, OneWorker(), ())
    again = []
    while not (again and again[-1].done):
        again.append(later.advance())
    assert curve([*known[:journaled], *again]) == curve(whole)
