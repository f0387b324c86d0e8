"""What happened reaches the disk first and MLflow once, whatever dies in between."""

import json
import math
import os
import re
import socket
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException
from mlflow.system_metrics.metrics import gpu_monitor

from components.experiment.spec import (
    LoraMethod,
    TrackingSpec,
    TrialSpec,
)
from components.records.events import (
    Clone,
    Extension,
    Stop,
    TrialInstructed,
    replay,
)
from components.records.journal import JOURNAL, Journal
from components.records.manifest import SearchManifest, searches_in
from components.records.search_cost import SearchCost
from components.records.stop_flag import StopRequest
from components.storage.open_folder import folder_at
from components.tracking.journal_proof import compare_with_journal
from components.tracking.journal_sync import JournalSync
from components.tracking.mlflow_access import (
    check_tracking,
    download_version,
    open_store,
    tracking_uri,
)
from components.tracking.mlflow_runs import SearchRuns
from components.tracking.record_groups import RecordGroups
from tests.support.one_trial import (
    ITS_POINTS,
    ONE_TRIAL,
    children_of,
    ended,
    experiment,
    points_of,
    progressed,
    runs_at,
    started,
)


def tell(runs, records):
    for record in records:
        runs.apply(record)


def test_a_report_that_is_made_again_without_its_steps_repeats_what_is_known():
    """A trial was interrupted between its last report and its end; its checkpoint has no steps after that report."""
    first = progressed(first=1, last=2, eval_loss=1.5, at=110.0, checkpoint="/c/2")
    again = first.model_copy(
        update={"progress": first.progress.model_copy(update={"steps": (), "train_loss": math.nan})}
    )
    history = replay([started(), first, again])["t1"]
    assert [len(report.steps) for report in history.reports] == [2]
    assert math.isfinite(history.last.train_loss)


@pytest.fixture(scope="module")
def sqlite(tmp_path_factory):
    """The URI of a store in a file, made once: making one takes a second."""
    uri = f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"
    open_store(uri).search_experiments()
    return uri


@pytest.fixture
def runs(sqlite, request):
    """Makes SearchRuns of one search in an experiment of this test's own."""
    name = re.sub(r"\W", "-", request.node.name)[:100]

    def make(search_id="search-1", **fields):
        return runs_at(sqlite, name, search_id, **fields)

    return make


# The journal


def test_what_was_written_is_read_back_numbers_that_are_not_finite_included(tmp_path):
    records = [*ONE_TRIAL, progressed("t1", last=5, eval_loss=math.inf, loss=math.nan, at=130.0)]
    journal = Journal(folder_at(tmp_path))
    for record in records:
        journal.append(record)
    journal.close()
    read = Journal(folder_at(tmp_path)).read()
    assert [str(record) for record in read] == [str(record) for record in records]  # nan is not equal to itself
    assert read[:4] == ONE_TRIAL


def test_a_journal_that_does_not_exist_yet_is_empty(tmp_path):
    assert Journal(folder_at(tmp_path / "new")).read() == []


def test_each_record_is_forced_to_disk_before_append_returns(tmp_path, monkeypatch):
    journal, forced, fsync = Journal(folder_at(tmp_path)), [], os.fsync

    def spy(descriptor):
        fsync(descriptor)
        forced.append((os.fstat(descriptor).st_ino, (tmp_path / JOURNAL).read_bytes().count(b"\n")))

    monkeypatch.setattr(os, "fsync", spy)
    for record in ONE_TRIAL:
        journal.append(record)
    journal.close()
    inode = (tmp_path / JOURNAL).stat().st_ino
    assert [lines for file, lines in forced if file == inode] == [1, 2, 3, 4]
    assert forced[0] == (tmp_path.stat().st_ino, 0)  # and the new file's name, before all


