"""The frame of the GPU kit: parts in processes of their own, and the table that grows."""

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from experiments.benchmarks import gpu_kit
from experiments.benchmarks.gpu_kit import checks, table
from experiments.benchmarks.gpu_kit.command import main, parse
from experiments.benchmarks.gpu_kit.parts import PARTS, Part
from experiments.benchmarks.gpu_kit.run_parts import run_part, run_parts
from experiments.benchmarks.gpu_kit.table import PartResult
from tests.support.servers import until

BEGIN = "from experiments.benchmarks.gpu_kit.checks import *\ndef run(settings):\n"
MODULES = {
    "good": "    yield passed_if(settings.tiny and not settings.on_gpu, 'the settings arrive', 'they do', tokens=3)\n",
    "raises": "    yield passed_if(True, 'before', 'said')\n    raise ValueError('a\\nlong story')\n",
    "dies": "    yield passed_if(True, 'before', 'said')\n    import os\n    os._exit(3)\n",
    "hangs": """    import subprocess, sys, time
    child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(300)'])
    yield measured('its child', str(child.pid))
    time.sleep(300)
""",
    "missing": "    yield skipped('flash attention', 'no package flash-attn')\n",
    "silent": "    yield from ()\n",
}


@pytest.fixture
def parts(tmp_path, monkeypatch):
    """Parts by name, whose modules are MODULES."""
    package = tmp_path / "planted_parts"
    package.mkdir()
    for name, body in MODULES.items():
        (package / f"{name}.py").write_text(BEGIN + body)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    return {name: Part(name=name, question=f"{name}?", share=1.0, package=package.name) for name in MODULES}


def of(part, tmp_path, seconds=60.0):
    return run_part(part, device="cpu", shapes="tiny", seconds=seconds, log=tmp_path / "log")


def verdicts(result):
    return [(check.verdict, check.asked) for check in result.checks]


def test_a_part_gets_its_settings_and_gives_its_checks(tmp_path, parts):
    result = of(parts["good"], tmp_path)
    assert verdicts(result) == [("passed", "the settings arrive")]
    assert result.checks[0].figures == {"tokens": 3}
    assert not result.failed


def test_an_error_is_a_check_that_failed_and_what_came_before_it_stays(tmp_path, parts):
    result = of(parts["raises"], tmp_path)
    assert verdicts(result) == [("passed", "before"), ("failed", "the part ends without an error")]
    assert result.checks[1].seen == "ValueError: a long story"
    assert "Traceback" in (tmp_path / "log").read_text()


def test_the_death_of_its_process_is_a_check_that_failed(tmp_path, parts):
    result = of(parts["dies"], tmp_path)
    assert verdicts(result) == [("passed", "before"), ("failed", "the part ends by itself")]
    assert "status 3" in result.checks[1].seen


def test_a_part_that_hangs_is_ended_with_all_that_it_started(tmp_path, parts, monkeypatch):
    monkeypatch.setattr("experiments.benchmarks.gpu_kit.run_parts.GRACE", 8.0)
    result = of(parts["hangs"], tmp_path, seconds=0.0)
    assert verdicts(result) == [("measured", "its child"), ("failed", "the part ends in time")]
    until(lambda: not psutil.pid_exists(int(result.checks[0].seen)), seconds=30)


def test_what_is_skipped_passes_and_a_part_that_says_nothing_does_not(tmp_path, parts):
    assert not of(parts["missing"], tmp_path).failed
    assert of(parts["silent"], tmp_path).failed


def test_the_time_is_shared_out_and_what_one_part_leaves_goes_to_the_others(tmp_path, monkeypatch):
    given = []

    def run(part, *, seconds, **others):
        given.append(seconds)
        return PartResult(part=part, checks=(), seconds=0.0)

    monkeypatch.setattr("experiments.benchmarks.gpu_kit.run_parts.run_part", run)
    shares = [Part(name=name, question="", share=share) for name, share in (("a", 2.0), ("b", 1.0), ("c", 1.0))]
    list(run_parts(shares, device="cpu", shapes="tiny", seconds=100.0, logs=tmp_path))
    assert given == pytest.approx([50.0, 50.0, 100.0], abs=1.0)


def test_the_table_grows_part_by_part_and_the_status_says_whether_all_passed(tmp_path, parts, monkeypatch, capsys):
    monkeypatch.setattr("experiments.benchmarks.gpu_kit.command.PARTS", parts)
    grown, written = [], table.write

    def write(results, about, folder):
        written(results, about, folder)
        grown.append([part["part"] for part in json.loads((folder / "gpu.json").read_text())["parts"]])

    monkeypatch.setattr(table, "write", write)
    words = ["--device", "cpu", "--shapes", "tiny", "--out", str(tmp_path / "out"), "--minutes", "1", "--commit", "abc"]
    assert main([*words, "--only", "good,raises"], description="") == 1
    assert grown == [["good"], ["good", "raises"]]
    text = (tmp_path / "out" / "gpu.md").read_text()
    assert "- commit: abc" in text
    assert "| failed | the part ends without an error | ValueError: a long story |" in text
    assert "good: 1 passed" in capsys.readouterr().out
    assert main([*words, "--only", "good,missing"], description="") == 0


def test_a_program_that_is_ended_ends_its_part(tmp_path):
    program = Path(gpu_kit.__file__).parents[1] / "gpu.py"
    words = ["--device", "cpu", "--shapes", "tiny", "--only", "memory", "--out", str(tmp_path)]
    running = subprocess.Popen([sys.executable, str(program), *words], stdout=subprocess.DEVNULL)
    try:
        until(lambda: (tmp_path / "memory.log").exists() and psutil.Process(running.pid).children(), seconds=120)
        (part,) = psutil.Process(running.pid).children()
        running.terminate()
        assert running.wait(30) == 143
        until(lambda: not part.is_running(), seconds=30)
    finally:
        running.kill()


def test_an_unknown_part_is_named_with_those_there_are(capsys):
    with pytest.raises(SystemExit):
        parse(["--out", "x", "--only", "equality,sped"], "")
    assert f"sped: no such part; there are {', '.join(PARTS)}" in capsys.readouterr().err


def test_a_line_that_was_cut_short_is_left_out(tmp_path):
    file = tmp_path / "checks.jsonl"
    checks.append(file, checks.measured("a", "1"))
    with file.open("a") as opened:
        opened.write('{"asked": "b", "se')
    assert [check.asked for check in checks.read(file)] == ["a"]
