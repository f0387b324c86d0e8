"""The README is true: its commands parse, its files exist, its map is the house, its example is a valid experiment."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from components.experiment.load import load_experiment
from components.experiment.space import check_search
from components.experiment.spec import ExperimentSpec
from workflows import chat, control, evaluate, export, plan, preview, timeline, train, tune
from workflows.cli import Exit

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PROGRAMS = {
    "chat": chat,
    "control": control,
    "evaluate": evaluate,
    "export": export,
    "plan": plan,
    "preview": preview,
    "timeline": timeline,
    "train": train,
    "tune": tune,
}


FENCED = re.findall(r"^```(\w*)\n(.*?)^```$", README, flags=re.DOTALL | re.MULTILINE)


def blocks(language):
    return [text for said, text in FENCED if said == language]


COMMANDS = [line for block in blocks("bash") for line in block.splitlines()]


@pytest.mark.parametrize("line", [line for line in COMMANDS if "workflows/" in line])
def test_a_command_parses_and_its_experiment_loads(line, capsys):
    program, *arguments = shlex.split(line.partition("workflows/")[2])
    parser = PROGRAMS[program.removesuffix(".py")].make_parser()
    if "--schema" in arguments:
        with pytest.raises(SystemExit) as ended:
            parser.parse_args(arguments)
        assert ended.value.code == 0
        return
    parsed = parser.parse_args(arguments)
    if getattr(parsed, "experiment", None):
        assert load_experiment(ROOT / parsed.experiment, parsed.set).name
    data = getattr(parsed, "data", None)
    assert data is None or (ROOT / data).exists()


def test_make_targets_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z-]+)", " ".join([*COMMANDS, *re.findall(r"`(make [a-z-]+)`", README)])))
    assert {"tune", "test"} <= named <= targets


def test_links_lead_somewhere():
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if "://" not in link]
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_example_is_a_valid_experiment():
    (example,) = blocks("yaml")
    check_search(ExperimentSpec.model_validate(yaml.safe_load(example)))


def test_the_map_names_every_program_and_every_room():
    (tree,) = [block for block in blocks("") if block.startswith("workflows/")]
    programs = {path.name for path in (ROOT / "workflows").glob("*.py")} - {"__init__.py"}
    assert programs <= set(re.findall(r"\w+\.py", tree))
    rooms = {path.parent.name for path in (ROOT / "components").glob("*/__init__.py")}
    assert rooms == set(re.findall(r"^  (\w+)/ ", tree, flags=re.MULTILINE))


def test_every_exit_status_is_told():
    told = {int(number) for number in re.findall(r"(?:^| )(\d+): ", README[README.index("**How programs end.**") :])}
    assert {int(status) for status in Exit} <= told
