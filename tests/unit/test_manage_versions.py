"""Versions in a real registry are listed, promoted, taken back and pruned by hand, and each move leaves its tags."""

import getpass
import json
import re
import shutil
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from components.errors import TrackingError
from components.experiment.spec import LoraMethod
from components.registry.chat_model import PACKAGE
from components.registry.manage_versions import VersionShelf, open_shelf
from components.registry.prune import plan_prune, prune
from components.tracking.mlflow_access import open_store
from tests.support.serving import adapter_checkpoint, registered
from tests.support.toy import tiny_model_directory
from workflows import registry
from workflows.cli import Exit

NAME = "support"
STAMP = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC, "


class Shelf:
    """A registry with versions of one adapter. `run` calls the program."""

    def __init__(self, folder, checkpoint, capsys):
        self.folder, self.checkpoint, self.capsys = folder, checkpoint, capsys
        self.uri = f"sqlite:///{folder}/mlflow.db"
        self.client = open_store(self.uri)

    def add(self, **tags):
        number = registered(self.uri, NAME, self.checkpoint, self.folder / f"files{len(list(self.folder.iterdir()))}")
        for key, value in {"proven": "seen", **tags}.items():
            if value is not None:
                self.client.set_model_version_tag(NAME, number, f"turnwise.{key}", value)
        return number

    def hold(self, number, alias="champion"):
        self.client.set_registered_model_alias(NAME, alias, number)

    @property
    def aliases(self):
        return {alias: str(number) for alias, number in self.client.get_registered_model(NAME).aliases.items()}

    def tags(self, number):
        return self.client.get_model_version(NAME, number).tags

    def files(self, number):
        return open_shelf(self.uri).get(f"{NAME}/{number}").source

    def run(self, *arguments):
        """What the program says. An error for people is a failure of the test."""
        assert registry.main([*arguments, "--tracking-uri", self.uri]) == Exit.DONE
        return self.capsys.readouterr().out

    def fail(self, *arguments):
        """(exit status, what the program says)."""
        with pytest.raises(SystemExit) as end:
            registry.main([*arguments, "--tracking-uri", self.uri])
        return end.value.code, self.capsys.readouterr().err


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    tiny_model_directory(folder / "base")
    return adapter_checkpoint(folder / "adapter", folder / "base", LoraMethod(rank=2), 1)


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory):
    """A database without versions, which takes seconds to make."""
    folder = tmp_path_factory.mktemp("store")
    open_store(f"sqlite:///{folder}/mlflow.db").create_registered_model(NAME)
    return folder / "mlflow.db"


@pytest.fixture
def shelf(tmp_path, checkpoint, empty_store, capsys):
    shutil.copyfile(empty_store, tmp_path / "mlflow.db")
    return Shelf(tmp_path, checkpoint, capsys)


# Looking


def test_a_list_has_each_version_with_its_aliases_verdict_size_and_loss(shelf):
    shelf.add(gate_passed="true", method="lora", eval_loss="1.25", bytes="2500000")
    shelf.add(gate_passed="false", method="full", eval_loss="by hand", proven=None)
    shelf.hold("1")
    shelf.hold("2", "challenger")
    header, second, first = (line.split() for line in shelf.run("list", NAME).splitlines())
    assert header == ["version", "aliases", "gate", "proven", "method", "eval", "loss", "size", "created"]
    assert first[:-3] == ["1", "champion", "passed", "yes", "lora", "1.2500", "2.5", "MB"]
    assert second[:7] == ["2", "challenger", "not", "passed", "no", "full", "-"]
    second, first = json.loads(shelf.run("list", NAME, "--json"))
    assert (first["version"], first["aliases"], first["gate_passed"], first["bytes"]) == (
        "1",
        ["champion"],
        True,
        2_500_000,
    )
    assert (second["proven"], second["eval_loss"]) == (None, None)
    assert second["bytes"] > 1000  # without a tag, the folder's


