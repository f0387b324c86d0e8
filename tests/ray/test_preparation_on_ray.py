"""Large data is prepared on a cluster: the same bytes as on one machine, and what a kill leaves is not done twice."""

import contextlib
import signal
import subprocess
import sys
from collections import Counter

import pytest

from components.cluster.capacity.cluster_capacity import InsufficientCapacityError
from components.cluster.preparation import cluster_pool, shards
from components.cluster.preparation.cluster_pool import on_cluster
from components.cluster.preparation.shards import ShardStore
from components.conversations.readers import chunks
from components.data import process_pool, written_sides
from components.data.prepare import prepare
from components.errors import InputError, PreparationError
from components.experiment.spec import DataSpec
from components.storage.open_folder import folder_at
from tests.support.odd_records import odd_lines
from tests.support.programs import environment
from tests.support.recorded_searches import own_cluster
from tests.support.servers import until
from tests.support.template_kinds import KINDS
from tests.support.toy_search import toy_search_folder


@pytest.fixture(scope="module")
def two_cpus():
    with own_cluster(num_cpus=2):
        yield


@pytest.fixture
def files(tmp_path, monkeypatch, two_cpus):
    """The working directory, with a model and the data; shards are small, and the cluster is connected."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cluster_pool, "connected", contextlib.nullcontext)
    small_shards(monkeypatch.setattr, 32)
    KINDS["thought_in_newest"].tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "train.jsonl").write_text(odd_lines(), encoding="utf-8")
    return tmp_path


def small_shards(set_to, records):
    """As if files were large: so many records in a shard, and in each of its chunks half as many."""
    set_to(process_pool, "FEWER_IN_PROCESS", 20)
    set_to(shards, "RECORDS", records)
    set_to(chunks, "RECORDS", records // 2)
    set_to(written_sides, "CHUNK", records // 2)


def prepared(folder, storage, *, cluster=None, **rules):
    rules = {"on_bad_row": "drop", "max_tokens": 700, "tag": "topic", "eval_fraction": 0.2, **rules}
    return prepare(
        DataSpec(train="train.jsonl", on_cluster_from=100 if cluster else None, **rules),
        model_path=folder / "model",
        chat_format="auto",
        storage=folder_at(folder / storage),
        context=600,
        processes=1,
        cluster=cluster,
    )


def bytes_of(dataset):
    folder = dataset.directory.path
    return {file.name: file.read_bytes() for file in folder.iterdir() if not file.name.startswith(".")}


def test_a_cluster_prepares_the_same_bytes_as_one_machine(files):
    heard = []
    here = prepared(files, "here")
    there = prepared(files, "there", cluster=on_cluster(heard.append))
    assert there.digest == here.digest
    assert bytes_of(there) == bytes_of(here)
    assert {"train.arrow", "eval.arrow", "manifest.json"} <= bytes_of(here).keys()
    assert here.counts["near_duplicates"] + here.counts["leaked"] > 0 < here.counts["mended"]
    assert heard == ["data: prepared on the cluster, 9 of 9 shards to read, 2 CPUs at most"]
    assert there.directory.parent.list_names() == [there.digest]


def test_a_refusal_has_the_same_words(files):
    for rules in ({"on_bad_row": "fail"}, {"too_long": "fail"}, {"max_tokens": 8, "too_long": "drop"}):
        with pytest.raises(InputError) as here:
            prepared(files, "here", **rules)
        with pytest.raises(InputError) as there:
            prepared(files, "there", cluster=on_cluster(), **rules)
        assert str(there.value) == str(here.value)
        assert folder_at(files / "there").list_names() in ([], ["prepared"])
        assert (folder_at(files / "there") / "prepared").list_names() == []


KILLED = """
import sys
from pathlib import Path
from components.cluster.capacity.cluster_capacity import InsufficientCapacityError
from components.cluster.preparation.cluster_pool import on_cluster
from tests.ray.test_preparation_on_ray import prepared, small_shards

small_shards(setattr, 2)
prepared(Path.cwd(), "there", cluster=on_cluster())
"""


def test_a_preparation_that_was_killed_goes_on_with_the_shards_that_are_missing(files, monkeypatch):
    small_shards(monkeypatch.setattr, 2)
    driver = subprocess.Popen([sys.executable, "-c", KILLED], env=environment(), cwd=files)
    (files / "there" / "prepared").mkdir(parents=True)

    def made():
        return [file for file in (files / "there").glob("prepared/*.shards/made/*") if not file.name.startswith(".")]

    until(lambda: len(made()) >= 20 or driver.poll() is not None, 120)
    driver.send_signal(signal.SIGKILL)
    assert driver.wait() == -signal.SIGKILL
    there = made()
    damaged = there[3]
    damaged.write_bytes(damaged.read_bytes()[:-1])
    given = Counter()
    give = ShardStore.give
    monkeypatch.setattr(ShardStore, "give", lambda store, shard: (given.update([shard.key]), give(store, shard)))
    heard = []
    dataset = prepared(files, "there", cluster=on_cluster(heard.append))
    assert given[damaged.name] == 1
    assert not given.keys() & {file.name for file in there if file != damaged}
    assert bytes_of(dataset) == bytes_of(prepared(files, "here"))


def test_a_storage_that_nodes_do_not_see_ends_with_a_sentence(files, monkeypatch):
    monkeypatch.setattr(ShardStore, "give", lambda store, shard: None)
    with pytest.raises(
        PreparationError, match=r"did not prepare the data \(.*is not there\)\. The same command goes on"
    ):
        prepared(files, "there", cluster=on_cluster())


SEARCHED = """
from components.data import process_pool
from components.experiment.load_experiment import load_experiment
from components.search.prepare_search import prepare_search
from components.search.run import driver_session

process_pool.FEWER_IN_PROCESS = 20
experiment = load_experiment("toy.yaml", ["data.on_cluster_from=60"])
with driver_session(prepare_search(experiment, on_message=print)) as search:
    print(search.planned, "trials")
"""


def test_a_search_prepares_large_data_on_its_cluster_and_then_connects_again(tmp_path):
    toy_search_folder(tmp_path, conversations=60)
    variables = {name: value for name, value in environment().items() if name != "RAY_ADDRESS"}
    done = subprocess.run(
        [sys.executable, "-c", SEARCHED], env=variables, cwd=tmp_path, timeout=300, check=False, capture_output=True
    )
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    said = done.stdout.decode()
    assert said.index("data: prepared on the cluster, 1 of 1 shards to read") < said.index("4 trials")
    assert "Dataset" not in said + done.stderr.decode()  # what Ray Data has to say is for its own log


def test_a_cluster_without_a_cpu_is_named(files, monkeypatch):
    monkeypatch.setattr(cluster_pool, "ONE_CPU", cluster_pool.ONE_CPU.model_copy(update={"cpus_per_worker": 3}))
    with pytest.raises(InsufficientCapacityError, match="no node of the cluster has a CPU"):
        prepared(files, "there", cluster=on_cluster())
