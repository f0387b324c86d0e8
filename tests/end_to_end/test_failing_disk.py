"""A search whose disk turns read-only while it runs: it ends in a sentence, and goes on once the disk is back."""

import os
import re
import subprocess

import pytest
from mlflow import MlflowClient

from components.records.events import TrialProgressed
from components.records.journal import Journal
from components.storage.open_folder import folder_at
from tests.support.failing_disk import failing_disk
from tests.support.programs import SECONDS, command, environment, outcomes, ran, summary_of
from tests.support.servers import until
from tests.support.toy_search import toy_search_folder

CHANGES = """
name: {name}
tracking: {{uri: "{uri}"}}
trial: {{budget: {{epochs: 32, evaluations: 16}}}}
search: {{trials: 2}}
registry: {{name: {name}}}
"""
REPORTS_BEFORE = 4


def search_in(folder, name, server):
    return toy_search_folder(folder, CHANGES.format(name=name, uri=server.uri), absolute=True)


def reports_in(folder):
    journals = list((folder / "runs").glob("*/*/journal.jsonl"))
    return [
        each
        for path in journals
        for each in Journal(folder_at(path.parent)).read()
        if isinstance(each, TrialProgressed)
    ]


def states_of(server, name):
    client = MlflowClient(server.uri)
    return [run.info.status for run in client.search_runs([client.get_experiment_by_name(name).experiment_id])]


@pytest.mark.long
def test_a_search_whose_disk_turns_read_only_says_so_and_goes_on_later(mlflow_server, tmp_path):
    with failing_disk(tmp_path) as disk:
        folder = disk.path / "search"
        folder.mkdir()
        search_in(folder, "disturbed", mlflow_server)
        os.sync()  # as after half a minute: what nobody has synced is lost with the disk
        with (tmp_path / "said").open("wb") as said:
            driver = subprocess.Popen(
                command("tune", "toy.yaml"), cwd=folder, env=environment(), stderr=said, stdout=said
            )
            try:
                until(lambda: len(reports_in(folder)) >= REPORTS_BEFORE or driver.poll() is not None, SECONDS)
                disk.fail()
                status = driver.wait(SECONDS)
            finally:
                driver.kill()
                driver.wait()
        text = (tmp_path / "said").read_text(encoding="utf-8")
        assert status == 8, text[-3000:]
        last = text.strip().splitlines()[-1]
        assert re.search(
            r": its disk (is read-only now|does not work any more).*, and a search keeps its record there", last
        )
        assert "the same command goes on with --resume" in last
        assert "Traceback" not in text
        assert "RUNNING" not in states_of(mlflow_server, "disturbed")

        disk.mount_again()
        after = summary_of(ran(folder, "tune", "toy.yaml", "--resume", "--json"))
        assert set(states_of(mlflow_server, "disturbed")) == {"FINISHED"}
    whole = tmp_path / "whole"
    whole.mkdir()
    search_in(whole, "undisturbed", mlflow_server)
    assert outcomes(after) == outcomes(summary_of(ran(whole, "tune", "toy.yaml", "--json")))