@pytest.mark.parametrize("torn", [b"{", b'{"event":"ended","trial_id":"t1"', ended().model_dump_json().encode()])
def test_a_line_torn_by_a_kill_is_left_out_and_the_next_record_is_not_glued_to_it(tmp_path, torn):
    journal = Journal(folder_at(tmp_path))
    journal.append(ONE_TRIAL[0])
    journal.close()
    with (tmp_path / JOURNAL).open("ab") as file:
        file.write(torn)
    resumed = Journal(folder_at(tmp_path))
    watched = Journal(folder_at(tmp_path))
    assert resumed.read() == watched.read() == ONE_TRIAL[:1]
    resumed.append(ONE_TRIAL[1])
    assert watched.read(after=1) == ONE_TRIAL[1:2]
    assert resumed.read() == ONE_TRIAL[:2]
    resumed.close()


def test_a_line_that_is_no_record_is_named(tmp_path):
    journal = Journal(folder_at(tmp_path))
    journal.append(ONE_TRIAL[0])
    journal.close()
    with (tmp_path / JOURNAL).open("a") as file:
        file.write('{"event":"exploded"}\n')
    with pytest.raises(ValueError, match=r"journal\.jsonl, line 2: no record of this version"):
        journal.read()


def test_replays_fold_to_the_present_state():
    crashed = [
        started(at=100.0),
        progressed(first=1, last=2, eval_loss=1.5, at=110.0),
        ended(state="failed", reason="its slot died", at=115.0),
        started(at=120.0),
    ]
    again = [
        progressed(first=1, last=2, eval_loss=1.4, at=130.0),
        started("t2", number=2, at=131.0),
        progressed(first=3, last=4, eval_loss=1.2, at=140.0),
    ]
    running = replay(crashed)["t1"]
    assert (running.state, running.reason, running.ended_at) == ("running", "", None)
    folded = replay([*crashed, *again, ended(at=150.0), *crashed[1:2]])
    assert list(folded) == ["t1", "t2"]
    assert [(report.step, report.eval_loss) for report in folded["t1"].reports] == [(2, 1.5), (4, 1.2)]
    assert (folded["t1"].state, folded["t1"].ended_at) == ("completed", 150.0)


def test_a_report_of_an_unknown_trial_is_an_error():
    with pytest.raises(ValueError, match="t1 is reported before it started"):
        replay(ONE_TRIAL[1:])


def test_searches_are_found_oldest_first(tmp_path):
    manifests = [
        SearchManifest(search_id=name, experiment=experiment(), created=created, prepared="p", finished=created < 2)
        for name, created in (("young", 2.0), ("old", 1.0))
    ]
    for manifest in manifests:
        manifest.write(folder_at(tmp_path) / manifest.search_id)
    (tmp_path / "no-search").mkdir()
    assert searches_in(folder_at(tmp_path)) == manifests[::-1]
    assert searches_in(folder_at(tmp_path / "nowhere")) == []


# The store


def test_the_experiment_names_the_store_else_the_environment_else_a_file_here(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://from-environment")
    assert tracking_uri(experiment(tracking=TrackingSpec(uri="http://named"))) == "http://named"
    assert tracking_uri(experiment()) == "http://from-environment"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert tracking_uri(experiment()) == f"sqlite:///{tmp_path}/mlflow.db"


def test_a_server_that_is_not_there_is_an_error_without_secrets():
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound and not listening: nobody answers, and nobody else gets the port
        address = f"127.0.0.1:{closed.getsockname()[1]}"
        with pytest.raises(ValueError, match="start it, or correct") as error:
            check_tracking(f"http://me:secret@{address}")
    assert f"tracking.uri=http://{address}: no MLflow answers there (" in str(error.value)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("sqlite:///{file}", "file is not a database"),
        ("sqlite:///{file}/mlflow.db", "File exists"),
        ("localhost:5000", "unsupported URI 'localhost:5000'"),
        ("postgresql+nothing://me:secret@127.0.0.1/db", "postgresql.nothing"),
    ],
)
def test_a_store_that_cannot_be_opened_is_an_error_at_once(tmp_path, uri, reason):
    file = tmp_path / "notes.txt"
    file.write_text("some words, by no means a database\n" * 100)
    with pytest.raises(ValueError, match="no MLflow answers there") as error:
        check_tracking(uri.format(file=file))
    assert reason in str(error.value)
    assert "secret" not in str(error.value)


