"""A tiny ChatGLM3 in its original layout: trained, packaged, exported in every layout, and loaded as strangers load it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from components.conversations.chat_formats import load_chat_format
from components.conversations.tokenizers.load_tokenizer import load_tokenizer
from components.data.prepare import PreparedDataset, prepare
from components.experiment.spec import (
    BatchSpec,
    BudgetSpec,
    DataSpec,
    FullMethod,
    LoraMethod,
    ModelSpec,
    OptimizerSpec,
    TrialSpec,
)
from components.inference.generate import generate_reply
from components.models.base.reference import BaseReference
from components.models.chatglm.load_original import load_original
from components.models.chatglm.tiny_model import make_tiny
from components.models.digest import model_digest
from components.models.export import load_as_trained, load_merged, open_exportable
from components.models.load_trained import load_trained, package
from components.storage.open_folder import folder_at
from components.training.training_data import TrainingData
from components.training.trial_runner import TrialRunner
from components.training.workers import OneWorker
from tests.support.toy import tiny_model_directory, toy_conversations, user
from workflows.export import main

QUICKSTART = "experiments/data/quickstart.jsonl"
MAX_TOKENS = 256
LORA = TrialSpec(
    method=LoraMethod(rank=4, alpha=8.0, target_modules=("query_key_value", "dense_4h_to_h")),
    optimizer=OptimizerSpec(learning_rate=2e-2),
    batch=BatchSpec(rows_per_step=4, rows_per_micro_batch=4),
    budget=BudgetSpec(epochs=1.0, evaluations=1),
    precision="fp32",
)
METHODS = {
    "lora": LORA,
    "qlora": LORA.model_copy(update={"method": LoraMethod(rank=4, alpha=8.0, quantize="nf4")}),
    "full": LORA.model_copy(update={"method": FullMethod(), "optimizer": OptimizerSpec(learning_rate=2e-3)}),
}


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory):
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TURNWISE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """An original directory, with a file of the user's own beside it."""
    directory = tmp_path_factory.mktemp("tiny")
    make_tiny(directory, QUICKSTART)
    (directory / "modeling_chatglm.py").write_text("raise SystemExit('this was run')\n")
    return directory


@pytest.fixture(scope="module")
def packages(tiny, tmp_path_factory):
    """A package of each method, by its name, and the reports of their training."""
    folder = tmp_path_factory.mktemp("trained")
    data = DataSpec(train=QUICKSTART, eval_fraction=0.2, max_tokens=MAX_TOKENS)
    prepared = prepare(data, model_path=tiny, chat_format="auto", storage=folder_at(folder), processes=1)
    pad = load_chat_format(load_tokenizer(tiny)).pad_token_id
    training = TrainingData(dataset=PreparedDataset.open(prepared.directory), max_tokens=MAX_TOKENS, pad_token_id=pad)
    model = ModelSpec(path=str(tiny))
    base = BaseReference(model=model, digest=model_digest(tiny), chat_format="auto")
    session = TrialRunner(model, training, OneWorker(), base, folder_at(folder / "checkpoints"))
    made = {}
    for name, spec in METHODS.items():
        session.start(name, spec)
        progress = session.advance()
        package(folder_at(progress.checkpoint).download(), folder / name)
        made[name] = (folder / name, progress)
    return made


def run(capsys, *arguments):
    """export.py's answer."""
    assert main([*map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def same_weights(left, right):
    assert left.keys() == right.keys()
    return all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("method", ["lora", "qlora", "full"])
def test_a_package_scores_after_loading_what_it_scored_in_training(packages, method):
    from components.training.evaluate import evaluate
    from components.training.loss import ScoredModel

    directory, progress = packages[method]
    loaded = load_trained(directory)
    scored = ScoredModel(loaded.model, precision="fp32", attention="sdpa", device=loaded.device)
    prepared = next((directory.parent / "prepared").iterdir())
    store = PreparedDataset.open(folder_at(prepared)).eval
    loss, _ = evaluate(scored, store, OneWorker(), max_tokens=MAX_TOKENS, rows_per_batch=4, pad_token_id=0)
    assert loss == pytest.approx(progress.eval_loss, abs=1e-5)
    assert loaded.chat_format.name == "chatglm3"


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_merged_export_is_a_plain_model_that_answers_the_same(packages, method, tmp_path, capsys):
    directory, _ = packages[method]
    result = run(capsys, directory, "--layout", "merged", "--out", tmp_path / "out", "--dtype", "fp32")
    assert result["dtype"] == "float32"
    question = "Who are you?"
    expected = generate_reply(load_trained(directory), [user(question)], max_new_tokens=12)
    script = (
        "import sys; from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1]); tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])\n"
        "chat = [{'role': 'user', 'content': sys.argv[2]}]\n"
        "prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors='pt')\n"
        "made = model.generate(**prompt, max_new_tokens=12, do_sample=False)[0, prompt['input_ids'].shape[1]:]\n"
        "assert 'components' not in sys.modules\n"
        "print(type(model).__name__, list(map(int, made)))"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "out"), question]
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=True).stdout
    kind, _, ids = said.partition(" ")
    assert kind == "GlmForCausalLM"
    chat_format = load_trained(directory).chat_format
    made = json.loads(ids)
    stop = next((i for i, token in enumerate(made) if token in chat_format.stop_token_ids), len(made))
    assert chat_format.decode(made[:stop]) == expected


