"""The plan of the house, held: which room may import which, and where each library may be seen."""

import ast
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted([*(ROOT / "components").rglob("*.py"), *(ROOT / "workflows").rglob("*.py")])

# A room may import itself and these.
MAY_IMPORT = {
    "storage": set(),
    "experiment": {"storage"},
    "conversations": {"experiment", "storage"},
    "batches": {"conversations", "experiment", "storage"},
    "models": {"conversations", "experiment", "storage"},
    "training": {"models", "batches", "conversations", "experiment", "storage"},
    "cluster": {"training", "models", "batches", "conversations", "experiment", "storage"},
    "tracking": {"training", "models", "batches", "conversations", "experiment", "storage"},
    "reports": {"tracking", "training", "experiment", "conversations"},
}
# A library may be imported in these rooms only.
EDGES = {
    "ray": {"cluster"},
    "mlflow": {"tracking"},
    "peft": {"models"},
    "transformers": {"models", "conversations", "training"},
    "optuna": {"cluster"},
    "pyarrow.fs": {"storage"},
    "torch": {"models", "batches", "training", "cluster", "tracking"},
}


def room_of(path):
    parts = path.relative_to(ROOT).parts
    return "workflows" if parts[0] == "workflows" else parts[1]


def imports_of(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_follow_the_plan(path):
    room = room_of(path)
    for name in imports_of(path):
        package, *rest = name.split(".")
        for library in (package, name):
            assert room in EDGES.get(library, {room}), f"{library} is not for {room}/"
        if package == "components" and rest and room != "workflows":
            assert rest[0] == room or rest[0] in MAY_IMPORT[room], f"{room}/ may not know {rest[0]}/"
        assert package != "workflows" or room == "workflows", "nothing may know an entry point"


def test_tracking_and_cluster_do_not_know_each_other():
    assert "tracking" not in MAY_IMPORT["cluster"]
    assert "cluster" not in MAY_IMPORT["tracking"]


def test_the_top_level_holds_what_it_shall_and_nothing_else():
    allowed = {
        "workflows", "components", "experiments", "tests", "ray_cluster.yaml", "README.md", "pyproject.toml",
        "requirements.txt", "requirements-dev.txt", "Makefile", ".ci", ".gitignore", ".pre-commit-config.yaml",
    }  # fmt: skip
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        pytest.skip("not a git checkout: nothing says what belongs to it")
    assert {Path(name).parts[0] for name in listed.stdout.splitlines()} <= allowed