def test_a_file_that_does_not_exist_yet_is_a_store(tmp_path):
    check_tracking(f"sqlite:///{tmp_path}/new/mlflow.db")


def test_a_deleted_experiment_says_how_to_get_it_back(runs):
    made = runs()
    made.client.delete_experiment(made.experiment_id)
    with pytest.raises(MlflowException, match=f"mlflow experiments restore --experiment-id {made.experiment_id}"):
        runs()


def test_a_version_is_found_where_it_lies_or_copied_where_it_is_wanted(runs, sqlite, tmp_path):
    made = runs()
    made.log_text(None, "weights", "model/file.txt")
    made.client.create_registered_model("kept")
    source = f"{made.client.get_run(made.parent_id).info.artifact_uri}/model"
    made.client.create_model_version("kept", source, made.parent_id)
    made.client.set_registered_model_alias("kept", "champion", "1")
    found = download_version("models:/kept@champion", sqlite)
    assert found.as_uri() == source
    copied = download_version("models:/kept/1", sqlite, tmp_path / "copy")
    assert copied.is_relative_to(tmp_path / "copy")
    assert (copied / "file.txt").read_text() == "weights"
    with pytest.raises(ValueError, match=r"models:/kept: a registered model is models:/NAME@ALIAS or"):
        download_version("models:/kept", sqlite)
    with pytest.raises(MlflowException, match="alias challenger not found"):
        download_version("models:/kept@challenger", sqlite)


# The runs of a search


def test_each_trial_has_one_child_run_with_every_point_once(runs):
    made = runs()
    tell(made, ONE_TRIAL)
    (child,) = children_of(made.client, made.parent_id)
    assert child.info.run_id == made.trial_run("t1")
    assert child.data.tags["turnwise.trial_id"] == "t1"
    assert child.info.run_name == "001 lora"
    assert (child.info.start_time, child.info.end_time) == (100_000, 200_000)
    assert points_of(made.client, child.info.run_id) == ITS_POINTS


def test_a_replayed_journal_writes_into_the_same_runs_and_nothing_twice(runs):
    first = runs()
    tell(first, ONE_TRIAL)
    second = runs()
    tell(second, ONE_TRIAL)
    assert second.parent_id == first.parent_id
    (child,) = children_of(second.client, second.parent_id)
    assert points_of(second.client, child.info.run_id) == ITS_POINTS
    assert child.info.status == "FINISHED"
    assert child.info.end_time == 200_000


def test_a_step_that_was_trained_twice_keeps_its_first_point(runs):
    made = runs()
    tell(made, ONE_TRIAL[:3])
    retrained = progressed(first=3, last=4, eval_loss=1.3, loss=2.1, at=160.0, checkpoint="/c/4")
    further = progressed(first=5, last=5, eval_loss=1.0, at=170.0, checkpoint="/c/5")
    resumed = runs()
    tell(resumed, [started(at=150.0), retrained, further])
    points = points_of(resumed.client, resumed.trial_run("t1"))
    assert points["eval/loss"] == [(2, 1.5, 110_000), (4, 1.25, 120_000), (5, 1.0, 170_000)]
    assert points["train/step_loss"] == [*ITS_POINTS["train/step_loss"], (5, 0.4, 170_000)]


def test_trials_of_two_searches_are_not_mixed_up_though_their_ids_are_equal(runs):
    one, two = runs("search-1"), runs("search-2")
    one.apply(started())
    two.apply(started())
    assert one.parent_id != two.parent_id
    assert one.trial_run("t1") != two.trial_run("t1")
    assert runs("search-2").trial_run("t1") == two.trial_run("t1")


