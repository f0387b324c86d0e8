"""What people get wrong: each gives one clear message and a status other than 0, before anything is trained."""

import json
import socket

import pytest

from components.experiment.load_experiment import load_experiment
from components.experiment.spec import LoraMethod
from components.records.journal import Journal
from components.records.manifest import LAYOUT, SearchManifest
from components.search.find import differences
from tests.support.programs import refused
from tests.support.three_trials import started
from workflows import tune


def record(*turns):
    return json.dumps({"messages": [{"role": role, "content": content} for role, content in turns]}) + "\n"


def test_a_missing_experiment(toy_search, capsys):
    status, message = refused(capsys, "nowhere.yaml")
    assert (status, message.splitlines()[-1]) == (
        2,
        "  nowhere.yaml: no such experiment file; experiments/ has some",
    )


def test_a_missing_data_file(toy_search, capsys):
    status, message = refused(capsys, "toy.yaml", "--set", "data.train=nowhere.jsonl")
    assert status == 2
    assert message.startswith("nowhere.jsonl: no such file; a path is relative to where you run this")


BROKEN_LINES = {
    "not JSON": ("{broken\n", "line 9: not JSON: Expecting property name enclosed in double quotes at column 2"),
    "a wrong role": (
        record(("user", "hi"), ("robot", "yo")),
        "line 9: message 2 has the role 'robot'; roles are system,",
    ),
    "an empty answer": (record(("user", "hi"), ("assistant", " ")), 'line 9: message 2 from "assistant" is empty'),
    "two questions": (
        record(("user", "hi"), ("user", "ho"), ("assistant", "yo")),
        'line 9: message 2 is from "user" after "user"; roles must alternate',
    ),
    "a misspelt key": (
        json.dumps({"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo", "los": 0}]}),
        'line 9: message 2 has the unknown key "los"; did you mean "loss"? (data.unknown_keys=ignore reads on without it)',
    ),
    "a key that stands twice": (
        '{"messages": [{"role": "user", "content": "hi", "content": "ho"}, {"role": "assistant", "content": "yo"}]}',
        'line 9: messages > 1: has the key "content" more than once; only one of its values could count',
    ),
    "nothing scored": (
        json.dumps(
            {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo", "loss": 0}]}
        ),
        "line 9: no assistant message has a loss above 0, so there is nothing to train on",
    ),
}


@pytest.mark.parametrize("kind", BROKEN_LINES)
def test_a_broken_conversation(toy_search, capsys, kind):
    line, problem = BROKEN_LINES[kind]
    with (toy_search / "data.jsonl").open("a") as file:
        file.write(line)
    status, message = refused(capsys, "toy.yaml")
    assert status == 2
    assert "data.jsonl: 1 of 9 conversations cannot be used (data.on_bad_row=drop leaves them out)" in message
    assert problem in message


def test_all_broken_conversations_are_named_together(toy_search, capsys):
    (toy_search / "data.jsonl").write_text("".join(line.rstrip() + "\n" for line, _ in BROKEN_LINES.values()))
    _, message = refused(capsys, "toy.yaml")
    assert [f"line {number}: " in message for number in range(1, 8)] == [True] * 7


def test_an_unknown_key(toy_search, capsys):
    status, message = refused(capsys, "toy.yaml", "--set", "trial.optimizer.learning_rat=1e-3")
    assert status == 2
    assert 'trial.optimizer.learning_rat: unknown key "learning_rat"; did you mean "learning_rate"?' in message


def test_an_impossible_range(toy_search, capsys):
    override = "search.space.lora.optimizer.learning_rate={log_uniform: [1.0e-2, 1.0e-3]}"
    status, message = refused(capsys, "toy.yaml", "--set", override)
    assert status == 2
    assert "search.space.lora.optimizer.learning_rate" in message
    assert "log_uniform needs [low, high] with low < high, not [0.01, 0.001]" in message


def test_a_range_in_the_words_of_another_tool(toy_search, capsys):
    status, message = refused(capsys, "toy.yaml", "--set", "search.space.lora.method.rank={min: 2, max: 4}")
    assert status == 2
    assert message.splitlines()[-1] == (
        "  search.space.lora.method.rank: {min: 2, max: 4} is neither a value nor one range of choice, grid, integer;"
        " write rank: {integer: [2, 4]}"
    )


