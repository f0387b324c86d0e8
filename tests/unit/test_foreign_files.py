"""What strangers publish and disks leave: each is refused in one sentence, or read, and none of its code runs."""

import ast
import contextlib
import json
import os
import re
import sys
from pathlib import Path

import pytest
import torch

from components.errors import InputError
from components.experiment.spec import ModelSpec
from components.inference.generate import reply_to
from components.models import adapter_patterns
from components.models.adapters import load_adapter
from components.models.base.load_base import check_base, config_of, load_base_model
from components.models.digest import CACHE, model_digest
from components.models.load_trained import load_base, load_trained
from components.planning.data_preview import preview_data
from components.registry.checked_export import ExportRequest, export_model
from components.storage.foreign_files import explain_foreign, read_object
from tests.support.toy import tiny_model_directory, toy_conversations, user, write_messages_jsonl
from tests.support.trials import Trials
from workflows import chat, evaluate, export

ROOT = Path(__file__).parents[2]


@pytest.fixture
def model(tmp_path):
    tiny_model_directory(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture(scope="module")
def trials(tmp_path_factory):
    return Trials(tmp_path_factory.mktemp("trials"))


def changed(file, **values):
    """Writes other values into a JSON file."""
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


# Whatever a library raises.


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (KeyError("weight_map"), "'weight_map' is missing"),
        (RecursionError("maximum"), "nested too deeply"),
        (IsADirectoryError(21, "Is a directory", "x"), "Is a directory"),
        (TypeError("one\n  two"), "one two"),
        (ValueError("x" * 999), "x" * 150 + " ... " + "x" * 50),
        (AssertionError(), "AssertionError"),
    ],
)
def test_whatever_a_library_raises_is_one_line_with_its_place(error, reason):
    with pytest.raises(InputError) as said, explain_foreign("a.json", way_out="take another"):
        raise error
    assert str(said.value) == f"a.json: cannot be read ({reason}); take another"
    assert said.value.__cause__ is error


def test_what_is_no_fault_of_a_file_passes():
    for error in (KeyboardInterrupt(), torch.OutOfMemoryError("CUDA out of memory"), InputError("a sentence")):
        with pytest.raises(type(error)) as said, explain_foreign("a.json"):
            raise error
        assert said.value is error


def test_a_panic_of_a_library_in_rust_is_a_sentence(model):
    """It is no Exception: tokenizers panics at a state that it holds for impossible."""
    panic = type("PanicException", (BaseException,), {})
    with pytest.raises(InputError, match="a: cannot be read"), explain_foreign("a"):
        raise panic("index out of bounds")


def test_a_description_is_small_and_a_file(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "deep.json").write_text("[" * 100_000)
    (tmp_path / "latin.json").write_bytes(b'{"a": "\xe9"}')
    (tmp_path / "large.json").write_text('{"a": "' + "x" * 200 + '"}')
    monkeypatch.setattr("components.storage.foreign_files.MAX_JSON_BYTES", 150_000)
    said = {}
    for name in ("pipe", "folder", "list", "deep", "latin", "nowhere"):
        with pytest.raises(InputError) as refused:
            read_object(tmp_path / f"{name}.json")
        said[name] = str(refused.value).removeprefix(f"{tmp_path / name}.json: ")
    assert said == {
        "pipe": "is no file",
        "folder": "is no file",
        "list": "must hold one JSON object, not a list",
        "deep": "cannot be read (nested too deeply)",
        "latin": "cannot be read (byte 8 is not UTF-8)",
        "nowhere": "there is no such file",
    }
    monkeypatch.setattr("components.storage.foreign_files.MAX_JSON_BYTES", 100)
    with pytest.raises(InputError, match=r"large\.json: has 209 bytes, and a file of its kind at most 100"):
        read_object(tmp_path / "large.json")


# Configurations.


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"hidden_size": 10**12}, "hidden_size must be a whole number from 1 to 1048576, not 1000000000000"),
        ({"hidden_size": "32"}, "hidden_size must be a whole number from 1 to 1048576, not '32'"),
        ({"vocab_size": -1}, "vocab_size must be a whole number from 1 to 134217728, not -1"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers must be a whole number from 1 to 4096, not 1000000000"),
        ({"num_attention_heads": True}, "num_attention_heads must be a whole number from 0 to 65536, not True"),
        ({"intermediate_size": [64, 2**40]}, "intermediate_size must be a whole number from 0 to 16777216, not 10995"),
        ({"text_config": {"hidden_size": 0}}, "text_config.hidden_size must be a whole number from 1"),
        ({"model_type": ["llama"]}, "model_type must be the name of a family, not ['llama']"),
        ({"attn_implementation": "evil/kernel"}, "'evil/kernel' names code on the hub, which is never run"),
        ({"rms_norm_eps": "small"}, "config.json: transformers takes it for no model's ("),
        ({"model_type": "unheard-of"}, "config.json: transformers takes it for no model's ("),
    ],
)
def test_a_configuration_that_no_model_has_is_refused_before_anything_is_made(model, values, said):
    changed(model / "config.json", **values)
    with pytest.raises(InputError, match=re.escape(said)):
        check_base(ModelSpec(path=str(model)))
    with pytest.raises(InputError, match=re.escape(said)):
        load_base_model(ModelSpec(path=str(model)))


