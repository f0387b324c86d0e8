"""A registered version is proven once more: in full where the data of its search are, else as far as that goes."""

import re
import shutil
from pathlib import Path

import pytest

from components.experiment.spec import DataSpec, ExperimentSpec, ModelSpec, RegistrySpec, SearchSpec, StorageSpec
from components.records.events import replay
from components.records.manifest import SearchManifest
from components.registry.candidate import RegistryCandidate
from components.registry.manage_versions import open_shelf
from components.registry.versions import create_version
from components.tracking.mlflow_access import open_store
from components.tracking.mlflow_runs import SearchRuns
from tests.support.trials import MAX_TOKENS
from workflows import registry
from workflows.cli import Exit

NAME, SEARCH = "turnwise-toy", "search-1"
STAMP = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC: "


@pytest.fixture(scope="module")
def made(trials, tmp_path_factory):
    """(registry's URI, folder of the search) with a version of a search that ended."""
    folder = tmp_path_factory.mktemp("search")
    uri = f"sqlite:///{folder}/mlflow.db"
    experiment = ExperimentSpec(
        name="toy",
        model=ModelSpec(path=str(trials.model)),
        data=DataSpec(train="conversations.jsonl", max_tokens=MAX_TOKENS),
        search=SearchSpec(space={"lora": {"method": {"kind": "lora"}}}),
        registry=RegistrySpec(),
        storage=StorageSpec(path=str(folder / "runs")),
    )
    runs = SearchRuns(open_store(uri), uri, experiment, SEARCH)
    records = trials.records("lora")
    for record in records:
        runs.apply(record)
    (trial,) = replay(records).values()
    candidate = RegistryCandidate(
        runs=runs, uri=uri, experiment=experiment, trial=trial, report=trial.best, dataset=trials.dataset
    )
    assert create_version(candidate) == "1"
    manifest = SearchManifest(
        search_id=SEARCH, experiment=experiment, created=1.0, prepared=str(trials.dataset.directory), finished=True
    )
    manifest.write(experiment.folder / SEARCH)
    return uri, folder / "runs" / "toy" / SEARCH


@pytest.fixture
def version(made):
    """Reads the version's tags; a test leaves them as they were."""
    uri, _ = made
    client, before = open_store(uri), open_shelf(uri).get(f"{NAME}/1").tags
    yield lambda: open_shelf(uri).get(f"{NAME}/1")
    after = open_shelf(uri).get(f"{NAME}/1").tags
    for key in after.keys() - before.keys():
        client.delete_model_version_tag(NAME, "1", key)
    for key, value in before.items():
        client.set_model_version_tag(NAME, "1", key, value)


def test_a_version_whose_data_are_there_is_proven_as_at_its_registration(made, trials, version, capsys):
    uri, _ = made
    assert version().proven is None
    assert registry.main(["prove", f"{NAME}/1", "--tracking-uri", uri]) == Exit.DONE
    loss = f"{trials.trained('lora')[1]:.4f}"
    seen = (
        rf"loads through MLflow in a fresh process, answers, and scores the eval loss of training: {loss}, there {loss}"
    )
    assert re.fullmatch(STAMP + seen, version().proven)
    assert capsys.readouterr().out == f"{version().proven}\n"


def test_a_version_that_scores_another_loss_is_proven_no_longer(made, version, capsys):
    uri, _ = made
    client = open_store(uri)
    for key, value in {"eval_loss": "0.5", "proven": "before", "before.champion": "7"}.items():
        client.set_model_version_tag(NAME, "1", f"turnwise.{key}", value)
    client.set_registered_model_alias(NAME, "champion", "1")
    with pytest.raises(SystemExit) as end:
        registry.main(["prove", f"{NAME}@champion", "--tracking-uri", uri])
    assert end.value.code == Exit.NOT_PROVEN
    assert re.search(
        r"scores \d\.\d{4} nats per target after loading, and scored 0\.5000 in training; it holds the alias champion:"
        r' registry\.py rollback turnwise-toy --alias champion --reason "\.\.\."',
        capsys.readouterr().err,
    )
    assert version().proven is None


def test_where_the_data_are_gone_the_proof_says_what_it_did_not_see(made, version, capsys):
    """As of a version of before its digest was a tag."""
    uri, search = made
    digest = version().tags["turnwise.package_digest"]
    open_store(uri).delete_model_version_tag(NAME, "1", "turnwise.package_digest")
    search.rename(search.with_name("elsewhere"))
    try:
        assert registry.main(["prove", f"{NAME}/1", "--tracking-uri", uri]) == Exit.DONE
    finally:
        search.with_name("elsewhere").rename(search)
    assert re.match(
        rf"{STAMP}loads through MLflow in a fresh process, and answers; its eval loss was not measured: .*search\.json",
        version().proven,
    )
    assert version().tags["turnwise.package_digest"] == digest


def test_a_changed_file_refutes_a_version_before_anything_is_loaded(made, version, capsys):
    uri, _ = made
    open_store(uri).set_model_version_tag(NAME, "1", "turnwise.proven", "before")
    spec = Path(version().source.removeprefix("file://")) / "artifacts" / "package" / "spec.json"
    shutil.copyfile(spec, spec.with_suffix(".kept"))
    with pytest.raises(SystemExit) as end:
        registry.main(["prove", f"{NAME}/1", "--tracking-uri", uri])
    spec.with_suffix(".kept").unlink()
    assert end.value.code == Exit.NOT_PROVEN
    assert "its files are not those that were registered" in capsys.readouterr().err
    assert version().proven is None


def test_a_version_that_cannot_be_loaded_here_keeps_what_was_seen_elsewhere(
    made, version, monkeypatch, tmp_path, capsys
):
    """Its base is missing on this machine: that is no fault of the version."""
    uri, _ = made
    open_store(uri).set_model_version_tag(NAME, "1", "turnwise.proven", "before")
    monkeypatch.setenv("TURNWISE_BASE_MODEL", str(tmp_path))
    with pytest.raises(SystemExit) as end:
        registry.main(["prove", f"{NAME}/1", "--tracking-uri", uri])
    assert end.value.code == Exit.NOT_PROVEN
    assert "does not load and talk in a fresh process: " in capsys.readouterr().err
    assert version().proven == "before"
