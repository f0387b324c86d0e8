"""Whatever lies in a model's directory, it is loaded or refused in words: no other exception, no hang, no room for terabytes.

What was found so lies in CASES. FUZZ_INPUTS=N tries N inputs of each kind.
"""

import json
import os
import resource
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from components.errors import InputError
from components.experiment.spec import ModelSpec
from components.inference.generate import reply_to
from components.models import adapter_patterns
from components.models.base.load_base import check_base
from components.models.chatglm.adapter_conversion import adapter_to_glm
from components.models.chatglm.config import glm_config
from components.models.chatglm.load_original import load_original
from components.models.chatglm.tiny_model import make_tiny
from components.models.export import load_as_trained, open_exportable
from components.models.load_trained import load_base, load_trained
from tests.support.fuzzing import cases, mutate_bytes, mutate_tree
from tests.support.toy import user
from tests.support.toy_chatglm import formula_directory, original_adapter
from tests.support.trials import Trials

ROOM = 6 * 2**30  # bytes that a load may ask for beyond what the process has
MAX_MESSAGE = 3000
ODD_BYTES = (b"\0", b"\xff\xfe", b'"', b"{", b"}", b"[" * 40, b"9" * 20, b"NaN", b"\x7f" * 8)
LEAVES = (
    None, True, -1, 0, 1, 3, 2**31, 10**12, -(10**12), 10**400, 1.5, 1e308, float("nan"), float("inf"), "", "x", "../x",
    "(x+x+)+y", "a" * 5000, "é\ud800", [], {}, [1], ["x"], {"a": 1}, [[]],
)  # fmt: skip


KINDS = (
    "a model", "pickled weights", "a model in shards", "a ChatGLM3", "a ChatGLM3 with its tokenizer", "a pickled ChatGLM3",
    "an adapter", "an original adapter", "the package of an adapter", "a package", "a checkpoint of an adapter",
    "a checkpoint", "a trial that goes on",
)  # fmt: skip


@pytest.fixture(scope="module")
def trials(tmp_path_factory):
    return Trials(tmp_path_factory.mktemp("trials"))


@pytest.fixture(scope="module")
def directories(trials, tmp_path_factory):
    """One directory of each kind, by its name."""
    folder = tmp_path_factory.mktemp("directories")
    shutil.copytree(trials.model, folder / "pickled", ignore=shutil.ignore_patterns("*.safetensors"))
    torch.save(load_file(trials.model / "model.safetensors"), folder / "pickled" / "pytorch_model.bin")
    shutil.copytree(trials.model, folder / "sharded", ignore=shutil.ignore_patterns("*.safetensors"))
    load_base(ModelSpec(path=str(trials.model))).model.save_pretrained(folder / "sharded", max_shard_size="20KB")
    make_tiny(folder / "tiny")
    shutil.copytree(formula_directory(folder / "original"), trials.folder / "original")
    original_adapter(folder / "adapter")
    return {
        "a model": trials.model,
        "pickled weights": folder / "pickled",
        "a model in shards": folder / "sharded",
        "a ChatGLM3": folder / "original",
        "a ChatGLM3 with its tokenizer": folder / "tiny",
        "a pickled ChatGLM3": formula_directory(folder / "pickled original", suffix=".bin"),
        "an adapter": trials.packaged("lora", folder / "lora") / "adapter",
        "an original adapter": folder / "adapter",
        "the package of an adapter": folder / "lora",
        "a package": trials.packaged("full", folder / "full"),
        "a checkpoint of an adapter": trials.trained("lora")[0],
        "a checkpoint": trials.trained("full")[0],
        "a trial that goes on": trials.trained("full")[0],
    }


def load(kind, directory, trials, tmp_path):
    """As chat, evaluate, export, a resumed trial, and the check before a search do."""
    model = ModelSpec(path=str(directory))
    match kind:
        case "a ChatGLM3" | "a pickled ChatGLM3":
            check_base(model)
            load_original(directory, dtype=torch.float32, attention="sdpa")
        case "an original adapter":
            adapter_to_glm(directory, tmp_path / "glm", glm_config(trials.folder / "original"))
        case "an adapter":
            load_as_trained(open_exportable(directory, ModelSpec(path=str(trials.model)), tmp_path))
        case "a trial that goes on":
            trials.session.running.load(directory)
        case "a model" | "pickled weights" | "a model in shards" | "a ChatGLM3 with its tokenizer":
            check_base(model)
            reply_to(load_base(model), [user("a")], max_new_tokens=1)
        case _:
            reply_to(load_trained(directory), [user("a")], max_new_tokens=1)


def break_one(chance, directory):
    """Breaks one file of a directory. Returns what was done."""
    file = chance.choice(sorted(path for path in directory.rglob("*") if path.is_file()))
    content = file.read_bytes()
    what = chance.random()
    if what < 0.06:
        file.unlink()
    elif what < 0.1:
        file.unlink()
        chance.choice((file.mkdir, lambda: file.symlink_to("nowhere")))()
    elif what < 0.2:
        os.truncate(file, chance.randrange(len(content) + 1))
    elif file.suffix == ".json" and what < 0.8:
        file.write_text(json.dumps(mutate_tree(chance, json.loads(content), lambda chance: chance.choice(LEAVES))))
    elif len(content) > 4096 and what < 0.7:  # the head of weights
        head = chance.choice((64, 1024, 4096))
        file.write_bytes(mutate_bytes(chance, content[:head], ODD_BYTES) + content[head:])
    else:
        file.write_bytes(mutate_bytes(chance, content, ODD_BYTES))
    return f"{file.relative_to(directory)} {what:.2f}"


@pytest.fixture(autouse=True)
def _bounded(monkeypatch, tmp_path):
    """Little memory, little time for expressions, and a cache that goes."""
    monkeypatch.setattr(adapter_patterns, "PATTERN_SECONDS", 1.0)
    monkeypatch.setenv("TURNWISE_CACHE", str(tmp_path / "cache"))
    torch.set_num_threads(1)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + ROOM, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def outcome(kind, directory, trials, tmp_path):
    """The sentence of a refusal; "" if it was loaded."""
    try:
        load(kind, directory, trials, tmp_path)
    except InputError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("kind", KINDS)
def test_a_broken_directory_is_loaded_or_refused_in_words(kind, directories, trials, tmp_path):
    whole = directories[kind]
    assert outcome(kind, whole, trials, tmp_path) == ""
    refused = 0
    for chance in cases(25):
        broken = tmp_path / "broken"
        shutil.copytree(whole, broken)
        done = break_one(chance, broken)
        try:
            said = outcome(kind, broken, trials, tmp_path)
            assert len(said) < MAX_MESSAGE
            refused += bool(said)
        except BaseException as error:
            error.add_note(f"{kind}: {done}, {chance.getstate()[1][0]}")
            raise
        shutil.rmtree(broken)
    assert refused > 0
