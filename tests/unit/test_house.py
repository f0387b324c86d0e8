"""The plan of the house: which room may import which, where each library may be seen, and how large a file may be."""

import ast
import re
import subprocess
import tokenize
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted([*(ROOT / "components").rglob("*.py"), *(ROOT / "workflows").rglob("*.py")])

# A room may import itself and rooms of the floors below. Rooms of one floor do not know each other.
FLOORS = [
    {"closed_pipe", "errors"},
    {"visible"},
    {"notebook", "lasting_output"},
    {"storage"},
    {"experiment", "statistics"},
    {"conversations", "records"},
    {"data", "models"},
    {"scoring"},
    {"training", "tracking"},
    {"inference", "planning", "cluster"},
    {"registry"},
    {"reports"},
    {"search", "serving"},
    {"api"},
    {"workflows"},
]
# Finer than the floors: these rooms know less than their floor would allow.
KNOWS_ONLY = {
    "records": {"experiment", "storage"},
    "tracking": {"records", "experiment", "storage"},
    "statistics": set(),
}
# Rooms within a room: each may import those behind it, never those before it.
SUB_ROOMS = {
    "cluster": ["scheduling", "driver", "slots", "preparation", "capacity"],
    "conversations": ["preview", "readers", "tokenizers", "chat_formats"],
    "models": ["base", "chatglm"],
}
# Modules of components/ that are programs, too: `python -m components.NAME ...`. No other one prints or ends a process.
PROGRAMS = {
    "components.models.base.wheel_model",
    "components.models.chatglm.tiny_model",
    "components.registry.verification_worker",
}
MAX_LINES, MAX_LINES_OF_WORKFLOWS = 400, 1400
# A library may be imported in these rooms only.
EDGES = {
    "ray": {"cluster"},
    "mlflow": {"tracking", "registry"},
    "peft": {"models", "serving"},
    "transformers": {"models", "conversations", "planning", "inference", "training", "scoring", "serving"},
    "sacrebleu": {"scoring"},
    "rouge_score": {"scoring"},
    "jsonschema": {"scoring"},
    "fastapi": {"serving"},
    "uvicorn": {"serving"},
    "starlette": {"serving"},
    "prometheus_client": {"serving"},
    "optuna": {"cluster"},
    "pyarrow.fs": {"storage"},
    "torch": {"models", "data", "scoring", "training", "cluster", "planning", "inference", "registry", "serving"},
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


DOOR = ROOT / "components/cluster/ray_internals"  # to Ray's private parts


def private(name):
    return name.startswith("_") and not name.endswith("__")


def uses_of_private_names(tree):
    """(object, name) of `object._name` and `getattr(object, "_name")`; the object is "" where it is no plain name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and private(node.attr):
            yield getattr(node.value, "id", ""), node.attr
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("getattr", "setattr", "hasattr"):
            of, name = node.args[:2]
            if isinstance(name, ast.Constant) and private(str(name.value)):
                yield getattr(of, "id", ""), str(name.value)


def private_names_of(path):
    """What a file defines: functions, classes, variables, fields, and attributes that its methods set."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            yield node.attr


@pytest.mark.parametrize("module", [name for name, path in MODULES.items() if DOOR not in path.parents])
def test_private_parts_of_ray_are_used_behind_their_door_only(module):
    path = MODULES[module]
    names = [name.split(".") for name in imports_of(path)]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            names += [[*node.module.split("."), alias.name] for alias in node.names]
    for package, *rest in names:
        assert package != "ray" or not any(private(part) for part in rest), f"{module} imports ray.{'.'.join(rest)}"
    if room_of(module) not in EDGES["ray"]:
        return  # it has no object of Ray
    of_file = set(private_names_of(path))
    of_room = {
        name for other in MODULES if room_of(other) == room_of(module) for name in private_names_of(MODULES[other])
    }
    for of, name in uses_of_private_names(tree):
        ours = of_room if of in ("self", "cls") else of_file
        assert name in ours, f"{module}: {of}.{name} is not this house's own; {DOOR.name}/ is the place for it"


def test_each_private_part_of_ray_states_its_reason_and_its_test():
    for path in DOOR.glob("[!_]*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if not isinstance(node, ast.FunctionDef | ast.ClassDef) or private(node.name):
                continue
            text = ast.get_docstring(node) or ""
            assert "Public way: " in text, f"{node.name} does not say why Ray's public way is not enough"
            named = re.search(r"Test: (tests/\S+\.py)::(test_\w+)", text)
            assert named, f"{node.name} names no test"
            assert f"def {named[2]}(" in (ROOT / named[1]).read_text(encoding="utf-8"), f"{node.name}: no {named[2]}"


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("components") and name not in PROGRAMS])
def test_the_library_parses_no_arguments_prints_nothing_and_ends_no_process(module):
    """A console that the caller hands over may be written to."""
    path = MODULES[module]
    assert "argparse" not in set(imports_of(path))
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert not names & {"print", "argparse", "Namespace", "SystemExit"}
    calls = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    assert not calls & {"sys.exit", "os._exit"}


def test_files_are_small_and_workflows_are_thin():
    lines = {module: path.read_text(encoding="utf-8").count("\n") for module, path in MODULES.items()}
    assert {module: count for module, count in lines.items() if count > MAX_LINES} == {}
    assert sum(count for module, count in lines.items() if room_of(module) == "workflows") < MAX_LINES_OF_WORKFLOWS


def test_no_public_class_of_the_library_has_the_name_of_another():
    found = {}
    for module, path in MODULES.items():
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_") and room_of(module) != "workflows":
                found.setdefault(node.name, []).append(module)
    assert {name: modules for name, modules in found.items() if len(modules) > 1} == {}


def words_of(path):
    """What docstrings and comments of a file say, by line."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(
            node
        ):
            yield node.body[0].lineno, ast.get_docstring(node)
    with path.open("rb") as file:
        yield from (
            (token.start[0], token.string)
            for token in tokenize.tokenize(file.readline)
            if token.type == tokenize.COMMENT
        )


@pytest.mark.parametrize("module", MODULES)
def test_docstrings_and_comments_use_plain_words(module):
    unplain = re.compile(
        r"\b(told|anew|whoever|for ever|of old|in vain|not to be had|shall|says goodbye)\b", re.IGNORECASE
    )
    found = [f"{line}: {word}" for line, text in words_of(MODULES[module]) for word in unplain.findall(text)]
    assert found == []


def test_each_benchmark_runs_from_a_clone():
    """Installed are components and workflows only: who imports experiments or tests says where they lie, before."""
    lost = []
    for path in sorted((ROOT / "experiments" / "benchmarks").glob("*.py")):
        text = path.read_text(encoding="utf-8")
        begins = re.search(r"^from (experiments|tests)\b", text, re.MULTILINE)
        if "__main__" in text and begins and "\nsys.path.insert(0, " not in text[: begins.start()]:
            lost.append(path.name)
    assert lost == []


def test_the_top_level_holds_what_it_may_and_nothing_else():
    allowed = {
        "workflows", "components", "experiments", "tests", "ray_cluster.yaml", "README.md", "pyproject.toml",
        "requirements.txt", "requirements-dev.txt", "constraints.txt", "Makefile", ".ci", ".gitignore",
        ".pre-commit-config.yaml",
    }  # fmt: skip
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        pytest.skip("not a git checkout: nothing says what belongs to it")
    assert {Path(name).parts[0] for name in listed.stdout.splitlines()} <= allowed
