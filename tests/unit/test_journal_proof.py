"""MLflow compared with the journal, point by point, and filled from the folder of a search alone."""

import pytest
from mlflow.entities import Metric

from components.errors import InputError
from components.experiment.spec import TrackingSpec
from components.records.journal import Journal
from components.records.manifest import LAYOUT, SearchManifest
from components.records.outcome import Outcome
from components.records.tracked_search import TrackedData, TrackedSearch
from components.reports.search_summary import SearchSummary
from components.search.search_lock import LOCK
from components.search.sync_search import sync_search
from components.search.write_reports import REPORT, keep_summary
from components.tracking.journal_proof import compare_with_journal
from components.tracking.mlflow_access import open_store
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


@pytest.fixture
def uri(tmp_path):
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


@pytest.fixture
def runs(uri):
    """All of one trial."""
    runs = runs_at(uri)
    for record in ONE_TRIAL:
        runs.apply(record)
    return runs


def test_what_was_delivered_equals_the_journal(runs):
    proof = compare_with_journal(runs, [*ONE_TRIAL[:3], *ONE_TRIAL[2:]])  # a report that stands there twice is one
    assert proof.differences == ()
    assert proof.points == sum(map(len, ITS_POINTS.values()))
    assert proof.sentence == f"MLflow equals the journal: 1 trial, {proof.points} points"


def test_what_the_winner_scored_afterwards_is_no_difference(runs):
    runs.log_trial_metrics("t1", {"eval/general_loss": 1.0}, 4)
    assert compare_with_journal(runs, ONE_TRIAL).differences == ()


def changed_value(runs):
    return [*ONE_TRIAL[:2], progressed(first=3, last=4, eval_loss=1.25, at=120.0, loss=3.0, checkpoint="/c/4"), ended()]


def doubled_point(runs):
    runs.client.log_batch(runs.trial_run("t1"), metrics=[Metric("eval/loss", 1.5, 7, 2)])
    return ONE_TRIAL


def unknown_point(runs):
    runs.client.log_batch(runs.trial_run("t1"), metrics=[Metric("eval/loss", 1.5, 7, 3)])
    return ONE_TRIAL


def missing_point(runs):
    return [*ONE_TRIAL[:3], progressed(first=5, last=5, eval_loss=2.0, at=130.0), ONE_TRIAL[3]]


def other_status(runs):
    return [*ONE_TRIAL[:3], ended(state="failed", reason="it broke")]


def missing_trial(runs):
    return [*ONE_TRIAL, started("t2", number=2)]


def second_run(runs):
    of_trial = runs.client.get_run(runs.trial_run("t1"))
    tags = {key: of_trial.data.tags[key] for key in ("mlflow.parentRunId", "turnwise.trial_id")}
    runs.client.create_run(runs.experiment_id, tags=tags)
    return ONE_TRIAL


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (changed_value, "train/loss at step 4 is 2.0, and by the journal 3.0"),
        (doubled_point, "eval/loss at step 2 stands there 2 times"),
        (unknown_point, "eval/loss at step 3 is not in the journal"),
        (missing_point, "eval/loss at step 5 is missing"),
        (other_status, "is FINISHED, and by the journal FAILED"),
        (missing_trial, "trial 2 has no run"),
        (second_run, "trial 1 has 2 runs"),
    ],
)
def test_a_difference_is_named_by_run_metric_and_step(runs, change, named):
    proof = compare_with_journal(runs, change(runs))
    assert [difference for difference in proof.differences if difference.endswith(named)]
    assert proof.sentence.startswith("MLflow differs from the journal (")
    if named.startswith(("eval", "train/")):
        assert all(difference.startswith(f"trial 1 (run {runs.trial_run('t1')}) ") for difference in proof.differences)


@pytest.fixture
def searched(tmp_path, uri):
    """The folder of a search that ran without a server, and its experiment."""
    spec = experiment(tracking=TrackingSpec(uri=uri, required=False), storage={"path": str(tmp_path / "runs")})
    folder = spec.folder / "search-1"
    manifest = SearchManifest(search_id="search-1", experiment=spec, created=1.0, prepared="prepared", layout=LAYOUT)
    manifest.write(folder)
    journal = Journal(folder)
    for record in ONE_TRIAL:
        journal.append(record)
    journal.close()
    data = TrackedData(name="toy", source="conversations.jsonl", digests={"train": "d" * 64}, counts={"train_rows": 3})
    tracked = TrackedSearch(experiment=spec, metric=spec.search.metric, facts={"ray.job_id": "01"}, data=(data,))
    tracked.write(folder, "<p>the mask</p>")
    return spec, folder


def concluded(spec, folder):
    folder.write_text(REPORT, "<p>the report</p>")
    summary = SearchSummary(
        experiment=spec.name, search_id="search-1", outcome=Outcome.FINISHED, message="done", seconds=1.0,
        data_digest="d", data_reused=False, folder=str(folder), tracking_uri="", run_id="", trials=(), registry=None,
    )  # fmt: skip
    keep_summary(folder, summary)


def test_a_search_is_filled_from_its_folder_twice_with_the_same_result(searched, uri):
    spec, folder = searched
    concluded(spec, folder)
    for _ in range(2):
        said = []
        sync_search(spec, on_message=said.append)
        points = sum(map(len, ITS_POINTS.values()))
        assert said[-1] == f"MLflow equals the journal: 1 trial, {points} points"
    client = open_store(uri)
    (found,) = [run for run in client.search_runs(["1"]) if run.data.tags.get("turnwise.search_id") == "search-1"]
    assert (found.info.status, found.data.tags["turnwise.state"]) == ("FINISHED", "finished")
    assert [item.dataset.name for item in found.inputs.dataset_inputs] == ["toy-train"]
    assert {file.path for file in client.list_artifacts(found.info.run_id)} >= {
        "mask_preview.html",
        "summary.json",
        REPORT,
    }
    (child,) = children_of(client, found.info.run_id)
    assert points_of(client, child.info.run_id) == ITS_POINTS
    assert child.data.tags["ray.job_id"] == "01"
    assert SearchManifest.read(folder).finished


def test_a_search_that_can_go_on_is_filled_and_stays_so(searched, uri):
    spec, folder = searched
    said = []
    sync_search(spec, "search-1", on_message=said.append)
    assert said[-1] == "search search-1 can go on, e.g. to its registration, with --resume search-1"
    assert not SearchManifest.read(folder).finished
    (found,) = [run for run in open_store(uri).search_runs(["1"]) if "turnwise.search_id" in run.data.tags]
    assert found.info.status == "KILLED"


def test_a_search_that_runs_or_says_too_little_is_not_filled(searched):
    spec, folder = searched
    lock = folder.lock(LOCK)
    with pytest.raises(InputError, match="search search-1 is running"):
        sync_search(spec)
    lock.close()
    folder.delete_file("tracked.json")
    with pytest.raises(InputError, match=r"an earlier version of Turnwise began the search; go on with it by --resume"):
        sync_search(spec)
