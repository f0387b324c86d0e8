"""The wheel as somebody gets it who has no checkout: its own environment, its own folder, one command."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.support.toy import tiny_model_directory, toy_conversations, write_messages_jsonl

ROOT = Path(__file__).parents[2]
EXPERIMENT = """
name: toy
model: {path: model}
data: {train: data.jsonl, eval_fraction: 0.4, max_tokens: 128}
trial:
  method: {kind: lora, rank: 4}
  optimizer: {learning_rate: 5.0e-3}
  budget: {epochs: 2, evaluations: 1}
  batch: {rows_per_step: 2, rows_per_micro_batch: 2}
  precision: fp32
search: {trials: 1, space: {lora: {method: {kind: lora}}}}
"""
SECONDS = 240


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with an experiment, far from the checkout; `bin` is the environment that the wheel was installed into."""
    folder = tmp_path_factory.mktemp("place")
    tiny_model_directory(folder / "model")
    write_messages_jsonl(folder / "data.jsonl", toy_conversations(60))
    (folder / "toy.yaml").write_text(EXPERIMENT)
    pip = ["-m", "pip", "--quiet", "--disable-pip-version-check"]
    for name in ("components", "workflows"):  # copies: setuptools would find files of older builds beside the originals
        shutil.copytree(ROOT / name, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "requirements.txt", "README.md"):
        shutil.copy(ROOT / name, folder / "source")
    done(folder, sys.executable, *pip, "wheel", "--no-deps", "--wheel-dir", "dist", "./source")
    (wheel,) = (folder / "dist").glob("turnwise-*.whl")
    # What the wheel requires is here already, and is found there, too: to install it again takes minutes.
    done(folder, sys.executable, "-m", "venv", "--without-pip", "environment")
    (libraries,) = (folder / "environment").glob("lib/python*/site-packages")
    (libraries / "required.pth").write_text(sysconfig.get_path("purelib"))
    there = ["--python", str(folder / "environment" / "bin" / "python")]
    done(folder, sys.executable, *pip, *there, "install", "--no-deps", str(wheel))
    done(folder, sys.executable, *pip, *there, "check")
    return folder


def done(folder, *command, seconds=SECONDS):
    """What the command printed, having ended well, with nothing of this process' environment that points to the checkout."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    ended = subprocess.run(
        list(command),
        cwd=folder,
        env={**environment, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    return ended.stdout


def turnwise(folder, *arguments):
    return done(folder, str(folder / "environment" / "bin" / "turnwise"), *arguments)


def test_the_wheel_brings_its_own_code_and_every_page_template(place):
    printed = done(place, "environment/bin/python", "-c", "import components, workflows; print(components.__path__[0])")
    assert Path(printed.strip()).is_relative_to(place / "environment")
    pages = sorted(str(page.relative_to(ROOT)) for page in (ROOT / "components").rglob("*.jinja"))
    assert len(pages) == 2
    assert all(
        (Path(printed.strip()).parent / page).is_file() for page in (*pages, "components/data/general_text.jsonl")
    )


def test_its_command_previews_trains_and_chats(place):
    assert "60 conversations" in turnwise(place, "preview", "toy.yaml", "--records", "1", "--html", "preview.html")
    assert (place / "preview.html").read_text(encoding="utf-8").count("<html") == 1
    trained = turnwise(place, "train", "toy.yaml")
    (checkpoint,) = (place / "runs").glob("*/*/checkpoints/*/step_*")
    assert str(checkpoint.relative_to(place)) in trained.replace(f"{place}/", "")
    assert turnwise(place, "chat", str(checkpoint), "--message", "say ab").strip()


def test_its_command_names_its_programs_and_says_how_it_was_called(place):
    helped = turnwise(place, "tune", "--help")
    assert helped.startswith("usage: turnwise tune ")
    assert "chat" in turnwise(place, "--help")
