"""The product's programs, started as people start them, and what they leave."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.toy_search import toy_search_folder
from workflows import tune

ROOT = Path(__file__).parents[2]
SECONDS = 480  # a program; on a quiet machine none takes a third of it
PROBES = '{"messages": [{"role": "user", "content": "say ab"}], "expect": "ab"}\n'


def environment():
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def command(workflow, *arguments):
    return [sys.executable, str(ROOT / "workflows" / f"{workflow}.py"), *map(str, arguments)]


def ran(folder, workflow, *arguments):
    return subprocess.run(
        command(workflow, *arguments),
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


def refused(capsys, *arguments):
    """(status, message) of a search that must not begin."""
    with pytest.raises(SystemExit) as ended:
        tune.main(list(arguments))
    return ended.value.code, capsys.readouterr().err


def summary_of(process):
    assert process.returncode == 0, process.stderr[-2000:]
    return json.loads(process.stdout)


def new_folder(folder, *, trials=4, at_once=1):
    """A folder with a toy search that registers its best trial as `toy`.

    One trial at a time takes one slot. Another one costs more processor time than what these trials compute.
    """
    search = f"{{trials: {trials}, max_concurrent_trials: {at_once}}}"
    toy_search_folder(folder, f"{{search: {search}, registry: {{name: toy, probes: probes.jsonl}}}}")
    (folder / "probes.jsonl").write_text(PROBES)
    return folder


def outcomes(summary):
    """What a search came to, apart from its ids and times."""
    return {
        trial["number"]: (trial["branch"], trial["varied"], trial["state"], trial["target_tokens"], trial["eval_loss"])
        for trial in summary["trials"]
    }
