"""A whole search with everything it keeps on a real S3 server: storage, base model, conversations, MLflow's artifacts."""

import shutil
import signal
import subprocess
import time

import pytest
from mlflow import MlflowClient

from components.records.events import TrialProgressed, replay
from components.records.journal import Journal
from components.storage.open_folder import folder_at
from tests.support.programs import command, environment, new_folder, outcomes, summary_of
from tests.support.servers import MlflowServer, S3Server

SECONDS = 600


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    """(S3 server, MLflow server whose artifacts lie in its bucket)"""
    s3 = S3Server(tmp_path_factory.mktemp("s3"))
    mlflow = MlflowServer(tmp_path_factory.mktemp("mlflow"), artifacts=f"s3://{s3.bucket}/mlflow")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3.client_environment().items():
            patch.setenv(name, value)
        try:
            s3.start()
            mlflow.start()
            yield s3, mlflow
        finally:
            mlflow.kill()
            s3.kill()


@pytest.fixture(scope="module")
def bucket(servers, tmp_path_factory):
    """With the base model and the conversations in it."""
    source = new_folder(tmp_path_factory.mktemp("source"))
    folder = folder_at(f"s3://{servers[0].bucket}")
    (folder / "model").upload(source / "model")
    (folder / "data").write_text("data.jsonl", (source / "data.jsonl").read_text())
    return folder, source


class Machine:
    """A working directory and a cache of its own, with no more in it than what is handed to a job."""

    def __init__(self, place, bucket, servers, storage):
        folder, source = bucket
        self.place, self.storage = place, folder / storage
        for name in ("toy.yaml", "probes.jsonl"):
            shutil.copy(source / name, place)
        settings = {
            "model.path": folder / "model",
            "data.train": f"{folder}/data/data.jsonl",
            "storage.path": self.storage,
            "tracking.uri": servers[1].uri,
        }
        self.arguments = [word for path, value in settings.items() for word in ("--set", f"{path}={value}")]

    def started(self, *arguments, **streams):
        return subprocess.Popen(
            command("tune", "toy.yaml", *self.arguments, *arguments),
            cwd=self.place,
            env={**environment(), "TURNWISE_CACHE": str(self.place / "cache")},
            text=True,
            **streams,
        )

    def ran(self, *arguments):
        process = self.started(*arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            stdout, stderr = process.communicate(timeout=SECONDS)
        finally:
            process.kill()
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


@pytest.fixture(scope="module")
def searched(tmp_path_factory, bucket, servers):
    return summary_of(Machine(tmp_path_factory.mktemp("machine"), bucket, servers, "whole").ran("--json"))


def test_a_search_with_all_it_keeps_in_a_bucket_ends_with_a_champion(servers, searched):
    s3, mlflow = servers
    assert searched["outcome"] == "champion"
    version = MlflowClient(mlflow.uri, mlflow.uri).get_model_version_by_alias("toy", "champion")
    kept = folder_at(f"s3://{s3.bucket}")
    assert {"data", "mlflow", "model", "whole"} <= set(kept.list_names())
    assert version.run_id
    folder = folder_at(searched["folder"])
    for trial in searched["trials"]:
        checkpoint = folder_at(trial["checkpoint"])
        assert checkpoint.parent.list_names() == [checkpoint.name]
        assert checkpoint.is_complete()
        assert not any(name.startswith("optimizer") for name in checkpoint.list_names())
    assert {"journal.jsonl", "report.html", "search.json"} <= set(folder.list_names())
    assert not folder.has_file("lock")
    assert not folder.parent.has_file("lock")


@pytest.mark.long  # four minutes; test_programs.py resumes one on a disk
def test_a_killed_driver_is_resumed_from_another_machine_with_equal_results(tmp_path, bucket, servers, searched):
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    machine = Machine(first, bucket, servers, "killed")
    driver = machine.started(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for_reports(machine.storage / "toy", 5, driver)
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    shutil.rmtree(first)
    summary = summary_of(Machine(second, bucket, servers, "killed").ran("--json"))
    assert outcomes(summary) == outcomes(searched)
    histories = replay(Journal(folder_at(summary["folder"])).read())
    client = MlflowClient(servers[1].uri)
    for trial in summary["trials"]:
        assert folder_at(trial["checkpoint"]).is_complete()
    (experiment,) = [found for found in client.search_experiments() if found.name == "toy"]
    children = f"tags.`mlflow.parentRunId` = '{summary['run_id']}'"
    runs = client.search_runs([experiment.experiment_id], children)
    assert len(runs) == len(histories) == 4
    for run in runs:
        points = client.get_metric_history(run.info.run_id, "train/step_loss")
        assert sorted(point.step for point in points) == list(range(1, len(points) + 1))


def wait_for_reports(experiment, count, driver):
    """Until so many reports of a running search are in its journal."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        assert driver.poll() is None, "the search ended before it could be killed"
        for name in experiment.list_names():
            records = Journal(experiment / name).read()
            if sum(isinstance(record, TrialProgressed) for record in records) >= count:
                return
        time.sleep(0.05)
    raise AssertionError("the search made no progress")