def test_params_are_flat_and_cut_and_the_whole_spec_is_an_artifact(runs, tmp_path):
    modules = tuple(f"layers.{number}.self_attn.q_proj" for number in range(40))
    spec = TrialSpec(method=LoraMethod(rank=4, target_modules=modules), seed=3)
    made = runs()
    made.apply(started(spec=spec))
    run = made.client.get_run(made.trial_run("t1"))
    assert run.data.params["method.kind"] == "lora"
    assert run.data.params["method.rank"] == "4"
    assert run.data.params["seed"] == "3"
    assert run.data.params["branch"] == "lora"
    assert len(run.data.params["method.target_modules"]) == 500
    file = made.client.download_artifacts(run.info.run_id, "spec.json", str(tmp_path))
    assert TrialSpec.model_validate_json(Path(file).read_text()) == spec
    parent = made.client.get_run(made.parent_id)
    assert parent.data.params["search.space.lora.method.kind"] == "lora"
    assert parent.data.params["model.path"] == "model"
    file = made.client.download_artifacts(made.parent_id, "experiment.json", str(tmp_path))
    assert json.loads(Path(file).read_text())["model"]["path"] == "model"


def test_tracking_settings_are_never_written_to_the_store(runs):
    made = runs(tracking=TrackingSpec(uri="http://inner-host", experiment="kept-apart"))
    assert "inner-host" not in str(made.client.get_run(made.parent_id).to_dictionary())


def test_numbers_that_are_not_finite_are_left_out(runs):
    made = runs()
    tell(made, [started(), progressed(last=1, eval_loss=math.inf, loss=math.nan, at=110.0)])
    points = points_of(made.client, made.trial_run("t1"))
    assert points["train/grad_norm"] == [(1, 1.0, 110_000)]
    assert points.keys() & {"train/step_loss", "train/loss", "eval/loss", "eval/best_loss"} == set()


@pytest.mark.parametrize(
    ("state", "status"), [("completed", "FINISHED"), ("stopped", "FINISHED"), ("failed", "FAILED")]
)
def test_the_status_of_a_run_is_the_state_of_its_trial(runs, state, status):
    made = runs()
    made.apply(started())
    assert made.client.get_run(made.trial_run("t1")).info.status == "RUNNING"
    made.apply(ended(state=state, reason="because " * 100))
    run = made.client.get_run(made.trial_run("t1"))
    assert run.info.status == status
    assert run.data.tags["turnwise.state"] == state
    assert run.data.tags["turnwise.reason"] == ("because " * 100)[:500]


def test_a_trial_that_starts_again_after_a_failure_runs_again_in_its_run(runs):
    made = runs()
    history = [started(at=100.0), ended(state="failed", reason="its slot died", at=110.0), started(at=120.0)]
    tell(made, history)
    run = made.client.get_run(made.trial_run("t1"))
    assert (run.info.status, run.data.tags["turnwise.state"]) == ("RUNNING", "running")
    assert run.data.tags["turnwise.reason"] == ""
    resumed = runs()
    tell(resumed, [*history, ended(at=130.0)])
    (run,) = children_of(resumed.client, resumed.parent_id)
    assert (run.info.status, run.info.end_time, run.data.tags["turnwise.state"]) == ("FINISHED", 130_000, "completed")


@pytest.mark.parametrize(
    ("state", "status"),
    [("champion", "FINISHED"), ("finished", "FINISHED"), ("interrupted", "KILLED"), ("no trial succeeded", "FAILED")],
)
def test_the_status_of_a_search_is_its_end_until_it_is_resumed(runs, state, status):
    made = runs()
    made.end_search(state)
    assert made.client.get_run(made.parent_id).info.status == status
    assert made.client.get_run(made.parent_id).data.tags["turnwise.state"] == state
    assert made.client.get_run(runs().parent_id).info.status == "RUNNING"


def test_a_search_says_what_it_cost_in_a_sentence_and_in_numbers(runs):
    made = runs()
    made.log_cost(SearchCost(training=2800.0, evaluation=400.0, proof=100.0, dollars=1.2))
    tags = made.client.get_run(made.parent_id).data.tags
    assert tags["turnwise.cost"].startswith(
        "cost: 3,300 worker-seconds: 2,800 training, 400 evaluation, 100 proof; $1.20"
    )
    assert (tags["turnwise.cost.worker_seconds"], tags["turnwise.cost.dollars"]) == ("3300.0", "1.20")


