"""Attacks by files: names that lead out of their folder, links, pipes, foreign locks, and halves that a kill has left."""

import json
import os
import shutil
import stat
import threading
from pathlib import Path

import pytest
import torch

from components.cluster.driver.checkpoint_retention import CheckpointRetention
from components.cluster.slots.resume import newest_checkpoint
from components.cluster.slots.search_context import SearchContext
from components.errors import InputError
from components.experiment.load_experiment import load_experiment
from components.experiment.spec import ModelSpec, TrialSpec
from components.models.base.load_base import resolve_model
from components.models.base.reference import BaseReference
from components.models.chatglm.load_original import load_original
from components.models.chatglm.save import write_original
from components.models.digest import model_digest
from components.models.export import Exportable, ExportableAdapter, open_exportable, write_adapter
from components.models.load_causal_lm import load_causal_lm
from components.models.load_trained import package
from components.models.shard_names import shard_names
from components.records.events import TrialEnded, TrialProgressed, TrialStarted
from components.records.histories import TrialHistories
from components.search.search_lock import SearchLock
from components.storage import lease
from components.storage.background_upload import BackgroundUpload
from components.storage.links_inside import copy_own
from components.storage.names_inside import inside
from components.storage.open_folder import folder_at
from components.storage.permissions import readable_as_usual
from components.storage.process_identity import process_space
from components.storage.retry import StorageError
from components.training.checkpoint import write_checkpoint
from components.training.workers import OneWorker
from tests.support.records import progress
from tests.support.toy import tiny_model_directory
from tests.support.toy_chatglm import formula_directory

NO_PROCESS = 2**22 + 1  # Linux has no such process id


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TURNWISE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def bucket(s3_server, tmp_path):
    return folder_at(f"s3://{s3_server.bucket}/{tmp_path.name}")


@pytest.fixture
def secret(tmp_path):
    """A file that nobody is to read or write by a detour."""
    file = tmp_path / "elsewhere" / "secret"
    file.parent.mkdir()
    file.write_text("mine")
    return file


def tiny_model(directory):
    tiny_model_directory(directory)
    return directory


def one_file(folder):
    (folder / "weights").write_text("1")


# Names


@pytest.mark.parametrize(
    "name",
    ["../x", "a/../../x", "/etc/x", "", ".", "..", "a//b", "./a", "a/", "a\\..\\x", "C:x", "a\0b", "a\nb", 7, None],
)
def test_a_name_that_could_lead_out_of_its_folder_is_refused_with_its_place(name):
    with pytest.raises(InputError, match=r"index\.json: names the file .* relative, without \.\."):
        inside(name, "index.json")


@pytest.mark.parametrize("name", ["model.safetensors", "deep/weights.bin", "名字", "a..b", "..a", "it's 1%"])
def test_a_name_of_a_file_in_the_folder_stays_as_it_is(name):
    assert inside(name, "index.json") == name


def test_digests_of_a_bucket_that_name_a_file_elsewhere_overwrite_nothing(bucket, secret):
    folder = bucket / "a" / "b" / "c"
    folder.publish(one_file)
    folder.evict()
    digests = json.loads(folder.read_text("digests.0-of-1.json"))
    # From the copy's scratch folder up to the test's own; this server takes the name for that of another object.
    digests["files"]["../../../elsewhere/secret"] = digests["files"]["weights"]
    folder.write_text("digests.0-of-1.json", json.dumps(digests))
    (bucket / "elsewhere").write_text("secret", "1")
    with pytest.raises(InputError, match=r"digests\.0-of-1\.json: names the file '\.\./\.\./\.\./elsewhere/secret'"):
        folder.download()
    with pytest.raises(InputError, match="names the file"):
        folder.delete_matching("weights")
    assert secret.read_text() == "mine"


@pytest.mark.parametrize("index", ["model.safetensors.index.json", "pytorch_model.bin.index.json"])
def test_an_index_of_weights_that_names_a_file_elsewhere_is_refused(tmp_path, index):
    model = tiny_model(tmp_path / "model")
    (model / "model.safetensors").rename(tmp_path / "weights.safetensors")
    (model / index).write_text(json.dumps({"metadata": {}, "weight_map": {"w": "../weights.safetensors"}}))
    for load in (load_causal_lm, lambda directory: shard_names(directory / index)):
        with pytest.raises(InputError, match=r"index\.json: names the file '\.\./weights\.safetensors'"):
            load(model)


@pytest.mark.parametrize("content", ["{", "[]", '{"weight_map": []}', '{"weight_map": {"w": 3}}', "[" * 99999])
def test_an_index_that_is_none_is_refused_by_its_name(tmp_path, content):
    (tmp_path / "index.json").write_text(content)
    with pytest.raises(InputError, match=r"index\.json: "):
        shard_names(tmp_path / "index.json")