def test_a_version_is_shown_with_all_tags_in_order_and_how_to_use_it(shelf):
    shelf.add(gate="beats the base", method="lora", promoted_because="one\ntwo")
    shelf.hold("1")
    text = shelf.run("show", f"{NAME}@champion")
    assert text.startswith(f"models:/{NAME}/1\naliases  champion\n")
    assert "\ngate     beats the base\nproven   seen\n" in text
    keys = re.findall(r"^  (turnwise\.\S+)", text, re.MULTILINE)
    assert keys == sorted(shelf.tags("1"))
    assert re.search(r"workflows/chat\.py models:/support/1\n.*workflows/serve\.py models:/support/1\n$", text)
    assert json.loads(shelf.run("show", f"models:/{NAME}/1", "--json"))["tags"] == shelf.tags("1")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("list", "nobody"), "nobody: the registry at .* says: Registered Model with name=nobody not found"),
        (("list", f"{NAME}/1"), f"{NAME}/1: is no name of a registered model"),
        (("list", "a' OR name LIKE '%"), "is no name of a registered model"),
        (("show", NAME), f"models:/{NAME}: a registered model is models:/NAME@ALIAS or models:/NAME/VERSION"),
        (("show", f"{NAME}/9"), f"models:/{NAME}/9: the registry does not have it"),
        (("rollback", NAME, "--reason", "x"), f"models:/{NAME}@champion: the registry does not have it"),
        (("promote", f"{NAME}/1", "--reason", " "), "--reason: takes a line of 1 to 500 visible characters"),
        (("promote", f"{NAME}/1", "--reason", "a\nb"), "--reason: takes a line"),
        (("promote", f"{NAME}/1", "--reason", "x" * 501), "--reason: takes a line"),
        (
            ("promote", f"{NAME}/1", "--reason", "x", "--alias", "previous"),
            "--alias previous: this alias is for the version",
        ),
        (
            ("promote", f"{NAME}/1", "--reason", "x", "--alias", "latest"),
            "--alias latest: a registry answers this alias",
        ),
        (("prune", NAME, "--keep", "-1"), "--keep -1: must be 0 or more"),
    ],
)
def test_what_cannot_be_meant_is_bad_input_and_says_why(arguments, reason, shelf):
    shelf.add()
    status, said = shelf.fail(*arguments)
    assert status == Exit.BAD_INPUT
    assert re.search(reason, said)
    assert shelf.aliases == {}