@pytest.mark.parametrize("method", ["lora", "qlora", "full"])
def test_the_chatglm_layout_and_the_glm_layout_hold_the_same_weights(packages, tiny, method, tmp_path, capsys):
    directory, _ = packages[method]
    run(capsys, directory, "--out", tmp_path / "glm")
    result = run(capsys, directory, "--layout", "chatglm", "--out", tmp_path / "chatglm")
    assert result["dtype"] == "float16"
    assert {"config.json", "tokenizer.model", "modeling_chatglm.py", "model.safetensors.index.json"} < set(
        result["files"]
    )
    glm = AutoModelForCausalLM.from_pretrained(tmp_path / "glm", dtype=torch.float16)
    back = load_original(tmp_path / "chatglm", dtype=torch.float16, attention="sdpa")
    assert same_weights(glm.state_dict(), back.state_dict())
    whole = load_merged(open_exportable(directory, None, tmp_path))
    assert all(torch.equal(back.get_parameter(n), p.half()) for n, p in whole.named_parameters())
    index = json.loads((tmp_path / "chatglm" / "model.safetensors.index.json").read_text())
    published = json.loads((tiny / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == published["weight_map"].keys()
    assert (tmp_path / "chatglm" / "tokenizer.model").read_bytes() == (tiny / "tokenizer.model").read_bytes()
    assert not any("lora" in name for name in glm.state_dict())


def test_a_base_model_goes_to_glm_and_back_bit_by_bit(tiny, tmp_path, capsys):
    run(capsys, tiny, "--out", tmp_path / "glm")
    run(capsys, tmp_path / "glm", "--layout", "chatglm", "--out", tmp_path / "chatglm")
    found, wanted = (
        {key: tensor for file in folder.glob("*.safetensors") for key, tensor in load_file(file).items()}
        for folder in (tmp_path / "chatglm", tiny)
    )
    assert same_weights(found, wanted)
    assert AutoTokenizer.from_pretrained(tmp_path / "glm").padding_side == "left"


def test_what_merging_costs_is_measured_with_the_adapter_and_with_the_written_files(packages, tmp_path, capsys):
    plain = run(capsys, packages["lora"][0], "--out", tmp_path / "plain", "--dtype", "fp32", "--data", QUICKSTART)
    assert abs(plain["merge"]["difference"]) < 1e-5
    assert plain["merge"]["num_targets"] > 1000
    quantized = run(capsys, packages["qlora"][0], "--out", tmp_path / "quantized", "--data", QUICKSTART)
    assert 1e-5 < abs(quantized["merge"]["difference"]) < 0.5
    full = run(capsys, packages["full"][0], "--out", tmp_path / "full", "--data", QUICKSTART)
    assert "merge" not in full


def test_an_adapter_goes_out_in_either_layout_and_comes_back_the_same(packages, tiny, tmp_path, capsys):
    directory, _ = packages["lora"]
    theirs = run(capsys, directory, "--layout", "adapter", "--original-names", "--out", tmp_path / "theirs")
    assert theirs["files"] == ["adapter_config.json", "adapter_model.safetensors"]
    config = json.loads((tmp_path / "theirs" / "adapter_config.json").read_text())
    assert config["target_modules"] == ["dense_4h_to_h", "query_key_value"]
    assert config["base_model_name_or_path"] == str(tiny)
    ours = run(capsys, directory, "--layout", "adapter", "--out", tmp_path / "ours")
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} < set(ours["files"])
    base = ModelSpec(path=str(tiny))
    ids = torch.arange(40)[None] + 300
    with torch.no_grad():
        expected = load_trained(directory).model(ids).logits
        for name in ("ours", "theirs"):
            (tmp_path / f"scratch_{name}").mkdir()
            again = load_as_trained(open_exportable(tmp_path / name, base, tmp_path / f"scratch_{name}"))
            torch.testing.assert_close(again(ids).logits, expected, rtol=0, atol=2e-5)
    run(capsys, tmp_path / "theirs", "--base", tiny, "--out", tmp_path / "merged", "--dtype", "fp32")
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    with torch.no_grad():
        torch.testing.assert_close(whole(ids).logits, expected, rtol=0, atol=2e-5)


def test_other_families_have_a_merged_layout_and_are_told_what_they_have_not(tmp_path, capsys):
    tiny_model_directory(tmp_path / "llama")
    result = run(capsys, tmp_path / "llama", "--out", tmp_path / "out")
    assert (result["layout"], result["dtype"]) == ("merged", "float32")
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert "<|im_start|>" in AutoTokenizer.from_pretrained(tmp_path / "out").chat_template
    for layout, what in {
        "glm": "layout glm is for ChatGLM3, and this is a llama: take layout merged",
        "chatglm": "layout chatglm is for ChatGLM3, and this is a llama: take layout merged",
        "adapter": "layout adapter: it was not trained with LoRA",
    }.items():
        with pytest.raises(SystemExit) as ended:
            main([str(tmp_path / "llama"), "--layout", layout, "--out", str(tmp_path / layout)])
        assert ended.value.code == 2
        assert what in capsys.readouterr().err


def test_an_export_overwrites_nothing_and_an_adapter_needs_its_base(packages, tmp_path, capsys):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine.txt").write_text("precious")
    with pytest.raises(SystemExit):
        main([str(packages["lora"][0]), "--out", str(tmp_path / "taken")])
    assert f"target {tmp_path / 'taken'}: is not empty; name a new directory" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([str(packages["lora"][0] / "adapter"), "--out", str(tmp_path / "out")])
    assert "an adapter alone; name the model it belongs to by --base" in capsys.readouterr().err


def test_a_model_of_the_older_layout_is_exported_with_a_template_that_ends_answers(tiny):
    chat_format = load_chat_format(load_tokenizer(tiny), "chatglm3_base_tuning")
    tokenizer = load_tokenizer(tiny)
    tokenizer.chat_template = chat_format.template
    turns = toy_conversations(1)[0].messages[:3]
    chat = [{"role": message.role, "content": message.content} for message in turns]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
    assert ids == chat_format.prompt(turns)
    assert ids.count(chat_format.end_id) == 1
