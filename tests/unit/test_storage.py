"""The one seam between a search and the place it keeps things in: folders on a disk, and folders on a real S3 server."""

import json
import os
import pickle
import shutil
import threading
import urllib.request

import pytest

from components.conversations.readers.read import content_digest, read_conversations
from components.experiment.experiment_errors import ExperimentError
from components.experiment.load_experiment import load_experiment
from components.experiment.spec import ModelSpec
from components.models.base.load_base import resolve_model
from components.storage import lease, retry
from components.storage import node_cache as cache
from components.storage.open_folder import folder_at
from components.storage.retry import StorageError
from tests.support.servers import S3Server
from tests.support.toy import tiny_model_directory, toy_conversations, write_messages_jsonl


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TURNWISE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(params=["disk", "s3"])
def folder(request, tmp_path):
    """A folder that does not exist yet, on each kind of storage."""
    if request.param == "disk":
        return folder_at(tmp_path / "storage" / "folder")
    return folder_at(f"s3://{request.getfixturevalue('s3_server').bucket}/{tmp_path.name}/folder")


@pytest.fixture
def bucket(s3_server, tmp_path):
    return folder_at(f"s3://{s3_server.bucket}/{tmp_path.name}")


def two_files(target):
    (target / "deep").mkdir()
    (target / "deep" / "weights.bin").write_bytes(b"w" * 100_000)
    (target / "state.json").write_text("{}")


