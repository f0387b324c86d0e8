"""ChatGLM3 as people use it: a directory in the original layout, a search, a champion, its export, in fresh processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient
from transformers import AutoModelForCausalLM, AutoTokenizer

from components.conversations.chat_formats import load_chat_format
from components.models.chatglm.load_original import load_original
from components.registry.version_tags import tag_version

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "experiments" / "data" / "quickstart.jsonl"
SMOKE = ROOT / "experiments" / "chatglm3_smoke.yaml"
SECONDS = 300
QUESTION = "Who are you?"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("place")


def ran(folder, *command):
    """What a program printed, run as a user would in a folder of their own."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "TURNWISE_CACHE": str(folder / "cache"),
        "OMP_NUM_THREADS": "1",
    }
    environment["CUDA_VISIBLE_DEVICES"] = ""
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def champion(place):
    """The summary of the smoke search."""
    ran(place, "-m", "components.models.chatglm.tiny_model", "tiny", QUICKSTART)
    settings = ["model.path=tiny", f"data.train={QUICKSTART}", "search.max_concurrent_trials=1"]
    overrides = [argument for setting in settings for argument in ("--set", setting)]
    return json.loads(ran(place, ROOT / "workflows" / "tune.py", SMOKE, *overrides, "--json"))


def test_a_search_over_an_original_directory_ends_with_a_champion(place, champion):
    assert champion["outcome"] == "champion"
    assert sorted(trial["branch"] for trial in champion["trials"]) == ["full", "lora"]
    said = ran(place, ROOT / "workflows" / "chat.py", "models:/chatglm3-smoke@champion", "--message", QUESTION)
    assert said.strip()


def test_the_champion_leaves_in_every_layout_with_equal_weights_and_says_the_same(place, champion):
    export = [ROOT / "workflows" / "export.py", "models:/chatglm3-smoke@champion", "--json", "--dtype", "fp32"]
    assert json.loads(ran(place, *export, "--out", "glm"))["layout"] == "glm"
    ran(place, *export, "--out", "chatglm", "--layout", "chatglm")
    ran(place, *export, "--out", "merged", "--layout", "merged")
    model = AutoModelForCausalLM.from_pretrained(place / "merged", trust_remote_code=False)
    back = load_original(place / "chatglm", dtype=torch.float32, attention="sdpa")
    other = AutoModelForCausalLM.from_pretrained(place / "glm", trust_remote_code=False)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, back.get_parameter(name))
        assert torch.equal(parameter, other.get_parameter(name))
    tokenizer = AutoTokenizer.from_pretrained(place / "merged", trust_remote_code=False)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": QUESTION}], add_generation_prompt=True, return_tensors="pt"
    )
    made = model.generate(**prompt, max_new_tokens=256, do_sample=False)[0, prompt["input_ids"].shape[1] :].tolist()
    chat_format = load_chat_format(tokenizer)
    stop = next((i for i, token in enumerate(made) if token in chat_format.stop_token_ids), len(made))
    said = ran(place, ROOT / "workflows" / "chat.py", "models:/chatglm3-smoke@champion", "--message", QUESTION)
    assert chat_format.decode(made[:stop]).strip() == said.strip()


def test_what_is_found_out_later_is_kept_on_the_version_by_alias_or_number(place, champion):
    uri = f"sqlite:///{place / 'mlflow.db'}"
    assert tag_version("models:/chatglm3-smoke@champion", {"turnwise.merge": "costs nothing"}, uri) == "1"
    assert tag_version("models:/chatglm3-smoke/1", {"another": "fact"}, uri) == "1"
    tags = MlflowClient(tracking_uri=uri).get_model_version("chatglm3-smoke", "1").tags
    assert (tags["turnwise.merge"], tags["another"]) == ("costs nothing", "fact")
