"""What happens on the small disk of tests/unit/test_full_disk.py, in a process that may fill it and mount it again."""

import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from components.records.evaluation_record import ConversationScores, EvaluationRecord
from components.records.journal import Journal
from components.storage.free_room import lack_of_room
from components.storage.open_folder import folder_at
from components.storage.retry import StorageError
from tests.support.one_trial import ONE_TRIAL
from tests.support.small_disk import drop_caches, fill, free, make_read_only, make_writable, waiting_until_free

SCORES = EvaluationRecord(metrics={"eval_loss": ConversationScores(sums=(1.0,) * 3000, weights=(2.0,) * 3000)})


def journal(disk):
    """There is room for the first bytes of a line; a reader sees nothing of it meanwhile."""
    search, progress = folder_at(disk), ONE_TRIAL[2].progress
    long = ONE_TRIAL[2].model_copy(
        update={"progress": progress.model_copy(update={"steps": tuple(progress.steps) * 500})}
    )
    lines = Journal(search)
    lines.append(ONE_TRIAL[0])

    def write():
        lines.append(long)

    def meanwhile():
        assert Journal(search).read() == ONE_TRIAL[:1]

    waiting_until_free(disk, write, meanwhile)
    lines.append(ONE_TRIAL[3])
    lines.close()
    assert Journal(search).read() == [ONE_TRIAL[0], long, ONE_TRIAL[3]]


def small_files(disk):
    search = folder_at(disk)
    search.write_text("search.json", "before")
    waiting_until_free(disk, lambda: search.write_text("search.json", "behind" * 1000))
    assert search.read_text("search.json") == "behind" * 1000
    waiting_until_free(disk, lambda: SCORES.write(search, "t1", 4))
    assert EvaluationRecord.read(search, "t1", 4) == SCORES
    assert [name for name in search.list_names() if name.startswith(".")] == []


def checkpoint(disk, full=None):
    """Its weights, of safetensors, find no room, and neither does what follows them."""
    full = full or disk
    # Seconds of torch, which the other cases do without.
    import torch
    from safetensors.torch import load_file, save_file

    from components.storage.background_upload import BackgroundUpload
    from components.training.checkpoint import write_checkpoint, write_json
    from tests.support.thread_workers import ThreadWorker

    path = disk / "checkpoints" / "step_000004"
    folder, tensors = folder_at(path), {"a": torch.arange(400_000, dtype=torch.float32)}

    def files(scratch):
        save_file(tensors, scratch / "model.safetensors")
        write_json(scratch / "state.json", {"step": 4})

    def write():
        worker: Any = ThreadWorker(0, threading.Barrier(1))
        write_checkpoint(folder, worker, files, BackgroundUpload())

    waiting_until_free(full, write)
    if full != disk:
        drop_caches()  # now the disk alone says what it has
    assert torch.equal(load_file(path / "model.safetensors")["a"], tensors["a"])
    assert sorted(path.name for path in path.iterdir()) == ["model.safetensors", "state.json"]
    assert [path.name for path in path.parent.iterdir()] == ["step_000004"]


def checkpoint_of_a_disk_that_notices_late(disk):
    """All that is written finds room in memory; only the sync says that there is none on the disk."""
    checkpoint(disk, full=disk.parent / "behind")


def the_driver(disk):
    """Its log and its view say it while the disk has less room than a checkpoint takes, and that it is over."""
    from rich.console import Console

    from components.cluster.driver import disk_watch
    from components.reports.live_view import LiveView

    disk_watch.LOOK_SECONDS = 0.0
    search, needed = folder_at(disk) / "search", 100_000
    watch = disk_watch.DiskWatch(search, needed)
    view = LiveView(Console(), {}, planned=1, budget=1, remark=lambda: lack_of_room(search, needed))
    for lacks in (False, True, False):
        if lacks:
            fill(disk)
        watch.look()
        watch.look()  # once is enough
        with view.console.capture() as shown:
            view.console.print(view._renderable(), soft_wrap=True)
        assert ("0 MB of room left, and a checkpoint takes up to 0.1 MB" in shown.get()) is lacks
        if lacks:
            free(disk)


def a_folder_that_is_made_once(disk):
    """Prepared data is made from a stream, which cannot be read a second time: a sentence, and nothing half."""
    folder = folder_at(disk) / "prepared" / "digest"
    fill(disk)

    def tokens(scratch):
        (scratch / "tokens").write_bytes(b"x" * 100_000)

    refused(lambda: folder.publish(tokens), "full")
    assert folder.parent.list_names() == []
    free(disk)


def read_only(disk):
    search = folder_at(disk)
    lines = Journal(search)
    lines.append(ONE_TRIAL[0])
    search.write_text("search.json", "whole")
    lines.close()  # a person's remount waits for writers, which that of a kernel does not
    make_read_only(disk)
    refused(lambda: lines.append(ONE_TRIAL[1]), "read-only")
    refused(lambda: search.write_text("search.json", "half"), "read-only")
    assert search.read_text("search.json") == "whole"
    make_writable(disk)
    again = Journal(search)
    again.append(ONE_TRIAL[1])
    again.close()
    assert Journal(search).read() == ONE_TRIAL[:2]


def refused(write, word):
    with pytest.raises(StorageError, match=rf"{word}.* the same command") as error:
        write()
    print(error.value, file=sys.stderr)


if __name__ == "__main__":
    globals()[sys.argv[1]](Path(sys.argv[2]))
