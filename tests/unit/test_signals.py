"""SIGTERM while Ray is being started, when Ray's own handler is in place: the program ends as always."""

import os
import signal
import sys

import pytest

from components.experiment.load_experiment import load_experiment
from workflows import terminal
from workflows.cli import Exit


@pytest.fixture(autouse=True)
def same_handler():
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def as_ray_starts(*_):
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(number))  # as ray.init does before it connects
    os.kill(os.getpid(), signal.SIGTERM)


def test_a_sigterm_that_ray_answers_while_it_starts_ends_with_143(path, monkeypatch, capsys):
    monkeypatch.setattr(terminal, "_run", as_ray_starts)
    with pytest.raises(SystemExit) as end:
        terminal.search_and_report(load_experiment(path), command="tune.py toy.yaml")
    assert end.value.code == Exit.TERMINATED == 143
    assert capsys.readouterr().err == "Interrupted. Go on with: tune.py toy.yaml\n"


def test_another_exit_keeps_its_status(path, monkeypatch):
    monkeypatch.setattr(terminal, "_run", lambda *_: sys.exit(Exit.NO_ROOM))
    with pytest.raises(SystemExit) as end:
        terminal.search_and_report(load_experiment(path), command="tune.py toy.yaml")
    assert end.value.code == Exit.NO_ROOM
