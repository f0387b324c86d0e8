"""A searches' folder in which something is broken: it is named with the reason, and the others can be seen and used."""

import json
import logging

import pytest

from components.errors import InputError
from components.experiment.load_experiment import load_experiment
from components.experiment.spec import LoraMethod
from components.records.commands import StopTrial
from components.records.driver_presence import DriverHeartbeat
from components.records.journal import Journal
from components.records.manifest import LAYOUT, MANIFEST, SearchManifest, searches_in
from components.search.find import find_search
from components.search.results import results
from components.search.send_command import ask
from tests.support.three_trials import started
from workflows import control, timeline, tune


@pytest.fixture
def experiment(toy_search):
    experiment = load_experiment("toy.yaml")
    for number, search_id in enumerate(("one", "two", "broken")):
        folder = experiment.folder / search_id
        SearchManifest(
            search_id=search_id, experiment=experiment, created=number, prepared="p", budget=10, layout=LAYOUT
        ).write(folder)
        journal = Journal(folder)
        journal.append(started(1, LoraMethod()))
        journal.close()
    return experiment


def broken_file(experiment, name):
    return experiment.folder.path / "broken" / name


def said_by(program, capsys, *arguments):
    """(status, what it says on stderr)."""
    with pytest.raises(SystemExit) as end:
        program.main(["toy.yaml", *arguments])
    return end.value.code, capsys.readouterr().err


CONTENTS = {"empty": b"", "half": b'{"search_id": "bro', "no text": b"\xff\xfe", "a list": b"[]", "deep": b"[" * 5000}


@pytest.mark.parametrize("kind", CONTENTS)
def test_a_search_that_cannot_be_read_hides_no_other(experiment, capsys, caplog, kind):
    broken_file(experiment, MANIFEST).write_bytes(CONTENTS[kind])
    with caplog.at_level(logging.WARNING):
        assert [manifest.search_id for manifest in searches_in(experiment.folder)] == ["one", "two"]
    assert "broken/search.json" in caplog.text
    assert find_search(experiment).search_id == "two"
    assert set(results(experiment)["search"]) == {"one", "two"}
    assert tune.main(["toy.yaml", "--watch", "--json"]) == 0
    for program, arguments in {tune: ["--watch", "broken"], timeline: ["--search", "broken"]}.items():
        status, said = said_by(program, capsys, *arguments)
        assert status == 2
        assert "(there: one, two, broken, which cannot be read: " in said


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"\xff\xfe\n", r"journal\.jsonl, line 2: no record of this version"),
        (b"[]\n", r"journal\.jsonl, line 2: no record of this version"),
        (
            b'{"event": "ended", "trial_id": "never", "state": "completed", "time": 1.0}\n',
            r"trial never is reported before",
        ),
        (None, r"journal\.jsonl: cannot be read \(Is a directory\)"),
    ],
)
def test_a_broken_journal_is_a_sentence_and_hides_no_other(experiment, capsys, caplog, line, reason):
    file = broken_file(experiment, "journal.jsonl")
    if line is None:
        file.unlink()
        file.mkdir()
    else:
        file.write_bytes(file.read_bytes() + line)
    status, said = said_by(tune, capsys, "--watch", "broken")
    assert status == 2
    with pytest.raises(InputError, match=reason):
        results(experiment.folder.path / "broken")
    assert "Traceback" not in said
    with caplog.at_level(logging.WARNING):
        assert set(results(experiment)["search"]) == {"one", "two"}
    assert "search broken is left out: " in caplog.text


def test_a_broken_sign_of_life_says_what_to_do(experiment, capsys):
    broken_file(experiment, "driver.json").write_text(json.dumps({"host": 3}))
    with pytest.raises(InputError, match=r"driver\.json: cannot be read \(.*\); delete it"):
        DriverHeartbeat.read(experiment.folder / "broken")
    status, said = said_by(tune, capsys, "--watch", "broken")
    assert (status, "delete it" in said) == (2, True)


@pytest.mark.parametrize("seconds", [float("nan"), float("inf"), -1.0, 1e300])
def test_a_reply_is_not_waited_for_for_ever(experiment, seconds):
    with pytest.raises(InputError, match="no reply can be waited for"):
        ask(experiment.folder / "one", StopTrial(trial="1"), timeout_seconds=seconds)
    assert not (experiment.folder.path / "one" / "requests").exists()


@pytest.mark.parametrize("share", ["nan", "inf", "1e308", "-1", "0", "x", "²"])
def test_a_budget_does_not_grow_by_what_is_no_share(experiment, capsys, share):
    status, said = said_by(control, capsys, "extend", "1", f"--by={share}")
    assert (status, said.startswith(f"--by {share}: write it as a share")) == (2, True)
