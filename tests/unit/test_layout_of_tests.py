"""A test is in the folder of what it starts, and takes what it shares with others from tests/support/."""

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
TEST_MODULES = sorted(path.relative_to(TESTS) for path in TESTS.glob("*/test_*.py"))
# What starts a Ray cluster, or a whole program that starts one.
STARTERS = {
    "ray.init",
    "components.cluster.ray_session.connected",
    "tests.support.bare_python.bare_python",
    "tests.support.clusters.cluster",
    "tests.support.programs.command",
    "tests.support.programs.ran",
}


def names_in(module):
    """All that a test module imports, and all dotted names that it uses."""
    for node in ast.walk(ast.parse((TESTS / module).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Attribute):
            yield ast.unparse(node)


@pytest.mark.parametrize("module", TEST_MODULES, ids=str)
def test_a_marker_comes_from_the_folder_and_not_from_the_file(module):
    assert not {"pytest.mark.ray", "pytest.mark.end_to_end"} & set(names_in(module))


@pytest.mark.parametrize("module", [path for path in TEST_MODULES if path.parts[0] == "unit"], ids=str)
def test_a_unit_test_starts_no_cluster_and_no_program_that_starts_one(module):
    assert not STARTERS & set(names_in(module))


@pytest.mark.parametrize("module", TEST_MODULES, ids=str)
def test_a_test_module_imports_no_other_test_module(module):
    others = {f"tests.{'.'.join(path.with_suffix('').parts)}" for path in TEST_MODULES}
    assert not [name for name in names_in(module) if name in others or name.rpartition(".")[0] in others]


@pytest.mark.parametrize("module", TEST_MODULES, ids=str)
def test_the_name_of_a_test_is_a_rule_of_at_most_80_letters(module):
    functions = ast.walk(ast.parse((TESTS / module).read_text(encoding="utf-8")))
    names = [node.name for node in functions if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]
    assert not [name for name in names if len(name) > 80]
