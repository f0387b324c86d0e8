"""A search is finished once MLflow has all of it: away from before the start to the end, or gone at the very last record."""

import signal
import subprocess

import pytest
from mlflow import MlflowClient

from components.records.journal import Journal
from components.records.manifest import searches_in
from components.records.tracked_search import TrackedSearch
from components.search.tracked_runs import open_runs
from components.storage.open_folder import folder_at
from components.tracking.journal_proof import compare_with_journal
from tests.support.programs import SECONDS, command, environment, ran, summary_of
from tests.support.servers import free_port, proxy_before
from tests.support.toy_search import toy_search_folder

CHANGES = "{search: {trials: 2, max_concurrent_trials: 1}, registry: {name: recorded}}"
LAST = "report.html"  # the first of what is logged after the champion is one


def where(uri, *, required=True):
    return ("--set", f"tracking.uri={uri}", "--set", f"tracking.required={str(required).lower()}")


def said(process):
    """What it has printed, however that was wrapped."""
    return " ".join(process.stdout.split())


class Kept:
    """What the folder and MLflow have of the one search."""

    def __init__(self, folder, server):
        (self.manifest,) = searches_in(folder_at(folder / "runs" / "toy"))
        self.folder = folder_at(folder / "runs" / "toy" / self.manifest.search_id)
        self.client = MlflowClient(tracking_uri=server.uri, registry_uri=server.uri)
        tracked = TrackedSearch.read(self.folder, self.manifest.experiment.tracking)
        self.experiment = self.client.get_experiment_by_name("toy").experiment_id
        self.of_search = f"tags.`turnwise.search_id` = '{self.manifest.search_id}'"
        (self.run,) = self.client.search_runs([self.experiment], self.of_search)
        self.proof = lambda: compare_with_journal(
            open_runs(tracked, server.uri, self.manifest.search_id), Journal(self.folder).read()
        )

    @property
    def versions(self):
        return [int(found.version) for found in self.client.search_model_versions("name = 'recorded'")]


@pytest.mark.long  # four minutes; test_journal_sync.py kills a server
def test_a_search_without_a_server_is_finished_once_all_is_recorded(mlflow_server, tmp_path):
    folder = toy_search_folder(tmp_path, CHANGES)
    nobody = f"http://127.0.0.1:{free_port()}"
    refused = ran(folder, "tune", "toy.yaml", *where(nobody))
    assert refused.returncode == 2
    assert "tracking.required: false begins without it" in refused.stderr

    away = ran(folder, "tune", "toy.yaml", *where(nobody, required=False))
    assert away.returncode == 6, away.stderr[-2000:]
    assert "The search begins without it, as tracking.required: false says" in away.stdout
    filled = ran(folder, "tune", "toy.yaml", *where(mlflow_server.uri), "--sync")
    assert filled.returncode == 0, filled.stderr[-2000:]
    assert "MLflow equals the journal: 2 trials, " in filled.stdout
    kept = Kept(folder, mlflow_server)
    assert f"To fill MLflow only: --sync {kept.manifest.search_id}." in said(away)
    assert kept.run.info.status == "FINISHED"
    assert not kept.manifest.finished

    def lose_report(path):
        return "request" if LAST in path else None

    with proxy_before(mlflow_server, lose_report) as uri:
        lost = ran(folder, "tune", "toy.yaml", *where(uri), "--resume")
    assert lost.returncode == 6, lost.stderr[-2000:]
    assert "Champion: models:/recorded@champion is version 1" in said(lost), lost.stdout[-1500:]
    assert "But MLflow has not taken all of the record" in said(lost)
    kept = Kept(folder, mlflow_server)
    assert (kept.run.info.status, kept.manifest.finished, kept.versions) == ("RUNNING", False, [1])

    drivers = []

    def kill_driver(path):
        if LAST not in path:
            return None
        drivers[0].send_signal(signal.SIGKILL)
        return "request"

    with proxy_before(mlflow_server, kill_driver) as uri, (folder / "output").open("w") as output:
        drivers.append(
            subprocess.Popen(
                command("tune", "toy.yaml", *where(uri), "--resume"),
                cwd=folder,
                env=environment(),
                stdout=output,
                stderr=output,
            )
        )
        assert drivers[0].wait(SECONDS) == -signal.SIGKILL, (folder / "output").read_text()
    assert not Kept(folder, mlflow_server).manifest.finished

    finished = ran(folder, "tune", "toy.yaml", *where(mlflow_server.uri), "--json")
    assert summary_of(finished)["outcome"] == "champion"
    assert "MLflow equals the journal: 2 trials, " in finished.stderr
    kept = Kept(folder, mlflow_server)
    assert (kept.run.info.status, kept.manifest.finished, kept.versions) == ("FINISHED", True, [1])
    assert kept.run.data.tags["turnwise.state"] == "champion"
    assert {file.path for file in kept.client.list_artifacts(kept.run.info.run_id)} >= {LAST, "summary.json"}
    assert len(kept.client.get_metric_history(kept.run.info.run_id, "eval/loss")) == 1
    assert kept.proof().differences == ()
