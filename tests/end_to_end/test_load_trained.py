"""A checkpoint is loaded by another process in another directory."""

import json
import os
import shutil
import subprocess
import sys

from tests.support.trials import package_without_base

LOAD_ELSEWHERE = """
import sys
from pathlib import Path
from components.models.load_trained import load_trained
print(load_trained(Path(sys.argv[1])).reference.model.path)
"""


def test_a_checkpoint_of_a_fetched_model_is_loaded_from_any_directory(trials, tmp_path):
    """The fetched name stands for a folder of the cache, here one that holds the tiny model."""
    name = "smollm2-135m-instruct"
    shutil.copytree(trials.model, tmp_path / "cache" / name)
    directory = package_without_base(trials, tmp_path, "lora")
    reference = json.loads((directory / "base.json").read_text())
    reference["model"]["path"] = name
    (directory / "base.json").write_text(json.dumps(reference))
    (tmp_path / "somewhere").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", LOAD_ELSEWHERE, str(directory)],
        cwd=tmp_path / "somewhere",
        env=os.environ | {"TURNWISE_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout.strip() == name, done.stderr[-2000:]