def files_in(directory):
    return {
        path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


def test_a_uri_may_end_with_a_slash_and_say_more_about_its_server(s3_server, tmp_path):
    host = s3_server.uri.removeprefix("http://")
    folder = folder_at(f"s3://{s3_server.bucket}/{tmp_path.name}/?scheme=http&endpoint_override={host}")
    (folder / "deep").write_text("a", "1")
    assert folder_at(f"s3://{s3_server.bucket}/{tmp_path.name}/deep").read_text("a") == "1"
    assert ((folder / "deep").parent, (folder / "deep").name) == (folder, "deep")


def test_a_small_file_is_read_back_and_replaced(folder):
    assert (folder.list_names(), folder.has_file("a.json")) == ([], False)
    with pytest.raises(FileNotFoundError):
        folder.read_text("a.json")
    folder.write_text("a.json", "one")
    folder.write_text("a.json", "你好")
    (folder / "b").write_text("c.json", "")
    assert (folder.read_text("a.json"), folder.list_names(), folder.has_file("b")) == ("你好", ["a.json", "b"], False)


def test_a_filled_folder_is_whole_and_comes_back_as_it_was(folder):
    assert not folder.is_complete()
    folder.publish(two_files)
    assert folder.is_complete()
    folder.evict()  # on a remote storage: so that it has to travel
    assert files_in(folder.download()) == {"deep/weights.bin": b"w" * 100_000, "state.json": b"{}"}


def test_a_folder_whose_filling_failed_is_not_there(folder):
    def fail(target):
        two_files(target)
        raise ValueError("no room")

    with pytest.raises(ValueError, match="no room"):
        folder.publish(fail)
    assert (folder.is_complete(), folder.parent.list_names()) == (False, [])


def test_a_file_discarded_leaves_the_others_whole(folder):
    folder.publish(two_files)
    folder.delete_matching("state*.json")
    assert folder.is_complete()
    assert files_in(folder.download()) == {"deep/weights.bin": b"w" * 100_000}


def test_a_removed_folder_is_gone(folder):
    folder.publish(two_files)
    folder.delete()
    folder.delete()  # is no error
    assert (folder.is_complete(), folder.list_names()) == (False, [])


def test_lines_are_read_in_the_order_they_were_written_by_one_writer_after_another(folder):
    log = folder.append_log("log")
    assert list(log.read()) == []
    for number in range(12):
        log.append(f"{number}")
    log.close()
    later = folder.append_log("log")
    later.append("later")
    assert [line.decode() for line in later.read()] == [*map(str, range(12)), "later"]
    assert list(folder.append_log("log").read()) == list(later.read())
    assert list(later.read(after=12)) == [b"later"]
    another = folder.append_log("log")
    another.append("last")
    assert list(later.read(after=13)) == [b"last"]
    assert list(later.read(after=14)) == []
    assert list(later.read(after=11)) == [b"11", b"later", b"last"]


def test_a_remote_folder_is_whole_once_every_writer_has_said_so(bucket, tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "part_1").write_text("1")
    bucket.upload(tmp_path / "own", part=1, of=2)
    assert not bucket.is_complete()
    with pytest.raises(FileNotFoundError, match="not whole"):
        bucket.download()
    (tmp_path / "own" / "part_1").rename(tmp_path / "own" / "part_0")
    bucket.upload(tmp_path / "own", part=0, of=2)
    assert files_in(bucket.download()) == {"part_0": b"1", "part_1": b"1"}


def test_a_damaged_object_is_refused_by_its_name_and_says_the_way_out(bucket):
    bucket.publish(two_files)
    bucket.evict()
    (bucket / "deep").write_text("weights.bin", "w" * 99_999 + "x")
    with pytest.raises(StorageError, match=r"weights.bin is damaged: 100000 bytes .* delete that folder") as refused:
        bucket.download()
    assert str(bucket) in str(refused.value)


def test_many_processes_of_a_node_bring_a_folder_once(bucket, monkeypatch):
    bucket.publish(two_files)
    bucket.evict()
    brought, download = [], type(bucket)._download

    def counted(folder, target):
        brought.append(target)
        download(folder, target)

    monkeypatch.setattr(type(bucket), "_download", counted)
    threads = [threading.Thread(target=bucket.download) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(brought) == 1
    assert len(list((cache.cache_folder() / "copies").glob("*/state.json"))) == 1


def test_what_dead_processes_left_in_the_outbox_is_removed():
    scratch = cache.new_scratch()
    space, own, rest = scratch.name.split(".")
    dead = scratch.with_name(f"{space}.{2**22 + 1}.{rest}")  # Linux has no such process id
    container, older = (scratch.with_name(f"{mark}.{2**22 + 1}.{rest}") for mark in ("another", "older"))
    for folder in (dead, container, older):
        folder.mkdir()
    os.utime(older, (0, 0))
    # The process of a container's number is not that of this number here: only its age says that it has ended.
    left = {path.name.rsplit(".", 1)[0] for path in cache.new_scratch().parent.iterdir()}
    assert left == {f"{space}.{own}", f"another.{2**22 + 1}"}


def test_while_the_server_is_away_we_wait_and_then_say_so(s3_server, bucket, monkeypatch):
    s3_server.kill()
    with monkeypatch.context() as patch:
        patch.setattr(retry, "MAX_RETRY_SECONDS", 0.0)
        with pytest.raises(
            StorageError,
            match=r"the storage has been away for 0 seconds \(NETWORK_CONNECTION.*the same command goes on",
        ):
            bucket.write_text("a", "1")
    # This server forgets its bucket with its process, and has it again a moment after it answers. A missing bucket is
    # final otherwise.
    monkeypatch.setattr(retry, "PERMANENT_ERRORS", ())
    back = threading.Timer(1.0, s3_server.start)
    back.start()
    bucket.write_text("a", "1")
    assert bucket.read_text("a") == "1"
    back.join()


def test_a_lease_keeps_a_second_driver_out_and_ends_with_its_holder(bucket, monkeypatch):
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.2)
    monkeypatch.setattr(lease, "POLL_SECONDS", 0.1)
    held = bucket.lock("lock")
    with pytest.raises(BlockingIOError):
        bucket.lock("lock")
    held.close()
    assert bucket.list_names() == []
    bucket.lock("lock").close()


def test_a_lease_that_nobody_renews_is_taken_over_and_the_late_holder_ends(bucket, monkeypatch):
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.2)
    monkeypatch.setattr(lease, "POLL_SECONDS", 0.1)
    monkeypatch.setattr(lease, "STALE_SECONDS", 0.5)
    lost, reasons = threading.Event(), []
    bucket.write_text("lock", '{"holder": "somebody", "host": "another machine", "process": 1}')
    held = bucket.lock("lock")
    held.when_lost(lambda reason: (reasons.append(reason), lost.set()))
    bucket.write_text("lock", '{"holder": "somebody else", "host": "another machine", "process": 1}')
    assert lost.wait(30)
    held.when_lost(reasons.append)  # whoever asks late hears of it, too
    assert reasons == [f"another driver has taken {bucket}/lock"] * 2
    held.close()
    assert bucket.has_file("lock")  # the other's


def test_a_lease_needs_a_folder_that_reads_writes_and_deletes_small_files(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.2)
    monkeypatch.setattr(lease, "POLL_SECONDS", 0.1)
    folder = folder_at(tmp_path)
    held = lease.Lease.acquire(folder, "lock")
    with pytest.raises(BlockingIOError):
        lease.Lease.acquire(folder, "lock")
    held.close()
    assert folder.list_names() == []


def test_the_last_checkpoint_counts_as_complete_only_where_a_commit_completes_it(tmp_path):
    disk, bucket = folder_at(tmp_path), folder_at("s3://bucket/x")
    assert (disk.newest_complete([1, 2]), disk.newest_complete([])) == (2, None)
    assert (bucket.newest_complete([1, 2]), bucket.newest_complete([1]), bucket.newest_complete([])) == (1, None, None)


