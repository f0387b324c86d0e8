"""gpu.py as a whole, on the CPU with small shapes: every part runs its own code, and none of its checks fails."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.benchmarks.gpu_kit.parts import PARTS

PROGRAM = Path(__file__).parents[2] / "experiments" / "benchmarks" / "gpu.py"


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """What each part said, and the program's output, of one run of them all."""
    out = tmp_path_factory.mktemp("kit") / "out"
    words = ["--device", "cpu", "--shapes", "tiny", "--minutes", "28", "--out", str(out)]
    done = subprocess.run([sys.executable, str(PROGRAM), *words], capture_output=True, text=True, timeout=1750)
    table = json.loads((out / "gpu.json").read_text())
    return {part["part"]: part["checks"] for part in table["parts"]}, done


@pytest.mark.parametrize("name", PARTS)
def test_no_check_fails(parts, name):
    checks = parts[0][name]
    assert [check for check in checks if check["verdict"] == "failed"] == []
    assert any(check["verdict"] == "passed" for check in checks)


def test_the_program_ends_with_status_0(parts):
    assert parts[1].returncode == 0, parts[1].stdout + parts[1].stderr
