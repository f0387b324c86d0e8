"""serve.py: which models it serves by which names, and to whom."""

import pytest

from components.serving.access import TOKEN_VARIABLE, token_for
from components.serving.model_names import sources_of
from workflows import serve


def refused(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        serve.main(list(arguments))
    return ended.value.code, capsys.readouterr().err


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    return tmp_path


def test_a_name_with_an_alias_or_a_number_is_of_the_registry(elsewhere):
    (elsewhere / "runs").mkdir()
    (elsewhere / "runs" / "7").mkdir()
    given = ["support@champion", "support/7", "models:/other@champion", "org/model", "base=smollm2", "runs/7", "b=x@y"]
    assert sources_of(given) == {
        "support@champion": "models:/support@champion",
        "support/7": "models:/support/7",
        "other@champion": "models:/other@champion",
        "org/model": "org/model",
        "base": "smollm2",
        "runs/7": "runs/7",
        "b": "models:/x@y",
    }


@pytest.mark.parametrize(
    ("models", "words"),
    [
        (["a@b", "models:/a@b"], "a@b: two models of one name; call one of them otherwise: NAME=models:/a@b"),
        (["=x"], "=x: write it as NAME=MODEL"),
        (["x="], "x=: write it as NAME=MODEL"),
        (["nowhere@champion"], "models:/nowhere@champion: the registry does not have it, or does not answer"),
        (["./nothing"], "./nothing"),
    ],
)
def test_what_cannot_be_served_is_said_before_it_listens(capsys, models, words):
    status, said = refused(capsys, *models)
    assert status == 2
    assert words in said


@pytest.mark.parametrize("host", ["0.0.0.0", "10.0.0.1", "::", "models.example"])
def test_other_machines_need_a_token(capsys, host):
    status, said = refused(capsys, "model", "--host", host)
    assert status == 2
    assert (
        said
        == f"--host {host}: others could use the models; set {TOKEN_VARIABLE} to a secret that clients must bring\n"
    )


def test_a_token_that_is_easily_guessed_is_none(capsys, monkeypatch):
    monkeypatch.setenv(TOKEN_VARIABLE, "  secret        ")
    status, said = refused(capsys, "model", "--host", "0.0.0.0")
    assert (status, said) == (2, f"{TOKEN_VARIABLE}: must have at least 16 characters\n")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.0.0.2"])
def test_this_machine_needs_none(host):
    assert token_for(host) is None


def test_a_token_that_is_set_is_asked_for_on_this_machine_too(monkeypatch):
    monkeypatch.setenv(TOKEN_VARIABLE, "a-token-of-some-length")
    assert token_for("127.0.0.1") == "a-token-of-some-length"