@pytest.mark.parametrize("location", ["runs/a", "s3://bucket/a?region=eu-west-1"])
def test_a_folder_travels_to_other_processes(location):
    folder = folder_at(location)
    arrived = pickle.loads(pickle.dumps(folder))
    assert (arrived, type(arrived), hash(arrived)) == (folder, type(folder), hash(folder))


@pytest.mark.parametrize(
    ("setting", "what"),
    [
        ("storage.path=s3://me:hush@bucket/x", "storage: path: a s3:// URI with a user, password or key"),
        ("storage.path=s3://bucket/x?secret_key=hush", "storage: path: a s3:// URI with a user, password or key"),
        ("model.path=gs://hush@bucket/x", "model: path: a gs:// URI with a user, password or key"),
        ("data.train=[s3://hush@bucket/x]", "data: train: a s3:// URI with a user, password or key"),
        ("storage.path=ftp://host/x", "ftp:// is no storage; name a folder, s3://BUCKET/PREFIX or gs://BUCKET/PREFIX"),
        ("storage.path=s3:///x", "s3:///x names no bucket; write s3://BUCKET/PREFIX"),
    ],
)
def test_a_uri_that_cannot_be_is_refused_and_its_secret_is_not_shown(setting, what):
    with pytest.raises(ExperimentError) as refused:
        load_experiment("experiments/quickstart.yaml", [setting])
    assert what in str(refused.value)
    assert "hush" not in str(refused.value)


def test_a_model_and_conversations_come_from_a_bucket_by_their_uris(bucket, tmp_path):
    tiny_model_directory(tmp_path / "model")
    write_messages_jsonl(tmp_path / "a.jsonl", toy_conversations(3))
    (bucket / "model").upload(tmp_path / "model")
    bucket.write_text("a.jsonl", (tmp_path / "a.jsonl").read_text())
    bucket.write_text("b.jsonl", (tmp_path / "a.jsonl").read_text())
    directory = resolve_model(ModelSpec(path=f"{bucket}/model"))
    assert directory == resolve_model(ModelSpec(path=f"{bucket}/model"))
    assert (directory / "config.json").read_text() == (tmp_path / "model" / "config.json").read_text()
    assert len(read_conversations(f"{bucket}/*.jsonl").conversations) == 6
    assert content_digest(f"{bucket}/a.jsonl") == content_digest(str(tmp_path / "a.jsonl"))
    with pytest.raises(ValueError, match="no such model"):
        resolve_model(ModelSpec(path=f"{bucket}/nowhere"))


def test_a_bucket_that_is_not_there_or_not_ours_is_an_error_at_once(bucket, tmp_path, monkeypatch):
    with pytest.raises(StorageError, match="NO_SUCH_BUCKET: The specified bucket does not exist"):
        folder_at("s3://nowhere/x").check_access()
    bucket.check_access()
    assert bucket.list_names() == []
    strict = S3Server(tmp_path, strict=True)
    try:
        strict.start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", strict.uri)
        with pytest.raises(
            StorageError, match="INVALID_ACCESS_KEY_ID: The AWS Access Key Id you provided does not exist"
        ):
            folder_at(f"s3://{strict.bucket}/x").check_access()
    finally:
        strict.kill()


def test_a_folder_that_we_may_not_delete_is_an_error_at_once_and_names_a_file(s3_server, bucket, monkeypatch):
    monkeypatch.setattr(retry, "MAX_RETRY_SECONDS", 1.0)
    (bucket / "kept").write_text("weights", "1")
    resource = f"arn:aws:s3:::{bucket.path}/kept/*"
    rule = {"Effect": "Deny", "Principal": "*", "Action": ["s3:DeleteObject"], "Resource": resource}
    policy = f"{s3_server.uri}/{s3_server.bucket}?policy"
    content = json.dumps({"Version": "2012-10-17", "Statement": [rule]}).encode()
    send(policy, "PUT", data=content, headers={"Content-Type": "application/json"})
    denied = (
        r"kept: ACCESS_DENIED: .*kept/weights may not be deleted; give this machine the right to it \(s3:DeleteObject\)"
    )
    try:
        with pytest.raises(StorageError, match=denied):
            (bucket / "kept").delete()
    finally:
        send(policy, "DELETE")


def send(uri, method, **content):
    urllib.request.urlopen(urllib.request.Request(uri, method=method, **content), timeout=30).close()


def test_a_folder_whose_deletion_is_cut_short_is_gone(tmp_path, monkeypatch):
    folder = folder_at(tmp_path / "step_000001")
    folder.publish(lambda scratch: (scratch / "weights").write_text("1"))

    def killed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        folder.delete()
    assert not folder.is_complete()
    assert [name for name in folder.parent.list_names() if name.startswith("step_")] == []
