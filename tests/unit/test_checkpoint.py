"""A checkpoint on disk: written by several workers, and there whole or not at all."""

import errno
import os
import threading

from components.storage.background_upload import BackgroundUpload
from components.storage.open_folder import folder_at
from components.training.checkpoint import write_checkpoint
from components.training.workers import OneWorker
from tests.support.thread_workers import ThreadWorker, write_own_file


def write(directory, workers, fill):
    write_checkpoint(folder_at(directory), workers, fill, BackgroundUpload())


def write_in_threads(directory, fill, count=2):
    """fill(worker_rank, folder) in each of them; returns what each raised."""
    together, errors = threading.Barrier(count), [None] * count

    def work(worker_rank):
        try:
            worker = ThreadWorker(worker_rank, together)
            write(directory, worker, lambda folder: fill(worker_rank, folder))
        except (
            OSError,
            threading.BrokenBarrierError,
        ) as error:  # a worker that fails leaves the others at the barrier, as a dead process does
            errors[worker_rank] = error
            together.abort()

    threads = [threading.Thread(target=work, args=(worker_rank,)) for worker_rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_every_worker_writes_its_own_files_into_one_folder(tmp_path):
    assert write_in_threads(tmp_path / "deep" / "step_1", write_own_file, count=3) == [None] * 3
    assert names(tmp_path / "deep" / "step_1") == ["worker_0", "worker_1", "worker_2"]
    assert names(tmp_path / "deep") == ["step_1"]


def test_a_folder_appears_only_once_every_worker_has_written(tmp_path):
    def fail_on_second(worker_rank, folder):
        write_own_file(worker_rank, folder)
        if worker_rank == 1:
            raise OSError("no space left on device")

    first, second = write_in_threads(tmp_path / "step_1", fail_on_second)
    assert isinstance(first, threading.BrokenBarrierError)
    assert str(second) == "no space left on device"
    assert not (tmp_path / "step_1").exists()


def test_what_a_killed_worker_left_is_in_no_later_checkpoint(tmp_path):
    (tmp_path / ".step_1").mkdir()
    (tmp_path / ".step_1" / "half").write_text("")
    write(tmp_path / "step_1", OneWorker(), lambda folder: write_own_file(0, folder))
    assert names(tmp_path / "step_1") == ["worker_0"]


def test_a_checkpoint_written_again_replaces_the_one_before(tmp_path):
    (tmp_path / "step_1").mkdir()
    (tmp_path / "step_1" / "old").write_text("")
    write(tmp_path / "step_1", OneWorker(), lambda folder: write_own_file(0, folder))
    assert names(tmp_path / "step_1") == ["worker_0"]


def test_every_file_is_on_disk_before_the_folder_appears_and_then_its_name(tmp_path, monkeypatch):
    forced, fsync = [], os.fsync

    def force(descriptor):
        forced.append((os.fstat(descriptor).st_ino, (tmp_path / "step_1").exists()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", force)
    write(tmp_path / "step_1", OneWorker(), lambda folder: write_own_file(0, folder))
    written = tmp_path / "step_1" / "worker_0"
    assert (written.stat().st_ino, False) in forced
    assert forced[-1] == (tmp_path.stat().st_ino, True)


def test_files_that_a_full_disk_loses_while_it_syncs_are_written_anew(tmp_path, monkeypatch):
    """The kernel drops what it could not write, and says so once: as in tests/unit/test_full_disk.py, for any user."""
    fsync, full = os.fsync, iter([True, True])

    def lose(descriptor):
        if os.fstat(descriptor).st_size == 5 and next(full, False):
            os.truncate(f"/proc/self/fd/{descriptor}", 0)
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    def fill(worker_rank, folder):
        (folder / "weights").mkdir()
        (folder / "weights" / f"of_{worker_rank}").write_text("whole")

    monkeypatch.setattr(os, "fsync", lose)
    monkeypatch.setattr("components.storage.room.FIRST_PAUSE_SECONDS", 0.01)
    assert write_in_threads(tmp_path / "step_1", fill) == [None] * 2
    assert [path.read_text() for path in sorted((tmp_path / "step_1" / "weights").iterdir())] == ["whole"] * 2
    assert names(tmp_path / "step_1") == ["weights"]
