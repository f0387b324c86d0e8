"""gpu.py, on the CPU with small shapes: its parts run in processes of their own, and none of their checks fails."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.benchmarks.gpu_kit.parts import PARTS

PROGRAM = Path(__file__).parents[2] / "experiments" / "benchmarks" / "gpu.py"


@pytest.mark.long  # five minutes for its search; unit/test_gpu_kit_*.py run each other part
def test_no_check_fails_and_the_program_ends_with_status_0(tmp_path):
    words = [
        "--device",
        "cpu",
        "--shapes",
        "tiny",
        "--minutes",
        "28",
        "--out",
        str(tmp_path),
    ]
    done = subprocess.run([sys.executable, str(PROGRAM), *words], capture_output=True, text=True, timeout=1750)
    assert done.returncode == 0, done.stdout + done.stderr
    parts = {part["part"]: part["checks"] for part in json.loads((tmp_path / "gpu.json").read_text())["parts"]}
    assert list(parts) == list(PARTS)
    for checks in parts.values():
        assert [check for check in checks if check["verdict"] == "failed"] == []
        assert any(check["verdict"] == "passed" for check in checks)
