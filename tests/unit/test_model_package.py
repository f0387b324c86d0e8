"""A version is the same wherever it lies: what it brings is named by its place inside, and its inputs are explained."""

import json
import shutil

import mlflow.pyfunc
import pytest
import yaml
from mlflow.models import Model

from components.registry.chat_model import INPUTS, PACKAGE
from components.registry.model_package import save_packaged

ASKS = {"messages": [{"role": "user", "content": "say ab"}], "max_tokens": 4, "temperature": 0.0}


@pytest.fixture(scope="module")
def version(trials, tmp_path_factory):
    folder = tmp_path_factory.mktemp("version")
    save_packaged(trials.packaged("full", folder / "scratch" / PACKAGE), folder / "version")
    return folder / "version"


def texts_in(value):
    if isinstance(value, dict):
        for key, child in value.items():
            yield from (str(key), *texts_in(child))
    elif isinstance(value, list):
        for child in value:
            yield from texts_in(child)
    else:
        yield str(value)


def test_no_file_that_mlflow_writes_names_a_folder_of_this_machine(version):
    described = yaml.safe_load((version / "MLmodel").read_text())
    assert [text for text in texts_in(described) if text.startswith(("/", "file:"))] == []
    scratch = str(version.parent)
    for path in version.iterdir():
        assert path.is_dir() or scratch not in path.read_text(encoding="utf-8")
    facts = described["flavors"]["python_function"]
    assert facts["artifacts"] == {PACKAGE: {"path": f"artifacts/{PACKAGE}", "uri": f"artifacts/{PACKAGE}"}}
    assert facts["model_code_path"] == "chat_model.py"


def test_a_version_that_was_moved_answers_as_before(version, tmp_path):
    before = mlflow.pyfunc.load_model(str(version)).predict(ASKS)
    shutil.copytree(version, tmp_path / "elsewhere")
    after = mlflow.pyfunc.load_model(str(tmp_path / "elsewhere")).predict(ASKS)
    assert after["choices"] == before["choices"]


def test_each_input_of_the_signature_is_explained_and_no_other(version):
    assert set(Model.load(str(version)).signature.inputs.input_names()) == set(INPUTS)
    assert json.loads((version / "input_example.json").read_text()).keys() <= INPUTS.keys()
