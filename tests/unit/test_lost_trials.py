"""Trials that were lost with their slots: their checkpoints stay while the search may go on with them."""

from types import SimpleNamespace

import pytest

from components.cluster.driver.checkpoint_retention import CheckpointRetention
from components.cluster.slots.protocol import Advance, Failed
from components.cluster.slots.search_context import SearchContext
from components.cluster.slots.worker import carry_out
from components.experiment.load_experiment import load_experiment
from components.models.base.reference import BaseReference
from components.records.events import TrialEnded, TrialProgressed
from components.records.histories import TrialHistories
from components.storage.open_folder import folder_at
from components.storage.retry import StorageError
from components.training.workers import OneWorker
from tests.support.records import progress, started


def searched(place):
    """Histories with a retention, and what each trial's folder holds."""
    experiment = load_experiment("experiments/quickstart.yaml", [f"storage.path={place}"])
    context = SearchContext(
        experiment=experiment,
        search_id="one",
        folder=folder_at(place),
        prepared=folder_at(place) / "prepared",
        budget=100,
        pad_token_id=0,
        base=BaseReference(model=experiment.model, digest="sha256:toy", chat_format="auto"),
    )
    histories = TrialHistories()
    histories.subscribe(CheckpointRetention(context, histories).update)
    return histories, lambda trial_id: (context.checkpoints / trial_id).list_names()


def run(histories, place, trial_id, number, *steps):
    histories.record(started(trial_id, number=number))
    for step in steps:
        checkpoint = place / "checkpoints" / trial_id / f"step_{step:06d}"
        checkpoint.mkdir(parents=True)
        reported = progress(step, 1.0 / step, checkpoint=str(checkpoint))
        histories.record(TrialProgressed(trial_id=trial_id, progress=reported, slot="s", time=1.0))
    (place / "checkpoints" / trial_id / f"step_{steps[-1]:06d}+{steps[-1] + 1:06d}").mkdir()


def end(histories, trial_id, state, **fields):
    histories.record(TrialEnded(trial_id=trial_id, state=state, time=2.0, **fields))


def test_what_a_lost_trial_needs_to_go_on_stays_until_another_one_succeeds(tmp_path):
    histories, names = searched(tmp_path)
    run(histories, tmp_path, "lost", 1, 1, 2)
    run(histories, tmp_path, "own", 2, 1, 2)
    run(histories, tmp_path, "good", 3, 1, 2)
    end(histories, "lost", "failed", reason="its slot died")
    end(histories, "own", "failed", reason="nan", impossible=True)
    assert names("lost") == ["step_000002", "step_000002+000003"]
    assert names("own") == ["step_000002"]  # the weights of its best checkpoint, as of every trial that goes on no more
    end(histories, "good", "completed")
    assert names("lost") == names("good") == ["step_000002"]


@pytest.mark.parametrize(("error", "lost"), [(StorageError("s3://b: away"), True), (OSError("no such device"), False)])
def test_a_trial_whose_storage_is_away_is_lost_and_not_impossible(error, lost):
    def advance(signals):
        raise error

    runners = SimpleNamespace(current=SimpleNamespace(trial_id="a", advance=advance))
    answer = carry_out(Advance(number=3), runners, OneWorker(), signals=None, board=None, slot="s")
    assert answer == Failed(number=3, reason=f"{type(error).__name__}: {error}", lost=lost)