def test_the_checkpoint_tag_names_the_best_one_so_far_and_the_slot_tag_the_last_slot(runs):
    made = runs()
    reports = [
        progressed(first=1, last=1, eval_loss=1.0, at=110.0, checkpoint="/c/1"),
        progressed(first=2, last=2, eval_loss=0.5, at=120.0, checkpoint="/c/2", slot="slot_b"),
        progressed(first=3, last=3, eval_loss=0.7, at=130.0, checkpoint="/c/3"),
        progressed(first=4, last=4, eval_loss=0.4, at=140.0, checkpoint=None, slot="slot_c"),
    ]
    tell(made, [started(), *reports])
    run_id = made.trial_run("t1")
    tags = made.client.get_run(run_id).data.tags
    assert (tags["turnwise.checkpoint"], tags["turnwise.slot"]) == ("/c/2", "slot_c")
    runs().apply(reports[0])  # an earlier report again, by somebody who remembers nothing
    assert made.client.get_run(run_id).data.tags["turnwise.checkpoint"] == "/c/2"
    points = points_of(made.client, run_id)
    assert [value for _, value, _ in points["eval/best_loss"]] == [1.0, 0.5, 0.5, 0.5]


def test_a_run_that_was_made_before_the_server_died_is_completed(runs):
    made = runs()
    tags = {"mlflow.parentRunId": made.parent_id, "turnwise.trial_id": "t1"}
    bare = made.client.create_run(made.experiment_id, tags=tags)
    made.apply(started())
    assert made.trial_run("t1") == bare.info.run_id
    assert made.client.get_run(bare.info.run_id).data.params["method.rank"] == "4"
    assert [file.path for file in made.client.list_artifacts(bare.info.run_id)] == ["spec.json"]


def test_the_data_is_an_input_of_the_search_by_digest_and_stands_once(runs):
    made = runs()
    counts = {"dropped_bad": 1, "train_targets": 50, "eval_targets": 5}
    for _ in range(2):
        made.log_data("toy", "conversations.jsonl", {"train": "a" * 64, "eval": "b" * 64}, counts)
    inputs = made.client.get_run(made.parent_id).inputs.dataset_inputs
    found = {entry.tags[0].value: entry.dataset for entry in inputs}
    assert len(inputs) == 2
    assert {name: dataset.digest for name, dataset in found.items()} == {"train": "a" * 36, "eval": "b" * 36}
    assert json.loads(found["train"].source) == {"uri": "conversations.jsonl"}
    assert json.loads(found["eval"].profile) == {"dropped_bad": 1, "eval_targets": 5}


def test_the_search_keeps_the_commit_and_the_versions_it_ran_with(runs):
    made = runs()
    tags = made.client.get_run(made.parent_id).data.tags
    versions = {name.removeprefix("version.") for name in tags if name.startswith("version.")}
    assert versions == {"torch", "transformers", "peft", "ray", "mlflow", "bitsandbytes", "optuna", "python"}
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    if head.returncode == 0:
        assert tags["mlflow.source.git.commit"] == head.stdout.strip()


# The mirror


def test_a_mirror_delivers_what_it_is_told_and_what_the_journal_held_before(runs, tmp_path):
    journal = Journal(folder_at(tmp_path))
    journal.append(ONE_TRIAL[0])
    journal.close()
    mirror = JournalSync(Journal(folder_at(tmp_path)), runs, system_metrics=False)
    for record in ONE_TRIAL[1:]:
        mirror.append(record)
    assert mirror.close() == 0
    assert Journal(folder_at(tmp_path)).read() == ONE_TRIAL
    made = runs()
    assert points_of(made.client, made.trial_run("t1")) == ITS_POINTS


def interleaved(reports, **fields):
    """Reports of two trials in turn, each after two steps."""
    return [
        progressed(
            trial,
            first=2 * step - 1,
            last=2 * step,
            eval_loss=1 / step,
            at=100.0 + step,
            checkpoint=f"/{step}",
            **fields,
        )
        for step in range(1, reports + 1)
        for trial in ("t1", "t2")
    ]


