"""Names that MLflow or the storage would refuse after a search, or take for something else, are refused before it."""

from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from mlflow.exceptions import MlflowException

from components import api
from components.errors import InputError
from components.experiment.experiment_errors import ExperimentError
from components.experiment.load_experiment import load_experiment
from components.experiment.spec import RegistrySpec, TrackingSpec
from components.tracking.mlflow_access import check_model_name, experiment_id, open_store
from workflows import train, tune
from workflows.cli import Exit

EXPERIMENT = """
name: NAME
model: {path: somewhere}
data: {train: conversations.jsonl}
search: {space: {lora: {method: {kind: lora}}}}
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """(uri, client, folder) of a registry with one version and a prompt."""
    folder = tmp_path_factory.mktemp("store")
    uri = f"sqlite:///{folder}/mlflow.db"
    client = open_store(uri)
    client.create_registered_model("bot")
    client.create_model_version("bot", "file:///nowhere")
    client.register_prompt(name="greeting", template="Hello {{name}}")
    return uri, client, folder


@pytest.mark.parametrize("alias", ["champion", "prod", "prod-v2", "v", "v2a", "2026", "CHAMPION_EU", "a" * 100])
def test_an_alias_that_is_accepted_is_one_that_mlflow_sets_and_answers(store, alias):
    _, client, _ = store
    assert RegistrySpec(alias=alias).alias == alias
    client.set_registered_model_alias("bot", alias, "1")
    assert str(client.get_model_version_by_alias("bot", alias).version) == "1"


@pytest.mark.parametrize(
    ("alias", "reason"),
    [
        ("latest", "a registry answers this alias with its newest version"),
        ("LATEST", "a registry answers this alias with its newest version"),
        ("v3", "in a registry v and a number is a version"),
        ("V12", "in a registry v and a number is a version"),
        ("prod.v2", 'an alias has letters, digits, "_" and "-" only'),
        ("prod/eu", 'an alias has letters, digits, "_" and "-" only'),
        ("bot@eu", 'an alias has letters, digits, "_" and "-" only'),
        ("champion\n", 'an alias has letters, digits, "_" and "-" only'),
        ("", 'an alias has letters, digits, "_" and "-" only'),
        ("challenger", "this alias is for the candidate that did not pass the gate"),
        ("Challenger", "this alias is for the candidate that did not pass the gate"),
        ("previous", "this alias is for the version that was replaced"),
        ("a" * 101, "at most 100 characters"),
    ],
)
def test_an_alias_that_cannot_mark_a_champion_is_refused_before_anything_starts(tmp_path, alias, reason):
    file = tmp_path / "experiment.yaml"
    file.write_text(EXPERIMENT.replace("NAME", "toy"))
    with pytest.raises(ExperimentError, match=r"1 problem\n  registry\.alias: ") as error:
        load_experiment(file, [f"registry.alias={alias!r}"])
    assert reason in str(error.value)


@pytest.mark.parametrize("alias", ["latest", "v3", "V12", "prod.v2"])
def test_mlflow_itself_refuses_to_set_them(store, alias):
    """Were it otherwise, these need not be refused here."""
    _, client, _ = store
    with pytest.raises(MlflowException):
        client.set_registered_model_alias("bot", alias, "1")


def test_mlflow_answers_latest_with_a_version_that_nobody_gave_it(store):
    _, client, _ = store
    assert str(client.get_model_version_by_alias("bot", "latest").version) == "1"


@pytest.mark.parametrize("name", ["a/b", "a:b", "", " ", "../bot", "models:/bot", ".bot"])
def test_a_registered_model_has_no_name_that_mlflow_refuses(name):
    with pytest.raises(ValueError, match="String should"):
        RegistrySpec(name=name)


def test_a_registry_prompt_with_the_models_name_is_found_before_the_search(store):
    uri, _, _ = store
    check_model_name(uri, "bot")
    check_model_name(uri, "nobody-yet")
    with pytest.raises(
        ValueError, match=r"registry\.name=greeting: a prompt of this registry has that name, and MLflow"
    ):
        check_model_name(uri, "greeting")


ROADS = {
    "tune": lambda: tune.main(["toy.yaml"]),
    "train": lambda: train.main(["toy.yaml", "--register"]),
    "run": lambda: api.run(load_experiment("toy.yaml")),
    "start": lambda: api.start(load_experiment("toy.yaml")),
}


@pytest.mark.parametrize("road", ROADS)
def test_each_way_to_a_registration_refuses_a_prompts_name_before_it_reads_data(road, toy_search, capsys):
    uri = f"sqlite:///{toy_search}/mlflow.db"
    open_store(uri).register_prompt(name="turnwise-toy", template="Hello {{name}}")
    (toy_search / "data.jsonl").unlink()
    with pytest.raises((SystemExit, InputError)) as end:
        ROADS[road]()
    said = str(end.value) if isinstance(end.value, InputError) else capsys.readouterr().err
    assert "registry.name=turnwise-toy: a prompt of this registry has that name" in said
    assert isinstance(end.value, InputError) or end.value.code == Exit.BAD_INPUT


def test_the_folder_of_prepared_data_is_no_experiment(tmp_path):
    file = tmp_path / "experiment.yaml"
    file.write_text(EXPERIMENT.replace("NAME", "prepared"))
    with pytest.raises(ExperimentError, match="name: that folder of the storage is for prepared data; choose another"):
        load_experiment(file, [])


@pytest.mark.parametrize("name", ["", "   ", "a\nb", "a\0b", "x" * 251])
def test_an_mlflow_experiment_needs_a_name_that_every_store_holds(name):
    with pytest.raises(ValueError, match="experiment"):
        TrackingSpec(experiment=name)


@pytest.mark.parametrize(
    "name",
    ["/Users/ann/toy", "..", "../../toy", "a/../../b", ".", "x" * 250, "模" * 250, "a?b#c", "100%2F", "a:b", "~"],
)
def test_an_experiment_of_any_name_keeps_its_artifacts_in_a_folder_of_its_own(store, name):
    uri, client, folder = store
    assert TrackingSpec(experiment=name).experiment == name
    made = experiment_id(client, name, uri)
    place = Path(unquote(urlsplit(client.get_experiment(made).artifact_location).path))
    assert place.parent == folder / "mlartifacts"
    run = client.create_run(made)
    client.log_text(run.info.run_id, "hello", "note.txt")
    assert len(list(place.rglob("note.txt"))) == 1


def test_experiments_whose_names_differ_in_odd_letters_only_share_no_folder(store):
    uri, client, _ = store
    places = {
        client.get_experiment(experiment_id(client, name, uri)).artifact_location for name in ("p/q", "p:q", "p_q")
    }
    assert len(places) == 3


def test_an_experiment_of_an_ordinary_name_keeps_the_folder_it_always_had(store):
    uri, client, folder = store
    made = client.get_experiment(experiment_id(client, "quickstart 2.模型", uri))
    assert unquote(urlsplit(made.artifact_location).path) == f"{folder}/mlartifacts/quickstart 2.模型"
