"""Checkpoints on a storage where they arrive after their reports: a real S3 server, real trials of a tiny model."""

import threading

import pytest
import torch

from components.cluster.driver.checkpoint_retention import CheckpointRetention
from components.cluster.slots.resume import newest_checkpoint
from components.cluster.slots.search_context import SearchContext
from components.cluster.slots.worker import go_on_after
from components.experiment.load_experiment import load_experiment
from components.experiment.spec import TrialSpec
from components.models.base.reference import BaseReference
from components.records.events import InterimCheckpoint, TrialEnded, TrialProgressed, TrialStarted
from components.records.histories import TrialHistories
from components.registry.load_by_name import load_by_name
from components.storage.background_upload import BackgroundUpload
from components.storage.object_store import ObjectStoreFolder
from components.storage.open_folder import folder_at
from components.training.checkpoint import write_checkpoint
from components.training.workers import OneWorker
from tests.support.records import progress
from tests.support.sessions import FULL, Signals, curve, reports, session
from tests.support.thread_workers import ThreadWorker, write_own_file


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TURNWISE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def bucket(s3_server, tmp_path):
    return folder_at(f"s3://{s3_server.bucket}/{tmp_path.name}")


@pytest.fixture(scope="module")
def whole(toy, tmp_path_factory):
    """The reports of an uninterrupted trial on a disk."""
    return reports(session(toy, tmp_path_factory.mktemp("whole")), FULL)


@pytest.fixture
def held(monkeypatch):
    """Uploads wait until it is set."""
    gate, upload = threading.Event(), ObjectStoreFolder.upload

    def later(folder, source, **parts):
        assert gate.wait(60)
        upload(folder, source, **parts)

    monkeypatch.setattr(ObjectStoreFolder, "upload", later)
    yield gate
    gate.set()


def test_training_goes_on_during_uploads_and_ends_after_the_last_one(toy, whole, bucket, held):
    of = session(toy, bucket)
    of.start("trial", FULL)
    first = of.advance()  # returns although nothing arrives
    assert not folder_at(first.checkpoint).is_complete()
    threading.Timer(1.0, held.set).start()
    second = of.advance()
    assert folder_at(first.checkpoint).is_complete()
    last = of.advance()
    assert last.done
    assert folder_at(last.checkpoint).is_complete()
    assert curve([first, second, last]) == curve(whole)


def test_a_trial_goes_on_before_a_checkpoint_that_never_arrived_and_ends_bit_equal(toy, whole, bucket):
    of = session(toy, bucket)
    of.start("trial", FULL)
    first, second = of.advance(), of.advance()
    of.wait_for_uploads()
    folder_at(second.checkpoint).delete_file("digests.0-of-1.json")  # its writer died before the last word
    assert newest_checkpoint(bucket / "trial", second.step) == folder_at(first.checkpoint)
    later = session(toy, bucket)
    later.start("trial", FULL)
    go_on_after(later, second.step, OneWorker(), ())
    last = later.advance()
    assert curve([first, second, last]) == curve(whole)
    assert folder_at(second.checkpoint).is_complete()  # it was trained again, and has arrived this time


def test_a_trial_whose_first_upload_failed_begins_again_and_ends_bit_equal(toy, whole, bucket):
    later = session(toy, bucket)
    later.start("trial", FULL)
    go_on_after(later, whole[0].step, OneWorker(), ())
    assert curve([later.advance(), later.advance()])[-1] == curve(whole)[-1]


def test_a_trial_that_is_told_to_leave_waits_for_its_interim_checkpoint(toy, bucket):
    of = session(toy, bucket)
    of.start("trial", FULL)
    interim = of.advance(Signals(preempted=lambda: True))
    assert isinstance(interim, InterimCheckpoint)
    assert folder_at(interim.checkpoint).is_complete()
    assert newest_checkpoint(bucket / "trial", 0) == folder_at(interim.checkpoint)


def test_a_checkpoint_of_several_workers_is_complete_with_the_last_of_them(bucket):
    folder, together, uploads = bucket / "step_1", threading.Barrier(2), [BackgroundUpload(), BackgroundUpload()]
    folder.write_text("digests.0-of-1.json", '{"files": {}}')  # of an earlier attempt, by one worker

    def work(rank):
        worker = ThreadWorker(rank, together)
        write_checkpoint(folder, worker, lambda scratch: write_own_file(rank, scratch), uploads[rank])

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for upload in uploads:
        upload.wait()
    assert folder.list_names() == ["digests.0-of-2.json", "digests.1-of-2.json", "worker_0", "worker_1"]
    assert sorted(path.name for path in folder.download().iterdir()) == ["worker_0", "worker_1"]


def test_the_collector_never_takes_the_last_checkpoint_that_has_arrived(bucket):
    experiment = load_experiment("experiments/quickstart.yaml", [f"storage.path={bucket}"])
    context = SearchContext(
        experiment=experiment,
        search_id=bucket.name,
        folder=bucket,
        prepared=bucket / "prepared",
        budget=100,
        pad_token_id=0,
        base=BaseReference(model=experiment.model, digest="sha256:toy", chat_format="auto"),
    )
    histories = TrialHistories()
    histories.subscribe(CheckpointRetention(context, histories).update)
    started = {"number": 1, "branch": "lora", "spec": TrialSpec(), "workers": 1, "varied": {}}
    histories.record(TrialStarted(trial_id="trial", time=0.0, **started))
    trial, standing = context.checkpoints / "trial", []
    for step, eval_loss in ((1, 3.0), (2, 1.0), (3, 2.0), (4, 2.0)):
        checkpoint = trial / f"step_{step:06d}"
        checkpoint.write_text("digests.0-of-1.json", '{"files": {}}')
        reported = progress(step, eval_loss, checkpoint=str(checkpoint))
        histories.record(TrialProgressed(trial_id="trial", progress=reported, slot="s", time=1.0))
        standing.append([name[-1] for name in trial.list_names()])
    # The best, the last that has surely arrived, and the one that may be on its way.
    assert standing == [["1"], ["1", "2"], ["2", "3"], ["2", "3", "4"]]
    histories.record(TrialEnded(trial_id="trial", state="completed", time=2.0))
    assert trial.list_names() == ["step_000002"]


def test_a_checkpoint_in_a_bucket_is_named_by_its_uri_on_the_command_line(toy, bucket):
    of = session(toy, bucket)
    of.start("trial", FULL)
    checkpoint = of.advance().checkpoint
    of.wait_for_uploads()
    trained = {name: weight.detach().clone() for name, weight in of.running.model.named_parameters()}
    loaded = dict(load_by_name(checkpoint).model.named_parameters())
    assert all(torch.equal(loaded[name], weight) for name, weight in trained.items())
    with pytest.raises(ValueError, match="no such model"):
        load_by_name(str(bucket / "nothing"))