def test_all_that_is_wrong_with_a_configuration_is_said_together(model):
    changed(model / "config.json", hidden_size=None, vocab_size="x", head_dim=-8)
    with pytest.raises(InputError, match=r"config\.json: head_dim must .*; vocab_size must .*; take the file from"):
        config_of(model)


def test_sizes_that_the_weights_do_not_have_take_no_memory(model):
    """transformers would make random weights of them: 137 GB here."""
    changed(model / "config.json", intermediate_size=2**24, hidden_size=2**9)
    with pytest.raises(InputError, match="have another shape"):
        load_base_model(ModelSpec(path=str(model)))


# Weights.


def header(text, rest=b""):
    return len(text).to_bytes(8, "little") + text + rest


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 8,
        (10**15).to_bytes(8, "little") + b"{",
        header(b"{}"),
        header(b"[" * 50),
        header(b'{"lm_head.weight": {"dtype": "F32", "shape": [10], "data_offsets": [0, 40]}}'),
        header(b'{"lm_head.weight": {"dtype": "F32", "shape": [999999999999], "data_offsets": [0, 4]}}', b"\0" * 4),
        header(b'{"lm_head.weight": {"dtype": "X9", "shape": [], "data_offsets": [0, 0]}}'),
    ],
)
def test_weights_that_lie_about_themselves_are_refused(model, content):
    (model / "model.safetensors").write_bytes(content)
    with pytest.raises(InputError, match=f"^{re.escape(str(model))}"):
        check_base(ModelSpec(path=str(model)))
    with pytest.raises(InputError, match=f"^{re.escape(str(model))}"):
        load_base_model(ModelSpec(path=str(model)))


@pytest.mark.parametrize("index", [{}, {"weight_map": []}, {"weight_map": {"a": 3}}, {"weight_map": {"a": "gone"}}])
def test_an_index_of_nothing_is_refused(model, index):
    (model / "model.safetensors").rename(model / "model-00001-of-00001.safetensors")
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match=f"^{re.escape(str(model))}"):
        check_base(ModelSpec(path=str(model)))


class Planted:
    """Unpickled, it leaves a file."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def test_a_pickle_is_not_run(model, tmp_path):
    (model / "model.safetensors").unlink()
    torch.save({"lm_head.weight": Planted(tmp_path / "ran")}, model / "pytorch_model.bin")
    with pytest.raises(InputError, match=f"^{re.escape(str(model))}"):
        load_base_model(ModelSpec(path=str(model)))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("cache", ["", "[]", '{"stamp": 3}', "\0"])
def test_a_broken_cache_of_a_digest_is_made_again(model, cache):
    whole = model_digest(model)
    (model / CACHE).write_text(cache)
    assert model_digest(model) == whole


# Adapters.


@pytest.fixture
def adapter(trials, tmp_path):
    return trials.packaged("lora", tmp_path / "package") / "adapter"


def on_its_base(adapter, trials):
    return load_adapter(load_base_model(ModelSpec(path=str(trials.model))), adapter)


NEVER_ENDS = r"(.+.+)+\d_"


@pytest.mark.parametrize(
    "values",
    [
        {"target_modules": NEVER_ENDS},
        {"exclude_modules": NEVER_ENDS},
        {"rank_pattern": {NEVER_ENDS: 2}},
        {"alpha_pattern": {NEVER_ENDS: 2}},
        {"modules_to_save": [NEVER_ENDS]},
    ],
)
def test_an_expression_that_does_not_end_is_given_up(adapter, trials, monkeypatch, values):
    assert adapter_patterns.PATTERN_SECONDS == 10
    monkeypatch.setattr(adapter_patterns, "PATTERN_SECONDS", 1.0)
    changed(adapter / "adapter_config.json", **values)
    said = r"adapter_config\.json: a regular expression in it \(.*\) has not been matched .* within 1 seconds; write"
    with pytest.raises(InputError, match=said):
        on_its_base(adapter, trials)


def test_an_expression_that_ends_is_peft_s_own_matter(adapter, trials):
    on_its_base(adapter, trials)
    names = json.loads((adapter / "adapter_config.json").read_text())["target_modules"]
    changed(adapter / "adapter_config.json", target_modules=rf"({'|'.join(names)})")
    assert on_its_base(adapter, trials).peft_config["default"].target_modules.startswith("(")
    changed(adapter / "adapter_config.json", target_modules="(")
    with pytest.raises(InputError, match="is no regular expression"):
        on_its_base(adapter, trials)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"r": 10**9}, "the rank of r is 1000000000, and its weights have ranks from 1 to 4"),
        ({"rank_pattern": {"q_proj": 10**9}}, "the rank of q_proj is 1000000000"),
        ({"r": "4"}, "the rank of r is 4"),
        ({"peft_type": "PROMPT_TUNING"}, "an adapter of peft_type 'PROMPT_TUNING'; LoRA"),
        ({"lora_alpha": []}, "the adapter cannot be put on its base"),
    ],
)
def test_an_adapter_that_is_none_is_refused(adapter, trials, values, said):
    changed(adapter / "adapter_config.json", **values)
    with pytest.raises(InputError, match=re.escape(said)):
        on_its_base(adapter, trials)


# Packages and checkpoints.


@pytest.mark.parametrize("name", ["base.json", "spec.json"])
@pytest.mark.parametrize("content", ["", "[]", '{"model": 3}', "\xff"])
def test_a_package_that_says_nothing_of_itself_is_refused_with_the_file(trials, tmp_path, name, content):
    package = trials.packaged("full", tmp_path / "package")
    (package / name).write_text(content, encoding="latin-1")
    with pytest.raises(InputError, match=rf"package/{re.escape(name)}: cannot be read \("):
        load_trained(package)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"optimizer": {}, "counters": {"x": 1}}'])
def test_a_checkpoint_that_no_trial_can_go_on_from_says_so(trials, tmp_path, content):
    directory, _ = trials.trained("full")
    whole = (directory / "state.json").read_text()
    try:
        (directory / "state.json").write_text(content)
        with pytest.raises(InputError, match=f"^{re.escape(str(directory))}"):
            trials.session.running.load(directory)
    finally:
        (directory / "state.json").write_text(whole)


# Code.


RUNS_CODE = re.compile(r"Auto[A-Z]\w*|pipeline")  # transformers' classes that look into a directory for code
RUN_NONE = {"PeftModel", "GlmConfig", "GenerationConfig"}  # a class of its own library is what they load


def loaders_of(tree):
    """(receiver, the call) of each from_pretrained, from_config and pipeline."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Attribute) and node.func.attr in ("from_pretrained", "from_config"):
                yield getattr(node.func.value, "id", ast.unparse(node.func.value)), node
            elif getattr(node.func, "id", "") == "pipeline":
                yield "pipeline", node


