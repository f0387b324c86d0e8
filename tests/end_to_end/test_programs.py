"""The product as people use it: programs started on a tiny model, real Ray, a real MLflow store, fresh processes."""

import signal
import subprocess
import time
from pathlib import Path

import mlflow.pyfunc
import openai
import pytest
from mlflow import MlflowClient

from components.data.prepare import PreparedDataset
from components.records.events import replay
from components.records.journal import Journal
from components.records.manifest import SearchManifest, searches_in
from components.storage.open_folder import folder_at
from tests.support.programs import SECONDS, command, environment, new_folder, outcomes, ran, summary_of
from tests.support.servers import ServeServer
from tests.support.toy import toy_conversations, write_messages_jsonl


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return new_folder(tmp_path_factory.mktemp("place"), at_once=2)


@pytest.fixture(scope="module")
def searched(place):
    return summary_of(ran(place, "tune", "toy.yaml", "--json"))


def store(folder):
    return MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")


def test_a_search_ends_with_a_champion_that_beats_the_base(place, searched):
    assert searched["outcome"] == "champion"
    assert searched["registry"]["candidate_loss"] < 0.8 * searched["registry"]["base_loss"]
    assert [trial["state"] for trial in searched["trials"]] == ["completed"] * 4
    assert sorted(trial["branch"] for trial in searched["trials"]) == ["full", "full", "lora", "lora"]
    assert str(store(place).get_model_version_by_alias("toy", "champion").version) == "1"  # a number, from a file


def test_the_verdict_says_what_the_champion_was_chosen_from_unless_others_chose_it(place, searched):
    prepared = folder_at(SearchManifest.read(folder_at(searched["folder"])).prepared)
    chose_nothing = PreparedDataset.open(prepared).verdict is not None
    (verdict,) = searched["registry"]["verdicts"]
    expected = None if chose_nothing else {"evaluations": 16, "trials": 4, "missing": 0}
    assert (verdict["chosen_from"], verdict["joint_confidence"]) == (expected, 0.95)
    assert ("the best of 16 evaluations of 4 trials" in searched["registry"]["reason"]) == (not chose_nothing)


def test_every_trial_is_a_child_run_of_the_search_with_all_its_metrics(place, searched):
    client = store(place)
    (experiment,) = [found for found in client.search_experiments() if found.name == "toy"]
    children = client.search_runs([experiment.experiment_id], f"tags.`mlflow.parentRunId` = '{searched['run_id']}'")
    losses = {run.data.tags["turnwise.trial_id"]: run.data.metrics["eval/loss"] for run in children}
    assert losses.keys() == {trial["trial_id"] for trial in searched["trials"]}
    histories = replay(Journal(folder_at(searched["folder"])).read())
    assert losses == {trial_id: history.reports[-1].eval_loss for trial_id, history in histories.items()}
    for run in children:
        steps = client.get_metric_history(run.info.run_id, "train/step_loss")
        assert len(steps) == histories[run.data.tags["turnwise.trial_id"]].reports[-1].step
    files = {file.path for file in client.list_artifacts(searched["run_id"])}
    assert {"experiment.json", "report.html", "summary.json", "mask_preview.html", "eval_loss.svg"} <= files


def test_the_champion_talks_in_a_fresh_process_and_through_mlflow(place, searched, monkeypatch):
    said = ran(place, "chat", "models:/toy@champion", "--message", "say ab")
    assert said.returncode == 0, said.stderr
    # Not by set_tracking_uri: it would outlive this test, in the environment of all programs started after it.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{place / 'mlflow.db'}")
    loaded = mlflow.pyfunc.load_model("models:/toy@champion")
    question = {"messages": [{"role": "user", "content": "say ab"}], "temperature": 0.0}
    assert loaded.predict(question)["choices"][0]["message"]["content"].strip() == said.stdout.strip()
    assert said.stdout.strip() == searched["registry"]["candidate_answers"][0].strip()


def test_the_champion_and_its_base_are_served_to_openai_s_client(place, searched):
    said = {
        name: ran(place, "chat", model, "--message", "say ab", "--max-new-tokens", "32").stdout.strip()
        for name, model in (("toy@champion", "models:/toy@champion"), ("base", "model"))
    }
    server = ServeServer(place, "toy@champion", "base=model", environment=environment())
    try:
        server.start()
        client = openai.OpenAI(base_url=server.api, api_key="none", max_retries=0)
        for name, words in said.items():
            asked = {"model": name, "messages": [{"role": "user", "content": "say ab"}], "temperature": 0}
            completion = client.chat.completions.create(**asked, max_tokens=32)
            assert completion.choices[0].message.content.strip() == words
        assert client.get("/../health", cast_to=object)["models"][0]["digest_checked"]
        server.process.terminate()
        server.process.wait(SECONDS)
    finally:
        server.kill()
    log = (place / "server.log").read_text()
    assert f"OpenAI's API: {server.api}" in log
    assert "Traceback" not in log


def test_the_champion_is_scored_against_its_base_on_other_conversations(place, searched):
    write_messages_jsonl(place / "other.jsonl", toy_conversations(30, seed=5))
    arguments = ("--against", "model", "--data", "other.jsonl", "--max-tokens", "128", "--json")
    result = summary_of(ran(place, "evaluate", "models:/toy@champion", *arguments))
    assert result["conversations"] == 30
    assert result["verdict"]["beats"]
    assert result["verdict"]["other_loss"] == pytest.approx(searched["registry"]["base_loss"], rel=0.05)