def test_a_registry_that_is_not_there_is_bad_input_and_makes_no_file(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        registry.main(["list", NAME, "--tracking-uri", f"sqlite:///{tmp_path}/mlflow.db"])
    assert end.value.code == Exit.BAD_INPUT
    assert "there is no such registry; work in the directory of the search" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_registry_that_is_away_is_that_and_not_an_empty_one():
    with pytest.raises(TrackingError, match=r"http://127\.0\.0\.1:1: no MLflow answers"):
        VersionShelf("http://127.0.0.1:1").list(NAME)


# Moving an alias


def test_a_promotion_moves_the_alias_and_leaves_previous_and_the_reason(shelf):
    shelf.add()
    shelf.add()
    shelf.hold("1")
    shelf.hold("2", "challenger")
    said = shelf.run("promote", f"{NAME}/2", "--reason", "  briefer answers ")
    assert said == f"models:/{NAME}/2 holds the alias champion, which version 1 held; that one is @previous now\n"
    assert shelf.aliases == {"champion": "2", "previous": "1"}
    assert shelf.tags("2")["turnwise.before.champion"] == "1"
    assert re.fullmatch(
        rf"{STAMP}{getpass.getuser()}: champion in place of version 1: briefer answers",
        shelf.tags("2")["turnwise.promoted_because"],
    )
    status, again = shelf.fail("promote", f"{NAME}/2", "--reason", "once more")
    assert (status, again) == (Exit.BAD_INPUT, f"models:/{NAME}/2 holds the alias champion already\n")


def test_a_rollback_goes_back_and_a_second_one_further_each_with_its_reason(shelf):
    for number in (shelf.add(), shelf.add(), shelf.add()):
        shelf.run("promote", f"{NAME}/{number}", "--reason", f"try {number}")
    said = shelf.run("rollback", NAME, "--reason", "it greets twice")
    assert said == f"models:/{NAME}/2 holds the alias champion again; version 3 is @previous now\n"
    assert shelf.aliases == {"champion": "2", "previous": "3"}
    assert re.fullmatch(
        rf"{STAMP}\S+: champion goes back to version 2: it greets twice",
        shelf.tags("3")["turnwise.rolled_back_because"],
    )
    first, back = shelf.tags("2")["turnwise.promoted_because"].splitlines()
    assert first.endswith("champion in place of version 1: try 2")
    assert back.endswith("champion back from version 3: it greets twice")
    shelf.run("rollback", NAME, "--reason", "that one, too")
    assert shelf.aliases == {"champion": "1", "previous": "2"}
    status, end = shelf.fail("rollback", NAME, "--reason", "further")
    assert status == Exit.BAD_INPUT
    assert f"nothing says which version held it before; choose one of registry.py list {NAME}" in end


def test_each_alias_has_its_own_way_back(shelf):
    for number in (shelf.add(), shelf.add(), shelf.add()):
        shelf.run("promote", f"{NAME}/{number}", "--reason", "x", "--alias", "staging")
    shelf.run("promote", f"{NAME}/1", "--reason", "x")
    shelf.run("promote", f"{NAME}/3", "--reason", "x")
    shelf.run("rollback", NAME, "--reason", "x")
    assert shelf.aliases == {"staging": "3", "champion": "1", "previous": "3"}


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        (
            {"proven": None},
            f"gets no alias: nothing says that it was proven; do that first, with registry.py prove {NAME}/2",
        ),
        ({"package_digest": "sha256:0"}, "gets no alias: .*its files are not those that were registered"),
    ],
)
def test_a_version_that_is_not_proven_or_was_changed_gets_no_alias_by_any_verb(tags, reason, shelf):
    shelf.add()
    shelf.add(**tags)
    shelf.hold("1")
    status, said = shelf.fail("promote", f"{NAME}/2", "--reason", "x")
    assert status == Exit.NOT_PROVEN
    assert re.search(f"models:/{NAME}/2 {reason}", said)
    shelf.client.set_model_version_tag(NAME, "1", "turnwise.before.champion", "2")
    assert shelf.fail("rollback", NAME, "--reason", "x")[0] == Exit.NOT_PROVEN
    assert shelf.aliases == {"champion": "1"}
    assert "turnwise.promoted_because" not in shelf.tags("2")


def test_one_byte_of_a_package_decides_whether_it_may_be_promoted(shelf):
    shelf.add()
    (spec,) = shelf.folder.glob(f"files*/artifacts/{PACKAGE}/spec.json")
    spec.write_text(spec.read_text() + " ")
    assert shelf.fail("promote", f"{NAME}/1", "--reason", "x")[0] == Exit.NOT_PROVEN
    spec.write_text(spec.read_text()[:-1])
    shelf.run("promote", f"{NAME}/1", "--reason", "x")
    assert shelf.aliases == {"champion": "1"}


# Deleting


