"""The plan of the house, held: which room may import which, where each library may be seen, and how large a file may be."""

import ast
import subprocess
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted([*(ROOT / "components").rglob("*.py"), *(ROOT / "workflows").rglob("*.py")])

# A room may import itself and rooms of the floors below. Rooms of one floor do not know each other.
FLOORS = [
    {"errors", "notebook"},
    {"storage"},
    {"experiment"},
    {"conversations", "records"},
    {"data", "models"},
    {"training", "tracking"},
    {"inference", "planning", "cluster"},
    {"registry"},
    {"reports"},
    {"search"},
    {"api"},
    {"workflows"},
]
# Finer than the floors: these rooms know less than their floor would allow.
KNOWS_ONLY = {
    "records": {"experiment", "storage"},
    "tracking": {"records", "experiment", "storage"},
}
# Rooms within a room: each may import those behind it, never those before it.
SUB_ROOMS = {
    "cluster": ["scheduling", "driver", "slots", "capacity"],
    "conversations": ["preview", "readers", "tokenizers", "chat_formats"],
    "models": ["base", "chatglm"],
}
# A library may be imported in these rooms only.
EDGES = {
    "ray": {"cluster"},
    "mlflow": {"tracking", "registry"},
    "peft": {"models"},
    "transformers": {"models", "conversations", "planning", "inference", "training"},
    "optuna": {"cluster"},
    "pyarrow.fs": {"storage"},
    "torch": {"models", "data", "training", "cluster", "planning", "inference", "registry"},
}


def module_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in SOURCES}


def room_of(module):
    package, *rest = module.split(".")
    return "workflows" if package == "workflows" else rest[0] if rest else "api"


def sub_room_of(module):
    parts = module.split(".")
    return parts[2] if len(parts) > 2 and parts[2] in SUB_ROOMS.get(parts[1], ()) else None


def imports_of(path):
    """The modules that a file imports, for types, too: `from components.data import batch` is components.data.batch."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if name in MODULES else node.module


def floor_of(room):
    return next(number for number, rooms in enumerate(FLOORS) if room in rooms)


@pytest.mark.parametrize("module", MODULES)
def test_imports_follow_the_plan(module):
    room = room_of(module)
    for name in imports_of(MODULES[module]):
        package, *_ = name.split(".")
        for library in (package, ".".join(name.split(".")[:2])):
            assert room in EDGES.get(library, {room}), f"{library} is not for {room}/"
        if name not in MODULES or name == "components":
            continue
        other = room_of(name)
        if other != room:
            assert floor_of(other) < floor_of(room), f"{room}/ may not know {other}/"
            assert other in KNOWS_ONLY.get(room, {other}) | {"errors"}, f"{room}/ may not know {other}/"
        elif sub_room_of(module) and sub_room_of(name):
            order = SUB_ROOMS[room]
            assert order.index(sub_room_of(module)) <= order.index(sub_room_of(name)), f"{module} may not know {name}"


def test_no_file_imports_itself_by_a_detour():
    # The package itself imports nothing when it is imported.
    graph = {
        module: {name for name in imports_of(path) if name in MODULES.keys() - {"components"}}
        for module, path in MODULES.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_the_top_level_holds_what_it_shall_and_nothing_else():
    allowed = {
        "workflows", "components", "experiments", "tests", "ray_cluster.yaml", "README.md", "pyproject.toml",
        "requirements.txt", "requirements-dev.txt", "constraints.txt", "Makefile", ".ci", ".gitignore",
        ".pre-commit-config.yaml",
    }  # fmt: skip
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        pytest.skip("not a git checkout: nothing says what belongs to it")
    assert {Path(name).parts[0] for name in listed.stdout.splitlines()} <= allowed