def test_reports_that_wait_go_together_and_each_trial_keeps_its_order():
    reports = interleaved(3)
    begins, goes_on = [started("t1"), started("t2", number=2)], [ended("t1"), started("t1", at=210.0)]
    groups = RecordGroups([*begins, *reports[:4], *goes_on, *reports[4:]])
    taken = [groups.take() for _ in range(7)]
    of_two = [report for report in reports if report.trial_id == "t2"]
    assert taken == [[begins[0]], [begins[1]], reports[:3:2], of_two, [goes_on[0]], [goes_on[1]], [reports[4]]]
    assert not groups


def test_a_group_of_reports_fits_into_one_request():
    groups = RecordGroups(
        [progressed(first=1 + 100 * each, last=100 * each + 100, eval_loss=1.0, at=1e3) for each in range(5)]
    )
    assert [len(groups.take()) for _ in range(3)] == [2, 2, 1]


def test_a_mirror_that_is_late_asks_little_and_leaves_the_same_runs(runs, tmp_path):
    records = [started("t1"), started("t2", number=2), *interleaved(5), ended("t1"), ended("t2")]
    journal = Journal(folder_at(tmp_path))
    for record in records:
        journal.append(record)
    made, asked = runs(), []
    log_batch = made.client.log_batch
    made.client.log_batch = lambda run_id, **content: (asked.append(content), log_batch(run_id, **content))
    assert JournalSync(journal, lambda: made, system_metrics=False).close() == 0
    assert sum("metrics" in content for content in asked) == 2
    tell(alone := runs("search-2"), records)
    for trial_id in ("t1", "t2"):
        mine, other = made.trial_run(trial_id), alone.trial_run(trial_id)
        assert points_of(made.client, mine) == points_of(alone.client, other)
        tags = made.client.get_run(mine).data.tags
        assert (tags["turnwise.checkpoint"], tags["turnwise.slot"], tags["turnwise.state"]) == (
            "/5",
            "slot_a",
            "completed",
        )
    assert compare_with_journal(made, records).differences == ()


def test_of_reports_that_go_together_only_the_refused_one_is_missing(runs, tmp_path, caplog):
    reports = interleaved(3)
    odd = reports[2].progress.model_copy(update={"scores": {"no|name": 1.0}})
    reports[2] = reports[2].model_copy(update={"progress": odd})
    journal = Journal(folder_at(tmp_path))
    for record in [started("t1"), started("t2", number=2), *reports]:
        journal.append(record)
    made = runs()
    mirror = JournalSync(journal, lambda: made, system_metrics=False)
    assert mirror.close() == 0
    assert (mirror.refused, mirror.num_handled) == (1, 8)
    points = {trial: points_of(made.client, made.trial_run(trial))["eval/loss"] for trial in ("t1", "t2")}
    assert [step for step, _, _ in points["t1"]] == [2, 6]
    assert [step for step, _, _ in points["t2"]] == [2, 4, 6]
    assert made.client.get_run(made.trial_run("t1")).data.tags["turnwise.checkpoint"] == "/3"


def test_a_record_that_mlflow_will_never_take_is_skipped_counted_and_said_once(runs, tmp_path, caplog):
    made = runs()
    tell(made, [started("t1"), started("t2", number=2)])
    made.client.delete_run(made.trial_run("t1"))
    mirror = JournalSync(Journal(folder_at(tmp_path)), lambda: made, system_metrics=False)
    for record in [*ONE_TRIAL[1:], progressed("t2", last=1, eval_loss=1.0, at=110.0)]:
        mirror.append(record)
    assert mirror.close() == 0
    assert mirror.refused == 3
    assert points_of(made.client, made.trial_run("t2"))["eval/loss"] == [(1, 1.0, 110_000)]
    first, last = [record.message for record in caplog.records]
    assert "refuses a record of trial t1 for good: The run" in first
    assert last.startswith("MLflow refused 3 records")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_mirror_that_broke_owes_everything_it_did_not_deliver(tmp_path):
    def broken():
        raise RuntimeError("a fault of ours")

    mirror = JournalSync(Journal(folder_at(tmp_path)), broken, system_metrics=False)
    for record in ONE_TRIAL:
        mirror.append(record)
    assert mirror.close() == 4
    assert Journal(folder_at(tmp_path)).read() == ONE_TRIAL


