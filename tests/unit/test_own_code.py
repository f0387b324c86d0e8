"""Versions with different code, and the installed package, live in one process, each with modules of its own."""

import ast
import sys
from pathlib import Path

import mlflow
import pytest
from mlflow.exceptions import MlflowException

from components.errors import InputError
from components.registry.load_version import load_version
from components.registry.own_code import CODE, COMMON_NAME, INSTALLED, package_name, rename_package, with_package
from components.tracking.mlflow_access import open_store


@pytest.mark.parametrize(
    ("source", "renamed"),
    [
        ("import components", "import own as components"),
        ("import os, components.a.b", "import os, own.a.b, own as components"),
        ("import components.a as a", "import own.a as a"),
        ("import components as turnwise", "import own as turnwise"),
        ("from components import a", "from own import a"),
        ("from components.a import (\n    b,\n)", "from own.a import (\n    b,\n)"),
        ("def f():\n    x = 'é'; from components.a import b", "def f():\n    x = 'é'; from own.a import b"),
        ("import_module('components.a')", "import_module('own.a')"),
        ("\ufefffrom components import a\nimport components as b", "\ufefffrom own import a\nimport own as b"),
    ],
)
def test_what_imports_the_package_imports_it_by_its_own_name(source, renamed):
    assert with_package(source.encode(), "own").decode() == renamed


@pytest.mark.parametrize(
    "source",
    [
        "from . import components",
        "from a import components",
        "from componentsx import a",
        "x = 'components'",
        "x = 'see components.a'",
        "components = 1; components.a",
        "# from components import a",
    ],
)
def test_what_does_not_import_it_stays(source):
    assert with_package(source.encode(), "own").decode() == source


def texts_that_name_a_module(tree):
    """Texts that begin with the common name and are no docstrings, in whatever way they are written."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    owners = (node for node in ast.walk(tree) if isinstance(node, documented))
    docstrings = [node.body[0].value for node in owners if ast.get_docstring(node, clean=False) is not None]
    texts = (node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str))
    return [node.value for node in texts if node.value.startswith(f"{COMMON_NAME}.") and node not in docstrings]


@pytest.mark.parametrize(
    "text", ["r'components.a'", '"""components.a"""', "f'components.{x}'", "'components.a:x'", "'components.a ' 'b'"]
)
def test_a_text_that_names_a_module_and_is_not_rewritten_is_found(text):
    source = f'"""components.a is the docstring."""\nx = {text}'
    assert len(texts_that_name_a_module(ast.parse(with_package(source.encode(), "own")))) == 1


def test_the_installed_package_imports_nothing_by_its_common_name_once_it_is_renamed():
    for path in INSTALLED.rglob("*.py"):
        tree = ast.parse(with_package(path.read_bytes(), "own"))
        assert texts_that_name_a_module(tree) == [], path
        for node in ast.walk(tree):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module] if isinstance(node, ast.ImportFrom) else []
            assert not [module for module in modules if module.split(".")[0] == COMMON_NAME], path


# Versions

SCRIPT = """
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel
from components.greeting import greeting


class Model(PythonModel):
    def predict(self, context, model_input, params=None):
        from components.late import ending  # not imported before it is used

        return greeting + ending


set_model(Model())
"""


def make_version(folder, greeting):
    """As one was made before packages had names of their own: its `components` has modules that the installed one lacks."""
    package = folder / "made" / "components"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "greeting.py").write_text(f"greeting = {greeting!r}\n")
    (package / "late.py").write_text("ending = '!'\n")
    script = folder / "made" / "script.py"
    script.write_text(SCRIPT.replace("from components.greeting import greeting", "greeting = ''"))
    mlflow.pyfunc.save_model(str(folder / "version"), python_model=str(script), code_paths=[str(package)])
    (folder / "version" / "script.py").write_text(SCRIPT)
    return folder / "version"


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    """The URI of one with two versions of equal names for their code, which differs."""
    folder = tmp_path_factory.mktemp("registry")
    uri = f"sqlite:///{folder}/mlflow.db"
    client = open_store(uri)
    client.create_registered_model("greeter")
    for greeting in ("hello", "good morning"):
        client.create_model_version("greeter", str(make_version(folder / greeting, greeting)))
    client.set_registered_model_alias("greeter", "champion", "2")
    return uri


def test_versions_with_code_of_one_name_talk_beside_the_installed_package(registry):
    installed = sys.modules["components"]
    first, second = load_version("models:/greeter/1", registry), load_version("models:/greeter@champion", registry)
    again = load_version("models:/greeter/1", registry)
    assert [model.predict(["?"]) for model in (first, second, again)] == ["hello!", "good morning!", "hello!"]
    assert sys.modules["components"] is installed


def test_mlflow_itself_takes_the_modules_that_the_process_has_imported_first(registry, tmp_path):
    """Why versions that are made now bring code with a name of its own."""
    version = make_version(tmp_path, "hello")
    with pytest.raises(MlflowException, match=r"No module named 'components\.greeting'"):
        mlflow.pyfunc.load_model(str(version))
    name = rename_package(version)
    assert mlflow.pyfunc.load_model(str(version)).predict(["?"]) == "hello!"
    assert f"{name}.greeting" in sys.modules


def test_the_registrys_files_stay_as_they_are(registry):
    load_version("models:/greeter/1", registry)
    source = open_store(registry).get_model_version("greeter", "1").source
    assert package_name(Path(source)) == "components"


def test_a_version_that_may_not_be_written_is_loaded_from_a_copy_that_may(tmp_path):
    version, uri = make_version(tmp_path, "read only"), f"sqlite:///{tmp_path}/mlflow.db"
    client = open_store(uri)
    client.create_registered_model("greeter")
    client.create_model_version("greeter", str(version))
    inside = [version, *version.rglob("*")]
    for path in inside:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        assert load_version("models:/greeter/1", uri).predict(["?"]) == "read only!"
    finally:
        for path in inside:
            path.chmod(0o755 if path.is_dir() else 0o644)
    (greeting,) = [
        module for name, module in sys.modules.items()
        if name.endswith(".greeting") and getattr(module, "greeting", None) == "read only"
    ]  # fmt: skip
    package = Path(greeting.__file__).parent
    # By their modes: root may write whatever they are.
    assert [path for path in (package.parent, package, *package.iterdir()) if not path.stat().st_mode & 0o200] == []


def test_a_name_is_the_codes_and_nothing_elses(tmp_path):
    names = [rename_package(make_version(tmp_path / str(i), word)) for i, word in enumerate(["a", "a", "b"])]
    assert names[0] == names[1] != names[2]
    assert rename_package(tmp_path / "0" / "version") == names[0]


def test_a_version_without_code_is_damaged(tmp_path):
    (tmp_path / CODE).mkdir()
    with pytest.raises(InputError, match="holds 0 packages, and must hold one: the version is damaged"):
        package_name(tmp_path)


def test_a_version_that_is_missing_is_an_error(registry):
    with pytest.raises(InputError, match=r"models:/nobody@champion: not to be had from the registry: .*nobody"):
        load_version("models:/nobody@champion", registry)