@pytest.mark.parametrize("folder", ["components", "workflows", "experiments"])
def test_every_loader_says_that_no_code_of_a_model_is_run(folder):
    seen = 0
    for path in sorted((ROOT / folder).rglob("*.py")):
        for receiver, call in loaders_of(ast.parse(path.read_text(encoding="utf-8"))):
            seen += 1
            where = f"{path.relative_to(ROOT)}:{call.lineno} {receiver}"
            if receiver in RUN_NONE:
                continue
            assert RUNS_CODE.fullmatch(receiver), f"{where}: does it look for code? add it to one of the two"
            said = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
            assert said.get("trust_remote_code") == "False", f"{where} must say trust_remote_code=False"
    assert seen or folder == "workflows"


def test_torch_unpickles_tensors_only():
    for path in sorted((ROOT / "components").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                said = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert said.get("weights_only") == "True", f"{path.relative_to(ROOT)}:{node.lineno}"


OWN_CODE = """
import pathlib
pathlib.Path({mark!r}).touch()
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
class OwnConfig(LlamaConfig): model_type = "own"
class OwnModel(LlamaForCausalLM): config_class = OwnConfig
class OwnTokenizer(PreTrainedTokenizerFast): pass
"""
AUTO_MAP = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}


@pytest.mark.parametrize("kind", ["own", "llama"])
def test_a_directory_with_code_of_its_own_neither_asks_nor_runs_it(model, tmp_path, monkeypatch, capsys, kind):
    ran = tmp_path / "ran"
    (model / "own.py").write_text(OWN_CODE.format(mark=str(ran)))
    changed(model / "config.json", model_type=kind, auto_map=AUTO_MAP, architectures=["OwnModel"])
    changed(model / "tokenizer_config.json", auto_map={"AutoTokenizer": ["own.OwnTokenizer", "own.OwnTokenizer"]})
    write_messages_jsonl(tmp_path / "data.jsonl", toy_conversations(3))
    asked = []
    monkeypatch.setattr("builtins.input", lambda *prompt: asked.append(prompt) or "y")
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    data, name = str(tmp_path / "data.jsonl"), str(model)
    uses = {
        "preview": lambda: preview_data(name, data),
        "plan": lambda: config_of(model),
        "tune": lambda: check_base(ModelSpec(path=name)),
        "library": lambda: reply_to(load_base(ModelSpec(path=name)), [user("a")], max_new_tokens=1),
        "exported": lambda: export_model(ExportRequest(source=name, target=tmp_path / "library")),
        "chat": lambda: chat.main([name, "--message", "hi", "--max-new-tokens", "1"]),
        "evaluate": lambda: evaluate.main([name, "--data", data]),
        "export": lambda: export.main([name, "--out", str(tmp_path / "out")]),
    }
    for call in uses.values():
        # A family that transformers has needs none of the code that comes with it.
        with contextlib.suppress(*[InputError, SystemExit] if kind == "own" else []):
            call()
    assert (asked, ran.exists(), "own" in sys.modules) == ([], False, False)
    said = capsys.readouterr().err
    assert ("it comes with code of its own, which is never run" in said) == (kind == "own")