# Links and pipes


def test_a_link_out_of_a_model_is_not_copied_into_an_export(tmp_path, secret):
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text('{"model_type": "chatglm"}')
    (base / "modeling.py").symlink_to(secret)
    with pytest.raises(InputError, match=r"modeling\.py: is a link to .*secret, which lies outside"):
        copy_own(base / "modeling.py", tmp_path / "copy.py", of=base)
    (base / "inner").symlink_to(secret.parent)  # a folder of the model that lies elsewhere
    with pytest.raises(InputError, match="lies outside"):
        copy_own(base / "inner" / "secret", tmp_path / "copy.py", of=base)
    assert not (tmp_path / "copy.py").exists()


def test_a_hub_cache_leads_to_its_own_blobs_and_to_no_others(tmp_path, secret):
    snapshot, blobs = tmp_path / "models--me--it" / "snapshots" / "1f", tmp_path / "models--me--it" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "5e").write_text("code")
    (snapshot / "modeling.py").symlink_to("../../blobs/5e")
    copy_own(snapshot / "modeling.py", tmp_path / "copy.py", of=snapshot)
    assert (tmp_path / "copy.py").read_text() == "code"
    (snapshot / "odd.py").symlink_to(secret)
    with pytest.raises(InputError, match="lies outside"):
        copy_own(snapshot / "odd.py", tmp_path / "odd.py", of=snapshot)


def an_adapter(directory, base):
    exportable = open_exportable(base, None, directory)
    adapter = ExportableAdapter(directory=directory, base=ModelSpec(path=str(base)))
    return Exportable(
        origin=exportable.origin,
        base=exportable.base,
        config=exportable.config,
        chat_format=exportable.chat_format,
        tokenizer=exportable.tokenizer,
        adapter=adapter,
    )


def test_an_exported_adapter_holds_its_own_files_and_nothing_that_lay_beside_them(tmp_path, secret):
    base, adapter = tiny_model(tmp_path / "base"), tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    (adapter / "adapter_model.safetensors").write_bytes(b"")
    (adapter / "notes.txt").symlink_to(secret)
    (adapter / "checkpoint-1").mkdir()
    write_adapter(an_adapter(adapter, base), tmp_path / "out")
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors"} <= written
    assert not {"notes.txt", "checkpoint-1"} & written
    (adapter / "adapter_model.safetensors").unlink()
    (adapter / "adapter_model.safetensors").symlink_to(secret)
    with pytest.raises(InputError, match="lies outside"):
        write_adapter(an_adapter(adapter, base), tmp_path / "out")


def test_a_package_takes_no_file_that_a_checkpoint_links_to(tmp_path, secret):
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    (checkpoint / "base.json").symlink_to(secret)
    with pytest.raises(InputError, match=r"base\.json: is a link to .*secret"):
        package(checkpoint, tmp_path / "package")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "adapter/adapter_config.json"])
def test_a_pipe_in_a_model_is_refused_and_never_waited_for(tmp_path, name):
    model = tiny_model(tmp_path / "model")
    (model / name).unlink(missing_ok=True)
    (model / name).parent.mkdir(exist_ok=True)
    os.mkfifo(model / name)
    for use in (lambda: resolve_model(ModelSpec(path=str(model))), lambda: open_exportable(model, None, tmp_path)):
        with pytest.raises(InputError, match=r"is a named pipe, and a model has only files and folders"):
            use()


def test_an_original_layout_takes_nothing_that_its_base_links_to(tmp_path, secret):
    base = formula_directory(tmp_path / "base")
    (base / "LICENSE").symlink_to(secret)
    model = load_original(base, dtype=torch.float32, attention="sdpa")
    with pytest.raises(InputError, match="LICENSE: is a link"):
        write_original(model.state_dict(), model.config, tmp_path / "out", base=base)
    assert not (tmp_path / "out" / "LICENSE").exists()


def test_a_cached_digest_that_came_with_a_model_is_not_believed(tmp_path, secret):
    model = tiny_model(tmp_path / "model")
    right = model_digest(model)
    cache = model / ".turnwise-digest.json"
    known = json.loads(cache.read_text())
    cache.write_text(json.dumps({**known, "digest": "sha256:another model's"}))
    weights = model / "model.safetensors"
    content, found = weights.read_bytes(), weights.stat()
    weights.unlink()
    weights.write_bytes(content)  # as an archive or a bucket brings it: with its size and time, at another moment
    os.utime(weights, ns=(found.st_atime_ns, found.st_mtime_ns))
    assert model_digest(model) == right
    for odd in ("{", "[]", '{"stamp": 1}'):
        cache.write_text(odd)
        assert model_digest(model) == right
    cache.unlink()
    cache.symlink_to(secret)
    assert model_digest(model) == right
    assert (secret.read_text(), cache.is_symlink()) == ("mine", False)
    cache.unlink()
    os.mkfifo(cache)
    assert model_digest(model) == right