@pytest.mark.long  # three minutes; test_registration.py refuses a worse one
def test_an_equal_model_of_a_second_search_over_prepared_data_is_no_champion(place, searched):
    again = ran(place, "tune", "toy.yaml", "--json")
    assert "reused from before" in again.stderr
    summary = summary_of(again)
    assert summary["data_reused"]
    assert not searched["data_reused"]
    assert summary["outcome"] == "not promoted"
    assert "does not beat the incumbent" in summary["message"]
    assert str(store(place).get_model_version_by_alias("toy", "champion").version) == "1"  # a number, from a file


def test_one_configuration_trains_without_a_search(place):
    summary = summary_of(ran(place, "train", "toy.yaml", "--set", "trial.method.rank=2", "--json"))
    assert summary["outcome"] == "finished"
    (trial,) = summary["trials"]
    assert (Path(trial["checkpoint"]) / "adapter" / "adapter_model.safetensors").exists()


def test_a_full_fine_tune_sharded_over_two_workers_becomes_a_version_that_talks(place):
    sets = ["trial.method={kind: full}", "trial.optimizer.learning_rate=5e-3", "registry.name=sharded"]
    sets.append("resources.full={workers: 2, parallel: fsdp}")
    arguments = [argument for one in sets for argument in ("--set", one)]
    summary = summary_of(ran(place, "train", "toy.yaml", *arguments, "--register", "--json"))
    assert summary["outcome"] == "champion"
    (trial,) = summary["trials"]
    assert len(list((Path(trial["checkpoint"]) / "weights").glob("model_0000?_of_00002_001.safetensors"))) == 2
    assert summary["registry"]["candidate_loss"] == pytest.approx(trial["eval_loss"], abs=1e-5)
    assert ran(place, "chat", "models:/sharded@champion", "--message", "say ab").stdout.strip()


def test_a_driver_that_is_killed_is_resumed_with_the_same_trials_runs_and_losses(tmp_path, searched):
    folder = new_folder(tmp_path, at_once=2)  # so what is cut from the journal below holds no trial's start
    driver = subprocess.Popen(
        command("tune", "toy.yaml"), cwd=folder, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_for_reports(folder, 5, driver)
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    (manifest,) = searches_in(folder_at(folder / "runs" / "toy"))
    assert not manifest.finished
    search = folder / "runs" / "toy" / manifest.search_id
    cut_two_reports(search / "journal.jsonl")  # as a copied folder may have it: MLflow and the checkpoints know more
    changed = ran(folder, "tune", "toy.yaml", "--set", "trial.seed=5")
    assert changed.returncode == 2
    assert f"search {manifest.search_id} is unfinished, and was begun with another experiment:" in changed.stderr
    assert (
        "  trial.seed: was 0, is 5\nSet these back to go on with it, or begin another search with --new"
        in changed.stderr
    )
    again = ran(folder, "tune", "toy.yaml", "--json")
    assert f"search {manifest.search_id} goes on: " in again.stderr
    summary = summary_of(again)
    assert summary["search_id"] == manifest.search_id
    assert outcomes(summary) == outcomes(searched)
    assert not [path for path in search.rglob("*") if path.suffix == ".pkl" or "experiment_state" in path.name]
    client = store(folder)
    (experiment,) = [found for found in client.search_experiments() if found.name == "toy"]
    assert len(client.search_runs([experiment.experiment_id])) == 1 + 4
    for run in client.search_runs([experiment.experiment_id], f"tags.`mlflow.parentRunId` = '{summary['run_id']}'"):
        points = client.get_metric_history(run.info.run_id, "train/step_loss")
        assert sorted(point.step for point in points) == list(range(1, len(points) + 1))


@pytest.mark.long  # three minutes; the one before kills a driver
def test_a_terminated_search_writes_interim_checkpoints_and_goes_on_from_them(tmp_path, searched):
    """SIGTERM is what `ray job stop` sends."""
    folder = new_folder(tmp_path, at_once=2)  # of two trials one is between two reports
    with (folder / "output").open("w") as output:
        driver = subprocess.Popen(
            command("tune", "toy.yaml"), cwd=folder, env=environment(), stderr=output, stdout=output
        )
        try:
            wait_for_reports(folder, 1, driver)  # at the third, a trial may end before the signal reaches it
            time.sleep(0.15)  # a trial that has just reported would leave there, without an interim checkpoint
            driver.send_signal(signal.SIGTERM)
            status = driver.wait(SECONDS)
        finally:
            driver.kill()
            driver.wait()
    said = (folder / "output").read_text()
    (manifest,) = searches_in(folder_at(folder / "runs" / "toy"))
    assert status == 143, said
    assert "Go on with: python workflows/tune.py toy.yaml\n" in said
    assert not manifest.finished
    interim = list((folder / "runs" / "toy" / manifest.search_id / "checkpoints").glob("*/step_*+*"))
    assert interim
    summary = summary_of(ran(folder, "tune", "toy.yaml", "--resume", "--json"))
    assert outcomes(summary) == outcomes(searched)
    assert not any(path.exists() for path in interim)


def cut_two_reports(journal):
    lines = journal.read_text().splitlines(keepends=True)
    reports = [number for number, line in enumerate(lines) if '"event":"progressed"' in line]
    journal.write_text("".join(lines[: reports[-2]]))


def wait_for_reports(folder, count, driver):
    """Until so many reports of a running search are in its journal."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        assert driver.poll() is None, "the search ended before it could be killed"
        lines = [line for path in folder.glob("runs/toy/*/journal.jsonl") for line in path.read_text().splitlines()]
        if sum('"event":"progressed"' in line for line in lines) >= count:
            return
        time.sleep(0.05)
    raise AssertionError("the search made no progress")
