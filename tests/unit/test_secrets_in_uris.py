"""A URI with a key or password in it is refused wherever it comes from, with the way out, and shown nowhere."""

import pytest

from components.errors import InputError
from components.experiment.experiment_errors import ExperimentError
from components.experiment.load_experiment import load_experiment
from components.experiment.spec import TrackingSpec
from components.storage.uri import without_secrets
from components.tracking.mlflow_access import tracking_uri
from tests.support.one_trial import experiment
from tests.support.toy_search import toy_experiment
from workflows import chat, tune
from workflows.cli import Exit, command_line, fail

OF_SERVER = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
SECRETS = {
    "https://ann:hush@host": OF_SERVER,
    "https://hush@host/path": OF_SERVER,
    "http://ann:hush/hush@host": OF_SERVER,
    "https://host?token=hush": OF_SERVER,
    "https://ann:hush@ho[st": "no URI",
    "postgresql+psycopg2://ann:hush@host/mlflow": "PGPASSWORD",
    "mysql://host/mlflow?password=hush": "?read_default_file=",
}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://host:5000", "http://host:5000"),
        ("https://me:secret@host/path", "https://host/path"),
        ("postgresql://me:p@ss@host/db", "postgresql://host/db"),
        ("http://me:secret@a/x failed, as http://b/y did", "http://a/x failed, as http://b/y did"),
        ("sqlite:////home/me@work/mlflow.db", "sqlite:////home/me@work/mlflow.db"),
        ("https://me:se/cret@host/path", "https://host/path"),
        (
            "http://host:5000/models/x@1 and models:/bot@champion",
            "http://host:5000/models/x@1 and models:/bot@champion",
        ),
        ("GET http://host/x?token=secret&page=2", "GET http://host/x?token=***&page=2"),
    ],
)
def test_secrets_are_left_out_of_uris(text, shown):
    assert without_secrets(text) == shown


@pytest.fixture
def file(tmp_path, monkeypatch):
    """An experiment file in an empty working directory; its settings of tracking are yours."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")

    def file(tracking="null"):
        (tmp_path / "x.yaml").write_text(toy_experiment(f"tracking: {tracking}"))
        return tmp_path / "x.yaml"

    return file


@pytest.mark.parametrize("uri", SECRETS)
def test_in_an_experiment_file(file, uri):
    with pytest.raises(ExperimentError) as refused:
        load_experiment(file(f"{{uri: '{uri}'}}"))
    assert SECRETS[uri] in str(refused.value)
    assert "tracking: uri: " in str(refused.value)
    assert "hush" not in str(refused.value)


@pytest.mark.parametrize("uri", SECRETS)
def test_in_a_specification_of_the_library(uri):
    with pytest.raises(ValueError, match="uri") as refused:
        TrackingSpec(uri=uri)
    assert "hush" not in str(refused.value)


@pytest.mark.parametrize("uri", SECRETS)
def test_in_the_environment_or_given_by_a_caller(monkeypatch, uri):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    for ask, where in (
        (tracking_uri, "MLFLOW_TRACKING_URI: "),
        (lambda: tracking_uri(given=uri), "the tracking URI: "),
    ):
        with pytest.raises(InputError) as refused:
            ask()
        assert str(refused.value).startswith(where)
        assert SECRETS[uri] in str(refused.value)
        assert "hush" not in str(refused.value)


@pytest.mark.parametrize("uri", SECRETS)
def test_on_a_command_line(file, capsys, uri):
    written = file()
    for program, *arguments in (
        (tune, "x.yaml", "--set", f"tracking.uri={uri}"),
        (chat, "models:/bot@champion", "--tracking-uri", uri),
    ):
        with pytest.raises(SystemExit) as ended:
            program.main(arguments)
        said = capsys.readouterr().err
        assert ended.value.code == Exit.BAD_INPUT
        assert SECRETS[uri] in said
        assert "hush" not in said
    assert list(written.parent.iterdir()) == [written]


@pytest.mark.parametrize(
    "setting",
    [
        "https://ann:hush@host",
        "tracking.uri=[https://ann:hush@host]",
        "tracking.uri.of=https://ann:hush@host",
        "tracking.url=https://ann:hush@host",
        "tracking={https://ann:hush@host: 1}",
        "registry.probes=https://ann:hush@host/x.jsonl",
        "registry.judge={url: 'https://ann:hush@host/v1', model: x}",
        "registry.judge={url: 'https://host/v1', model: x, key_env: sk-hush}",
        "search.start_from=s3://ann:hush@bucket/x",
    ],
)
def test_where_it_does_not_belong_it_is_not_shown_either(file, setting):
    with pytest.raises(ExperimentError) as refused:
        load_experiment(file(), [setting])
    assert "hush" not in str(refused.value)


def test_in_a_file_that_is_not_yaml(file):
    written = file()
    written.write_text("tracking: {uri: 'https://ann:hush@host'\nname: x: y\n")
    with pytest.raises(ExperimentError) as refused:
        load_experiment(written)
    assert "hush" not in str(refused.value)


@pytest.mark.parametrize(
    "uri", ["postgresql://ann@host/mlflow", "sqlite:////home/me@work/mlflow.db", "http://host:5000/a"]
)
def test_one_without_a_secret_is_taken(monkeypatch, uri):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert tracking_uri(experiment(tracking=TrackingSpec(uri=uri))) == tracking_uri() == uri


def test_a_command_that_is_printed_or_kept_and_a_message_have_none(capsys):
    said = command_line("tune", ["x.yaml", "--set", "tracking.uri=https://ann:hush@host"])
    assert said.endswith("tune.py x.yaml --set tracking.uri=https://host")
    with pytest.raises(SystemExit):
        fail("https://ann:hush@host: Connection refused", Exit.BAD_INPUT)
    assert capsys.readouterr().err == "https://host: Connection refused\n"
