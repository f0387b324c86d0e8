"""The shards of a preparation on a cluster: the same ones for the same work, and never half of one."""

import json
import stat
import threading
from functools import partial

import pyarrow as pa
import pyarrow.parquet
import pytest

from components.cluster.preparation import cluster_pool, shards
from components.cluster.preparation.cluster_pool import ClusterPool
from components.cluster.preparation.shards import FAILED, MADE, LostShardError, ShardStore, shards_of
from components.cluster.private_session import own_secret
from components.conversations.readers.record_count import count_records
from components.errors import InputError
from components.storage.open_folder import folder_at
from tests.support.servers import until

SECRET = b"of this user"


def times(factor, chunk):
    return [factor * number for number in chunk]


def keys_of(work, chunks):
    return [shard.key for shard in shards_of(work, chunks)]


def test_shards_are_known_by_their_work_and_their_chunks(monkeypatch):
    monkeypatch.setattr(shards, "RECORDS", 4)
    chunks = [[1, 2], [3, 4], [5], [6, 7, 8, 9, 10], [11]]
    keys = keys_of(partial(times, 2), chunks)
    assert [key.partition("-")[0] for key in keys] == ["000000", "000001", "000002"]
    assert keys_of(partial(times, 2), [list(chunk) for chunk in chunks]) == keys
    assert not set(keys_of(partial(times, 3), chunks)) & set(keys)
    changed = keys_of(partial(times, 2), [*chunks[:2], [0], *chunks[3:]])
    assert [key == other for key, other in zip(keys, changed, strict=True)] == [True, False, True]


def test_a_shard_takes_no_more_bytes_than_a_node_should_hold(monkeypatch):
    monkeypatch.setattr(shards, "BYTES", 100)
    assert len(keys_of(times, [[b"a" * 60]] * 6)) == 3


@pytest.fixture(params=["local", "bucket"])
def folder(request, tmp_path):
    if request.param == "local":
        return folder_at(tmp_path / "shards")
    server = request.getfixturevalue("s3_server")
    return folder_at(f"s3://{server.bucket}/{tmp_path.name}/shards")


def test_a_shard_gives_back_what_was_put_in(folder):
    store = ShardStore(folder, SECRET)
    (shard,) = shards_of(times, [[1, 2], [3]])
    store.give(shard)
    assert list(store.given(shard.key)) == [[1, 2], [3]]
    assert store.keep(shard.key, [[2, 4], [6]], None) == MADE
    assert store.is_whole(shard.key)
    assert store.made() == {shard.key}
    assert store.results(shard.key, MADE) == ([[2, 4], [6]], None)
    with pytest.raises(LostShardError, match="is not there"):
        list(store.given(shard.key))
    assert store.shared(store.share({"a": 1})) == {"a": 1}
    with ClusterPool(store, start=lambda: None):
        assert "lock" in folder.list_names()
    assert folder.list_names() == []


def test_work_that_failed_is_not_there_for_the_next_attempt(tmp_path):
    store = ShardStore(folder_at(tmp_path), SECRET)
    assert store.keep("a", [1], ValueError("no")) == FAILED
    assert store.made() == set()
    results, error = store.results("a", FAILED)
    assert (results, str(error)) == ([1], "no")


def test_what_somebody_else_wrote_is_never_unpickled(tmp_path, monkeypatch):
    """Nor is one file of ours in place of another."""
    folder = folder_at(tmp_path)
    ShardStore(folder, b"of another user").keep("a", [1], None)
    ours = ShardStore(folder, SECRET)
    ours.keep("b", [2], None)
    monkeypatch.setattr(shards.pickle, "loads", lambda content: pytest.fail("a stranger's pickle was read"))
    assert not ours.is_whole("a")
    with pytest.raises(LostShardError, match="not of this preparation"):
        ours.results("a", MADE)
    (tmp_path / MADE / "c").write_bytes((tmp_path / MADE / "b").read_bytes())
    assert ours.is_whole("b")
    assert not ours.is_whole("c")


def test_the_secret_of_a_user_stays_and_is_for_nobody_else(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    secret = own_secret()
    assert len(secret) == 64
    assert own_secret() == secret
    (file,) = tmp_path.rglob("secret")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


@pytest.mark.parametrize("damage", [lambda content: content[:-1], lambda content: content[:20], lambda content: b""])
def test_half_a_shard_counts_for_none(tmp_path, damage):
    store = ShardStore(folder_at(tmp_path), SECRET)
    store.keep("a", [1, 2, 3], None)
    file = tmp_path / MADE / "a"
    file.write_bytes(damage(file.read_bytes()))
    assert not store.is_whole("a")
    with pytest.raises(LostShardError, match="is damaged"):
        store.results("a", MADE)


def test_few_records_are_worked_on_here_and_no_cluster_is_asked(tmp_path):
    with ClusterPool(ShardStore(folder_at(tmp_path / "shards"), SECRET), start=lambda: None) as pool:
        assert list(pool.map(partial(times, 2), [[1, 2], [3]])) == [[2, 4], [6]]
        assert list(pool.map(partial(times, 2), [[1]], here=partial(times, 5))) == [[5]]
    assert not list(tmp_path.iterdir())


def test_one_driver_prepares_and_another_one_waits_for_it(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster_pool, "LOOK_SECONDS", 0.01)
    store, heard, order = ShardStore(folder_at(tmp_path / "shards"), SECRET), [], []

    def second():
        with ClusterPool(store, start=lambda: None, on_message=heard.append):
            order.append("second")

    thread = threading.Thread(target=second)
    with ClusterPool(store, start=lambda: None):
        thread.start()
        until(lambda: heard, 60)
        order.append("first")
    thread.join(60)
    assert order == ["first", "second"]
    assert heard == [f"data: another driver prepares it in {tmp_path}/shards; waiting for its end"]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("error", "left"), [(InputError, []), (KeyboardInterrupt, ["shards"])])
def test_what_was_made_stays_unless_nobody_needs_it(tmp_path, error, left):
    store = ShardStore(folder_at(tmp_path / "shards"), SECRET)
    store.keep("a", [1], None)
    with pytest.raises(error), ClusterPool(store, start=lambda: None):
        raise error
    assert [file.name for file in tmp_path.iterdir()] == left


def test_records_are_counted_in_files_of_every_kind(tmp_path):
    records = [{"prompt": "hi", "response": "yo"}] * 7
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (tmp_path / "b.json").write_text(json.dumps(records))
    pa.parquet.write_table(pa.Table.from_pylist(records), tmp_path / "c.parquet")
    (tmp_path / "d.parquet").write_bytes(b"PAR1")
    for name in ("a.jsonl", "b.json", "c.parquet"):
        assert count_records([str(tmp_path / name), None, str(tmp_path / "d.parquet"), str(tmp_path / "gone")]) == 7
    everything = [[str(tmp_path / "a.jsonl"), str(tmp_path / "b.json")], str(tmp_path / "*.parquet")]
    assert count_records(everything) == 21
    assert 10 <= count_records(everything, enough=10) < 21