def test_the_end_waits_for_an_mlflow_that_is_slow_as_long_as_it_takes_something(runs, tmp_path):
    made = runs()
    together = made.apply_together
    made.apply_together = lambda group: (time.sleep(1.0), together(group))
    mirror = JournalSync(Journal(folder_at(tmp_path)), lambda: made, system_metrics=False)
    for number in range(1, 7):
        mirror.append(started(f"t{number}", number=number))
    assert mirror.close(patience_seconds=4.5) == 0


def test_a_stop_request_shortens_the_wait_for_an_mlflow_that_is_away(tmp_path):
    def away():
        raise ConnectionError("refused")

    sync, stop = JournalSync(Journal(folder_at(tmp_path)), away, system_metrics=False), StopRequest()
    for record in ONE_TRIAL:
        sync.append(record)
    threading.Timer(0.5, stop.request, ["SIGTERM"]).start()
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(sync.close, 3600.0, stop).result(timeout=60) == 4


def test_mlflow_has_the_library_with_which_it_reads_gpus():
    """Without it MLflow logs no metrics of GPUs, and does not say so."""
    assert "pynvml" in vars(gpu_monitor)


def test_all_runs_say_where_else_the_search_can_be_looked_at(sqlite):
    facts = {"ray.job_id": "01000000", "ray.dashboard": "http://head:8265/#/jobs/raysubmit_1"}
    search = SearchRuns(open_store(sqlite), sqlite, experiment("linked"), "search-1", facts)
    where = {"node": "10.0.0.7 ab12", "device": "NVIDIA L40S (CUDA_VISIBLE_DEVICES=3)"}
    moved = progressed(last=2, eval_loss=1.5, at=110.0).model_copy(update=where)
    tell(search, [started(), moved])
    for run_id in (search.parent_id, search.trial_run("t1")):
        assert facts.items() <= search.client.get_run(run_id).data.tags.items()
    tags = search.client.get_run(search.trial_run("t1")).data.tags
    assert (tags["ray.node"], tags["turnwise.device"]) == (where["node"], where["device"])
    assert search.link == sqlite
    search.uri = "https://ann:secret@mlflow.internal/"
    assert search.link == (f"https://mlflow.internal/#/experiments/{search.experiment_id}/runs/{search.parent_id}")


def test_what_a_person_told_the_search_stands_on_the_runs_once(runs):
    spec = TrialSpec(method=LoraMethod(rank=8))
    clone = Clone(trial_id="t9", number=9, branch="lora", spec=spec, varied={}, warm_from="/c/4")
    told = [
        TrialInstructed(trial_id="t1", instruction=instruction, request_id=str(number), by="ann@desk", time=60.0)
        for number, instruction in enumerate([Extension(target_tokens=3000, from_step=3), clone, Stop()])
    ]
    child = started("t9", number=9, spec=spec).model_copy(update={"parent": "t1", "warm_from": "/c/4"})
    search = runs()
    tell(search, [*ONE_TRIAL[:2], *told, child])
    tell(runs(), [*ONE_TRIAL[:2], *told, child])  # a new driver tells all of it again
    tags = search.client.get_run(search.trial_run("t1")).data.tags
    assert tags["turnwise.extended_to"] == "3000"
    assert tags["turnwise.clone.9"] == "t9"
    assert tags["turnwise.stopped_by"] == "ann@desk"
    assert tags["mlflow.note.content"].split("\n\n") == [
        "1970-01-01 00:01:00 UTC: extended to 3,000 target tokens by ann@desk",
        "1970-01-01 00:01:00 UTC: cloned as trial 9 with its weights by ann@desk",
        "1970-01-01 00:01:00 UTC: stopped by ann@desk",
    ]
    of_clone = search.client.get_run(search.trial_run("t9")).data.tags
    assert of_clone["turnwise.parent"] == "t1"
    assert of_clone["turnwise.parent_run_id"] == search.trial_run("t1")
    assert of_clone["turnwise.warm_from"] == "/c/4"