# Names that others can foresee


def test_a_small_file_is_written_through_no_link(tmp_path, secret):
    folder = folder_at(tmp_path / "storage")
    folder.write_text("driver.json", "0")
    for name in (".driver.json", "driver.json"):
        (folder.path / name).unlink(missing_ok=True)
        (folder.path / name).symlink_to(secret)
    folder.write_text("driver.json", "1")
    assert (folder.read_text("driver.json"), secret.read_text()) == ("1", "mine")


def test_a_lock_is_taken_through_no_link_and_on_no_pipe(tmp_path, secret):
    folder = folder_at(tmp_path)
    (tmp_path / "lock").symlink_to(secret)
    with pytest.raises(StorageError, match="lock: is a link, and must be a file of its own; delete it"):
        folder.lock("lock")
    assert secret.read_text() == "mine"  # and not empty
    (tmp_path / "lock").unlink()
    os.mkfifo(tmp_path / "lock")
    with pytest.raises(StorageError, match="lock: is no regular file"):
        folder.lock("lock")


def test_a_journal_is_appended_to_through_no_link(tmp_path, secret):
    (tmp_path / "journal.jsonl").symlink_to(secret)
    with pytest.raises(StorageError, match=r"journal\.jsonl: is a link"):
        folder_at(tmp_path).append_log("journal.jsonl").append("{}")
    assert secret.read_text() == "mine"


@pytest.mark.parametrize(("umask", "mode"), [(0o027, 0o640), (0o077, 0o600), (0o002, 0o664)])
def test_files_have_the_mode_that_the_umask_says(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        folder_at(tmp_path / "storage").write_text("a.json", "1")
        (tmp_path / "storage" / "weights").write_bytes(b"")
        (tmp_path / "storage" / "weights").chmod(0o600)  # as safetensors leaves it
        readable_as_usual(tmp_path / "storage" / "weights")
        copy_own(tmp_path / "storage" / "a.json", tmp_path / "storage" / "copy", of=tmp_path)
        folder_at(tmp_path / "storage").lock("lock").close()
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "storage").iterdir()}
    assert modes == dict.fromkeys(("a.json", "copy", "lock", "weights"), mode)


# Leases


@pytest.fixture
def fast(monkeypatch):
    monkeypatch.setattr(lease, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(lease, "STALE_SECONDS", 0.5)


def lease_of(**facts):
    return json.dumps({"holder": "other", "renewals": 0, **process_space(), "process": NO_PROCESS, **facts})


@pytest.mark.parametrize("other", [{"space": "pid:[1]"}, {"boot": "another"}, {"host": "another"}, {"boot": ""}])
def test_a_holder_in_another_container_of_this_host_keeps_its_lease(tmp_path, fast, other):
    """Its process id says nothing here: only that it renews the lease while we watch."""
    folder, ended = folder_at(tmp_path), threading.Event()

    def renew():
        for number in range(1000):
            if ended.wait(0.02):
                return
            folder.write_text("lock", lease_of(renewals=number, **other))

    folder.write_text("lock", lease_of(**other))
    holder = threading.Thread(target=renew)
    holder.start()
    try:
        with pytest.raises(BlockingIOError, match="is held"):
            lease.Lease.acquire(folder, "lock")
    finally:
        ended.set()
        holder.join()


def test_a_lease_of_a_process_that_has_ended_here_is_taken_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "STALE_SECONDS", 1e9)
    folder_at(tmp_path).write_text("lock", lease_of())
    lease.Lease.acquire(folder_at(tmp_path), "lock").close()


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '"x"', '{"host": "a"}', '{"holder": 7}', "x" * 100_000, "[" * 60_000]
)
def test_a_lease_that_cannot_be_read_counts_as_held_and_says_the_way_out(tmp_path, fast, content):
    folder = folder_at(tmp_path)
    folder.write_text("lock", content)
    with pytest.raises(BlockingIOError, match=r"lock: is no lease .* counts as held; .* delete that file if none does"):
        lease.Lease.acquire(folder, "lock")


def test_a_search_whose_lease_cannot_be_read_is_refused_with_the_way_out(bucket):
    (bucket / "search").write_text("lock", "?")
    with pytest.raises(InputError, match="delete that file if none does"):
        SearchLock(bucket).take(bucket / "search")


def test_a_holder_writes_its_lease_over_what_is_none(tmp_path, fast, monkeypatch):
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.05)
    held = lease.Lease.acquire(folder_at(tmp_path), "lock")
    held.when_lost(pytest.fail)
    folder_at(tmp_path).write_text("lock", "?")
    for _ in range(200):
        if folder_at(tmp_path).read_text("lock") != "?":
            break
        threading.Event().wait(0.05)
    assert json.loads(folder_at(tmp_path).read_text("lock"))["holder"] == held.holder
    held.close()