def test_a_grid_says_how_many_points_it_tries_before_it_starts(toy_search, capsys):
    grid = "search.space={lora: {method: {rank: {grid: [1, 2, 3]}, alpha: {grid: [4, 8, 16, 32]}}}}"
    changes = ["search.sampler=grid", "search.trials=", grid, "model.path=./nowhere"]
    with pytest.raises(SystemExit):
        tune.main(["toy.yaml", *(word for change in changes for word in ("--set", change))])
    assert "search.sampler=grid: all 12 points are tried" in capsys.readouterr().out


def test_a_default_number_of_trials_is_the_same_written_or_left_out(toy_search):
    written, left_out, fewer = (load_experiment("toy.yaml", [f"search.trials={n}"]) for n in ("8", "", "7"))
    assert differences(written, left_out) == []
    assert differences(fewer, left_out) == ["search.trials: was 7, is 8"]


def test_an_mlflow_server_that_does_not_answer(toy_search, capsys):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound but not listening: nobody answers
        uri = f"http://127.0.0.1:{closed.getsockname()[1]}"
        status, message = refused(capsys, "toy.yaml", "--set", f"tracking.uri={uri}")
    assert status == 2
    assert "tracking.uri=http://127.0.0.1:" in message
    assert "start it, or correct tracking.uri or MLFLOW_TRACKING_URI" in message


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("./nowhere", "model.path=./nowhere: no such directory"),
        (".", "model.path=.: the directory has no config.json, so it holds no model"),
    ],
)
def test_a_missing_model(toy_search, capsys, path, problem):
    status, message = refused(capsys, "toy.yaml", "--set", f"model.path={path}")
    assert (status, message.strip()) == (2, problem)


def test_probes_that_are_none(toy_search, capsys):
    (toy_search / "probes.jsonl").write_text('{"question": "who?"}\n')
    status, message = refused(capsys, "toy.yaml", "--set", "registry.probes=probes.jsonl")
    assert status == 2
    assert "line 1: " in message


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--resume", "x"], "--resume x: no search of this id has begun in "),
        (["--resume", "x", "--new"], "argument --new: not allowed with argument --resume"),
    ],
)
def test_a_search_that_cannot_be_meant(toy_search, capsys, arguments, problem):
    status, message = refused(capsys, "toy.yaml", *arguments)
    assert status == 2
    assert problem in message
    assert not list(toy_search.glob("runs/toy/*/*"))


def test_a_changed_file_while_a_search_is_unfinished(toy_search, capsys):
    experiment = load_experiment("toy.yaml")
    manifest = SearchManifest(search_id="a", experiment=experiment, created=1.0, prepared="p", layout=LAYOUT)
    manifest.write(experiment.folder / "a")
    journal = Journal(experiment.folder / "a")
    journal.append(started(1, LoraMethod()))
    journal.close()
    status, message = refused(capsys, "toy.yaml", "--set", "trial.budget.epochs=9")
    assert status == 2
    assert message.splitlines() == [
        "search a is unfinished, and was begun with another experiment:",
        "  trial.budget.epochs: was 8.0, is 9.0",
        "Set these back to go on with it, or begin another search with --new; what it has trained stays",
    ]


def test_a_job_whose_storage_would_go_with_it(toy_search, capsys, monkeypatch):
    unpacked = toy_search / "working_dir_files" / "_ray_pkg_1"
    unpacked.mkdir(parents=True)
    (toy_search / "toy.yaml").rename(unpacked / "toy.yaml")
    monkeypatch.chdir(unpacked)
    status, message = refused(capsys, "toy.yaml")
    assert status == 2
    assert message.startswith(
        f"storage.path=runs: {unpacked}/runs/toy is where this job was unpacked, and goes with it"
    )


def test_a_storage_that_cannot_be_written(toy_search, capsys):
    status, message = refused(capsys, "toy.yaml", "--set", "storage.path=toy.yaml/runs")
    assert status == 2
    assert message.startswith("storage.path=toy.yaml/runs: ")
    assert "cannot be written: Not a directory; name another folder" in message
