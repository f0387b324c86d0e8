"""The READMEs are true: their commands parse, their files exist, the map is the house, the example is a valid experiment."""

import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest
import yaml

from components.experiment.check_search import check_search
from components.experiment.load_experiment import load_experiment
from components.experiment.spec import ExperimentSpec
from workflows.__main__ import PROGRAMS
from workflows.cli import Exit

ROOT = Path(__file__).parents[2]
FILES = [
    ROOT / "README.md",
    *sorted((ROOT / "components").rglob("README.md")),
    *sorted((ROOT / "experiments").rglob("README.md")),
]
README = FILES[0].read_text(encoding="utf-8")
MAX_WORDS, MAX_WORDS_OF_A_PARAGRAPH = 1_900, 90


def fenced(text):
    """(language, content) of every block of code."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)


def blocks(language):
    return [text for said, text in fenced(README) if said == language]


COMMANDS = [
    line
    for file in FILES
    for language, block in fenced(file.read_text(encoding="utf-8"))
    if language == "bash"
    for line in block.splitlines()
]


@pytest.mark.parametrize("line", [line for line in COMMANDS if "workflows/" in line])
def test_a_command_parses_and_its_experiment_loads(line):
    program, *arguments = shlex.split(line.partition("workflows/")[2])
    parsed = import_module(f"workflows.{program.removesuffix('.py')}").make_parser().parse_args(arguments)
    if getattr(parsed, "experiment", None):
        assert load_experiment(ROOT / parsed.experiment, parsed.set).name
    data = getattr(parsed, "data", None)
    assert data is None or (ROOT / data).exists()


def test_make_targets_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z-]+)", " ".join([*COMMANDS, *re.findall(r"`(make [a-z-]+)`", README)])))
    assert {"tune", "test"} <= named <= targets


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_links_lead_somewhere(file):
    links = [link for link in re.findall(r"\]\(([^)]+)\)", file.read_text(encoding="utf-8")) if "://" not in link]
    assert [link for link in links if not (file.parent / link).exists()] == []


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_files_that_are_named_exist(file):
    names = {
        path.name
        for room in ("components", "workflows", "experiments", "tests")
        for path in (ROOT / room).rglob("*.py")
    }
    assert set(re.findall(r"\b\w+\.py\b", file.read_text(encoding="utf-8"))) <= names


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_paragraphs_are_short(file):
    prose = re.sub(r"^```.*?^```$", "", file.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    paragraphs = [text for text in re.split(r"\n\s*\n|\n(?=[-*] |\d+\. )", prose) if not text.lstrip().startswith("|")]
    long = [text for text in paragraphs if len(text.split()) > MAX_WORDS_OF_A_PARAGRAPH]
    assert long == []


def test_the_front_page_is_short():
    assert len(README.split()) <= MAX_WORDS


def test_the_example_is_a_valid_experiment():
    (example,) = blocks("yaml")
    check_search(ExperimentSpec.model_validate(yaml.safe_load(example)))


def test_the_map_names_every_program_and_every_room():
    (tree,) = [block for block in blocks("") if block.startswith("workflows/")]
    programs = {path.name for path in (ROOT / "workflows").glob("*.py")} - {"__init__.py"}
    assert programs == set(re.findall(r"\w+\.py", tree))
    rooms = {path.parent.name for path in (ROOT / "components").glob("*/__init__.py")}
    assert rooms == set(re.findall(r"^  (\w+)/ ", tree, flags=re.MULTILINE))


def test_the_command_has_every_program():
    with_a_parser = {path.stem for path in (ROOT / "workflows").glob("*.py") if "def make_parser(" in path.read_text()}
    assert set(PROGRAMS) == with_a_parser


def test_every_exit_status_is_in_the_table():
    rows = {int(number) for number in re.findall(r"^\| (\d+) \|", README, flags=re.MULTILINE)}
    assert rows == {int(status) for status in Exit}