class Searches:
    """Versions as searches leave them: each of a trial's run below a search's run, with files in it."""

    def __init__(self, shelf):
        self.shelf, self.client = shelf, shelf.client
        self.experiment = self.client.create_experiment("toy", artifact_location=(shelf.folder / "runs").as_uri())

    def version(self, search, state, status="FINISHED", files="model/step_000001"):
        """Of a search that ended so; with status RUNNING, of one that goes on after it had ended so."""
        parent = self.client.create_run(self.experiment, tags={"turnwise.search_id": search, "turnwise.state": state})
        run = self.client.create_run(self.experiment, tags={"mlflow.parentRunId": parent.info.run_id})
        if status != "RUNNING":
            self.client.set_terminated(parent.info.run_id, status)
        self.client.log_text(run.info.run_id, "weights", f"{files}/MLmodel")
        return self.again(run, search, files)

    def again(self, run, search, files="model/step_000001"):
        source, tags = f"{run.info.artifact_uri}/{files}", {"turnwise.search_id": search}
        return self.client.create_model_version(NAME, source, run.info.run_id, tags=tags)


def numbers_in(shelf):
    return [record["version"] for record in json.loads(shelf.run("list", NAME, "--json"))]


def test_pruning_says_what_it_would_delete_and_deletes_that_and_its_files_with_yes(shelf):
    searches = Searches(shelf)
    unneeded = searches.version("s1", "champion")
    for state, status in (
        ("interrupted", "KILLED"),
        ("not proven", "FAILED"),
        ("champion", "RUNNING"),
        ("", "FINISHED"),
    ):
        searches.version("open", state, status)
    for alias in ("champion", "previous"):
        shelf.hold(searches.version("s1", "champion").version, alias)
    by_hand = shelf.add()
    said = shelf.run("prune", NAME, "--keep", "0")
    assert said.splitlines() == [
        f"version {by_hand} stays: no search made it",
        "version 7 stays: holds the alias previous",
        "version 6 stays: holds the alias champion",
        *(f"version {number} stays: search open can still go on" for number in (5, 4, 3, 2)),
        "would be deleted: 1 (7e-06 MB); do so with --yes",
    ]
    assert len(numbers_in(shelf)) == 8
    assert (
        shelf.run("prune", NAME, "--keep", "8", "--yes").splitlines()[-1] == "nothing to delete: each version is needed"
    )
    assert shelf.run("prune", NAME, "--keep", "0", "--yes").splitlines()[-1] == "version 1 is deleted with its files"
    assert "1" not in numbers_in(shelf)
    folder = Path(urlsplit(unneeded.source).path)
    assert (folder.exists(), folder.parent.exists()) == (False, True)
    assert shelf.run("prune", NAME, "--keep", "0").splitlines()[-1] == "nothing to delete: each version is needed"


def test_a_version_whose_search_was_deleted_is_not_needed(shelf):
    made = Searches(shelf).version("gone", "interrupted", "KILLED")
    parent = shelf.client.get_run(made.run_id).data.tags["mlflow.parentRunId"]
    shelf.client.delete_run(parent)
    assert "would be deleted: 1 " in shelf.run("prune", NAME, "--keep", "0")


def test_files_that_another_version_has_or_that_lie_elsewhere_are_not_deleted(shelf):
    searches = Searches(shelf)
    made = searches.version("s1", "champion")
    same = searches.again(shelf.client.get_run(made.run_id), "s1")
    elsewhere = searches.version("s1", "champion", files="kept")
    shelf.hold(same.version)
    said = shelf.run("prune", NAME, "--keep", "0", "--yes").splitlines()[-2:]
    assert said == [
        f"version {version.version} is deleted; its files stay at {version.source}: others may use them"
        for version in (elsewhere, made)
    ]
    assert all((Path(urlsplit(version.source).path) / "MLmodel").is_file() for version in (made, elsewhere))


def test_a_version_that_gets_an_alias_while_others_are_deleted_stays(shelf):
    searches = Searches(shelf)
    made = searches.version("s1", "champion")
    opened = open_shelf(shelf.uri)
    plan = plan_prune(opened, NAME, 0)
    shelf.hold(made.version)
    assert prune(opened, plan.unneeded) == ["version 1 stays: it got the alias champion meanwhile"]
    assert numbers_in(shelf) == ["1"]
