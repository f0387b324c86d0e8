"""What the parts of the GPU kit share: cases that survive each other, and child processes of which none is left."""

import time

import pytest

from experiments.benchmarks.gpu_kit import children
from experiments.benchmarks.gpu_kit.cases import run_cases
from experiments.benchmarks.gpu_kit.checks import measured
from experiments.benchmarks.gpu_kit.children import Children
from experiments.benchmarks.gpu_kit.settings import Settings
from tests.support import gpu_kit_children


@pytest.fixture
def settings(tmp_path):
    return Settings(device_name="cpu", shapes="tiny", scratch=tmp_path, deadline=time.time() + 100)


def test_a_case_that_fails_or_has_no_time_keeps_no_other_one_from_running(settings):
    def broken():
        yield measured("one", "first")
        raise ValueError("of\nno use")

    cases = [("broken", broken, 1.0), ("long", broken, 1000.0), ("last", lambda: [measured("two", "last")], 1.0)]
    found = [(check.verdict, check.asked, check.seen) for check in run_cases(cases, settings)]
    assert found[0] == ("measured", "one", "first")
    assert found[1] == ("failed", "broken", "ValueError: of no use")
    assert found[2][:2] == ("skipped", "long")
    assert found[2][2].startswith("no time left: ")
    assert found[3] == ("measured", "two", "last")


def checks_of(work, *arguments, settings, count, seconds=90.0):
    with Children(work, *arguments, count=count, settings=settings, seconds=seconds) as started:
        checks = list(started.checks("the processes work"))
    assert not any(process.is_alive() for process in started.processes)
    return [(check.verdict, check.asked, check.seen) for check in checks]


def test_the_checks_of_the_first_process_count(settings):
    found = checks_of(gpu_kit_children.say_and_end, "hello", settings=settings, count=2)
    assert found == [("measured", "the word of process 0 of 2", "hello")]


def test_a_broken_process_fails_its_check_and_the_one_that_waits_for_it_is_ended(settings, monkeypatch):
    monkeypatch.setattr(children, "PATIENCE", 0.5)
    found = checks_of(gpu_kit_children.first_waits_for_the_broken_second, settings=settings, count=2)
    assert ("failed", "the processes work", "ValueError: the second is broken") in found


def test_a_process_that_hangs_is_ended_in_time(settings):
    found = checks_of(gpu_kit_children.wait, settings=settings, count=1, seconds=2.0)
    assert found[-1] == ("failed", "the processes work", "not over after 2 s, and ended")