# Halves that a kill has left


class Killed(BaseException):
    pass


def killed(*_, **__):
    raise Killed


removed = shutil.rmtree


def killed_halfway(folder, **options):
    """In place of rmtree, which is called for folders without a checkpoint, too."""
    if (Path(folder) / "state.json").exists():
        (Path(folder) / "state.json").unlink()
        raise Killed
    removed(folder, **options)


def test_a_driver_killed_while_it_removes_a_checkpoint_leaves_no_half_of_it(tmp_path, monkeypatch):
    trial = folder_at(tmp_path / "trial")
    for step in (1, 2):
        (trial / f"step_{step:06d}").publish(lambda scratch: (scratch / "state.json").write_text("{}"))
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(Killed):
            (trial / "step_000001").delete()
    assert trial.list_names() == ["step_000002"]
    assert newest_checkpoint(trial, 2) == trial / "step_000002"
    assert len(list(trial.path.iterdir())) == 2  # the rest is hidden
    trial.delete_unfinished()
    assert [path.name for path in trial.path.iterdir()] == ["step_000002"]


def test_a_checkpoint_that_is_written_again_is_whole_at_every_moment(tmp_path, monkeypatch):
    trial = folder_at(tmp_path / "trial")
    target, uploads = trial / "step_000001", BackgroundUpload()

    def write(content):
        write_checkpoint(target, OneWorker(), lambda scratch: (scratch / "state.json").write_text(content), uploads)

    write("old")
    (target.path / "weights").write_text("of the old one")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed_halfway)
        with pytest.raises(Killed):
            write("new")
    # The old one was renamed as a whole, and the new one has its place, before anything of the old one was removed.
    assert {path.name: path.read_text() for path in target.path.iterdir()} == {"state.json": "new"}
    write("newest")
    assert {path.name: path.read_text() for path in target.path.iterdir()} == {"state.json": "newest"}
    assert trial.list_names() == ["step_000001"]


def test_a_small_file_whose_writing_failed_leaves_the_old_one_and_nothing_else(tmp_path):
    folder_at(tmp_path).write_text("a", "old")
    with pytest.raises(UnicodeEncodeError):
        folder_at(tmp_path).write_text("a", "\ud83d")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a", "old")]


def test_the_next_driver_removes_what_the_last_one_left_half_done(tmp_path):
    experiment = load_experiment("experiments/quickstart.yaml", [f"storage.path={tmp_path}"])
    folder = folder_at(tmp_path / "search")
    context = SearchContext(
        experiment=experiment,
        search_id="search",
        folder=folder,
        prepared=folder / "prepared",
        budget=100,
        pad_token_id=0,
        base=BaseReference(model=experiment.model, digest="sha256:toy", chat_format="auto"),
    )
    histories, trial = TrialHistories(), context.checkpoints / "trial"
    started = {"number": 1, "branch": "lora", "spec": TrialSpec(), "workers": 1, "varied": {}}
    histories.record(TrialStarted(trial_id="trial", time=0.0, **started))
    for step, eval_loss in ((1, 1.0), (2, 2.0)):
        (trial / f"step_{step:06d}").publish(one_file)
        reported = progress(step, eval_loss, checkpoint=str(trial / f"step_{step:06d}"))
        histories.record(TrialProgressed(trial_id="trial", progress=reported, slot="s", time=1.0))
    histories.record(TrialEnded(trial_id="trial", state="completed", time=2.0))
    (trial.path / ".step_000003.unfinished").mkdir()
    CheckpointRetention(context, histories)  # the driver before was killed right behind the trial's end
    assert [path.name for path in trial.path.iterdir()] == ["step_000001"]


def test_a_copy_that_a_killed_process_began_is_removed_by_the_next_one(bucket, tmp_path):
    bucket.publish(one_file)
    bucket.evict()
    copy = bucket._copy()
    copy.parent.mkdir(parents=True, exist_ok=True)
    (copy.parent / f".{copy.name}.x7").mkdir()
    assert bucket.download() == copy
    assert [path.name for path in copy.parent.iterdir() if path.name.startswith(".")] == []


def test_a_half_that_others_may_be_filling_is_left_for_a_day(tmp_path):
    fresh, old = (tmp_path / f".{name}.unfinished" for name in ("fresh", "old"))
    for rest in (fresh, old):
        rest.mkdir()
    os.utime(old, (0, 0))
    folder_at(tmp_path / "prepared").publish(one_file)
    assert sorted(path.name for path in Path(tmp_path).iterdir()) == [fresh.name, "prepared"]
