"""A Python without the optional libraries, whose others all come by PYTHONPATH: what needs one is refused, the rest runs."""

import pytest
from mlflow import MlflowClient

from components.records.manifest import searches_in
from components.storage.open_folder import folder_at
from tests.support.bare_python import bare_python
from tests.support.programs import new_folder, summary_of

OPTIONAL = ("bitsandbytes", "boto3", "datasets", "gguf", "sentencepiece")
NO_PACKAGE = "this Python has no package bitsandbytes; install a bitsandbytes that works here"


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    return bare_python(tmp_path_factory.mktemp("python"), missing=OPTIONAL)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return new_folder(tmp_path_factory.mktemp("place"), trials=2)


@pytest.mark.long  # two minutes; the others refuse and plan
def test_a_search_ends_with_a_champion_that_asks_for_nothing_it_does_without(python, place):
    installed = python.distributions(place)
    assert "mlflow" in installed
    assert not installed & set(OPTIONAL)
    summary = summary_of(python.run(place, "tune", "toy.yaml", "--json"))
    assert summary["outcome"] == "champion"
    assert sorted(trial["branch"] for trial in summary["trials"]) == ["full", "lora"]
    client = MlflowClient(tracking_uri=f"sqlite:///{place / 'mlflow.db'}")
    tags = client.get_run(summary["run_id"]).data.tags
    assert "version.torch" in tags
    assert "version.bitsandbytes" not in tags
    (requirements,) = place.glob("mlartifacts/**/requirements.txt")
    needed = {line.partition("==")[0] for line in requirements.read_text().split()}
    assert "peft" in needed
    assert not needed & set(OPTIONAL)


def test_what_needs_bitsandbytes_is_refused_before_anything_starts(python, tmp_path):
    settings = ("search.space.lora.method.quantize={choice: [null, nf4]}", "trial.optimizer.name=paged_adamw_8bit")
    words = [word for setting in settings for word in ("--set", setting)]
    refused = python.run(new_folder(tmp_path), "tune", "toy.yaml", *words)
    assert refused.returncode == 2, refused.stderr
    keys = "optimizer.name=paged_adamw_8bit and method.quantize=nf4"
    assert refused.stderr.splitlines()[-1].startswith(f"{keys}: {NO_PACKAGE}")
    assert list(searches_in(folder_at(tmp_path / "runs" / "toy"))) == []


def test_what_needs_bitsandbytes_can_be_planned(python, place):
    plan = summary_of(python.run(place, "plan", "toy.yaml", "--set", "search.space.lora.method.quantize=nf4", "--json"))
    assert {branch["branch"]: branch["method"] for branch in plan["branches"]} == {"lora": "lora, nf4", "full": "full"}


def test_what_was_trained_with_it_says_so_when_it_is_loaded(python, trials, tmp_path):
    checkpoint, _ = trials.trained("nf4")
    said = python.run(tmp_path, "chat", checkpoint, "--message", "say ab")
    assert said.returncode == 2, said.stderr
    assert said.stderr.splitlines()[-1] == f"{checkpoint}: trained with method.quantize=nf4: {NO_PACKAGE}"


def test_artifacts_in_s3_need_boto3(python, tmp_path):
    client = MlflowClient(tracking_uri=f"sqlite:///{new_folder(tmp_path) / 'mlflow.db'}")
    client.create_experiment("toy", artifact_location="s3://bucket/toy")
    refused = python.run(tmp_path, "tune", "toy.yaml")
    assert refused.returncode == 2, refused.stderr
    assert refused.stderr.splitlines()[-1] == (
        f"tracking.uri=sqlite:///{tmp_path / 'mlflow.db'}: MLflow keeps its artifacts where a package is needed: No module"
        " named 'boto3'; install it"
    )
