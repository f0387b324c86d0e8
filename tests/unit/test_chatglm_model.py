"""ChatGLM3 checkpoints: read as Glm they answer as the original code did, and what is no ChatGLM3 is called by its name."""

from __future__ import annotations

import json
import math
import re
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GlmForCausalLM

from components.conversations.chat_formats.rendered import RenderedConversation
from components.data.collate import collate
from components.data.token_store import Entry, TokenStore, write_store
from components.experiment.spec import ModelSpec
from components.models.base.load_base import load_base_model, resolve_model
from components.models.chatglm.config import glm_config
from components.models.chatglm.convert import RECORD, Conversion, convert_once
from components.models.chatglm.key_mapping import original_tensors
from components.models.chatglm.load_original import load_original
from components.models.chatglm.read_weights import shapes_of
from components.models.chatglm.save import write_original
from components.training.loss import ScoredModel, isolates_packed_rows
from tests.support.toy_chatglm import FREQUENCIES, formula_directory, formula_weights, parity

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    torch.set_num_threads(1)
    monkeypatch.setenv("TURNWISE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return formula_directory(tmp_path_factory.mktemp("original"))


@pytest.fixture(scope="module")
def model(original):
    torch.set_num_threads(1)
    return load_original(original, dtype=torch.float32, attention="sdpa")


def left_padded(sequences):
    """(token ids, attention mask, positions) with padding 0 on the left."""
    longest = max(map(len, sequences))
    ids, mask, positions = (torch.zeros(len(sequences), longest, dtype=torch.long) for _ in range(3))
    for row, sequence in enumerate(sequences):
        ids[row, -len(sequence) :] = torch.tensor(sequence)
        mask[row, -len(sequence) :] = 1
        positions[row, -len(sequence) :] = torch.arange(len(sequence))
    return ids, mask, positions


# ---- the same answers as the original code


def test_logits_are_those_of_the_original_code(model):
    ids = torch.tensor([parity()["ids"]])
    with torch.no_grad():
        logits = model(ids).logits[0]
    torch.testing.assert_close(logits[-1], torch.tensor(parity()["logits_last"]), rtol=0, atol=1e-5)
    torch.testing.assert_close(logits[5, :32], torch.tensor(parity()["logits_pos5_first32"]), rtol=0, atol=1e-5)


def test_logits_are_those_of_the_original_code_far_from_the_start_too(model):
    ids = torch.tensor([parity()["ids"]])
    with torch.no_grad():
        logits = model(ids, position_ids=torch.arange(ids.shape[1])[None] + 2000, use_cache=False).logits[0]
    torch.testing.assert_close(logits[-1, :32], torch.tensor(parity()["logits_far_last_first32"]), rtol=0, atol=1e-5)


def test_greedy_tokens_are_those_of_the_original_code(model):
    ids = torch.tensor([parity()["ids"]])
    said = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False, eos_token_id=None
    )
    assert said[0, ids.shape[1] :].tolist() == parity()["greedy"]


def test_loss_and_gradients_of_a_padded_batch_are_those_of_the_original_code(original):
    model = load_original(original, dtype=torch.float32, attention="sdpa")
    ids, mask, positions = left_padded(parity()["batch"])
    labels = torch.where((mask == 1) & (positions >= 3), ids, -100)
    loss = model(ids, attention_mask=mask, position_ids=positions, labels=labels, use_cache=False).loss
    loss.backward()
    assert float(loss.detach()) == pytest.approx(parity()["loss"], abs=1e-5)
    gradients = dict(original_tensors({name: weight.grad for name, weight in model.named_parameters()}))
    assert gradients.keys() == parity()["grads"].keys()
    for key, expected in parity()["grads"].items():
        assert float(gradients[key].norm()) == pytest.approx(expected["norm"], rel=1e-4), key
        assert gradients[key].flatten()[:4].tolist() == pytest.approx(expected["first4"], rel=1e-3, abs=1e-5), key


def test_our_own_loss_is_that_of_the_original_code_packed_or_padded(model, tmp_path):
    conversations = [
        RenderedConversation(
            token_ids=tuple(sequence),
            target_weights=(0.0,) * 3 + (1.0,) * (len(sequence) - 3),
            turn_ends=(len(sequence),),
        )
        for sequence in parity()["batch"]
    ]
    write_store(tmp_path / "store.arrow", [Entry(source="", rendered=conversation) for conversation in conversations])
    store = TokenStore(tmp_path / "store.arrow")
    scored = ScoredModel(model, precision="fp32", attention="sdpa", device=CPU)
    with torch.no_grad():
        for rows in ([(0, 1, 2)], [(0,), (1,), (2,)], [(2, 0), (1,)]):
            batch = collate(store, rows, pad_token_id=0)
            assert float(scored(batch)) / batch.num_targets == pytest.approx(parity()["loss"], abs=1e-5)
        alone = [collate(store, [(index,)], pad_token_id=0) for index in range(3)]
        in_turn = sum(float(scored(batch)) for batch in alone) / sum(batch.num_targets for batch in alone)
    assert in_turn == pytest.approx(parity()["loss"], abs=1e-5)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_conversations_do_not_see_each_other(original, attention):
    model = load_original(original, dtype=torch.float32, attention=attention)
    assert isolates_packed_rows(model, attention, CPU)


def test_with_a_cache_or_a_mask_of_ones_they_would_see_each_other(model):
    """Why every forward pass of training is made without both: transformers 5 then mixes the rows without a word."""
    first, second = torch.tensor([parity()["ids"][:8]]), torch.tensor([parity()["ids"][8:16]])
    packed = torch.cat([first, second], dim=1)
    positions = torch.arange(8).repeat(2)[None]
    with torch.no_grad():
        alone = model(second, use_cache=False).logits
        right = model(packed, position_ids=positions, use_cache=False).logits[:, 8:]
        cached = model(packed, position_ids=positions).logits[:, 8:]
        masked = model(packed, position_ids=positions, attention_mask=torch.ones_like(packed), use_cache=False).logits
    torch.testing.assert_close(right, alone, rtol=0, atol=1e-5)
    assert (cached - alone).abs().max() > 0.1
    assert (masked[:, 8:] - alone).abs().max() > 0.1


# ---- reading


def test_a_config_is_mapped_field_by_field(tmp_path):
    directory = formula_directory(tmp_path, rope_ratio=50, seq_length=32768, layernorm_epsilon=1e-6)
    config = glm_config(directory)
    assert (config.vocab_size, config.hidden_size, config.intermediate_size) == (512, 64, 128)
    assert (config.num_hidden_layers, config.num_attention_heads, config.num_key_value_heads) == (2, 4, 2)
    assert (config.head_dim, config.max_position_embeddings, config.rms_norm_eps) == (16, 32768, 1e-6)
    assert config.rope_parameters == {"rope_type": "default", "rope_theta": 500000.0, "partial_rotary_factor": 0.5}
    assert (config.attention_bias, config.tie_word_embeddings) == (True, False)
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (1, 2, 0)


def test_at_its_real_size_the_200_published_keys_are_the_311_of_glm(tmp_path):
    real = {
        "padded_vocab_size": 65024,
        "hidden_size": 4096,
        "ffn_hidden_size": 13696,
        "num_layers": 28,
        "num_attention_heads": 32,
        "kv_channels": 128,
        "seq_length": 8192,
    }
    shapes = shapes_of(glm_config(formula_directory(tmp_path, **real)))
    assert (len(shapes), sum(shape.numel() for shape in shapes.values())) == (311, 6_243_584_000)
    weights = dict(original_tensors({name: torch.empty(shape, device="meta") for name, shape in shapes.items()}))
    assert len({*weights, FREQUENCIES}) == 200
    assert weights["transformer.encoder.layers.27.self_attention.query_key_value.weight"].shape == (4608, 4096)


def test_without_multi_query_attention_every_head_has_its_own_keys(tmp_path):
    assert glm_config(formula_directory(tmp_path, multi_query_attention=False)).num_key_value_heads == 4


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_shards_of_both_kinds_give_the_weights_bit_by_bit(tmp_path, suffix):
    directory = formula_directory(tmp_path / "original", suffix=suffix)
    model = load_original(directory, dtype=torch.float32, attention="sdpa")
    assert not any(parameter.is_meta for parameter in [*model.parameters(), *model.buffers()])
    back = dict(original_tensors(model.state_dict()))
    expected = formula_weights()
    assert back.keys() == expected.keys()
    assert all(torch.equal(back[key], expected[key]) for key in expected)


def test_weights_take_the_dtype_that_is_asked_for(original):
    model = load_original(original, dtype=torch.bfloat16, attention="sdpa")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.model.rotary_emb.inv_freq.dtype == torch.float32
    loaded = load_base_model(ModelSpec(path=str(original), dtype="bf16"))
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, loaded.get_parameter(name))


def test_an_original_directory_is_converted_once_and_a_damaged_conversion_again(original):
    directory = convert_once(original, torch.float32)
    record = Conversion.model_validate_json((directory / RECORD).read_text())
    assert set(record.files) == {
        "config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    }
    made = {path.name: path.stat().st_mtime_ns for path in directory.iterdir()}
    assert convert_once(original, torch.float32) == directory
    assert {path.name: path.stat().st_mtime_ns for path in directory.iterdir()} == made
    (directory / "model-00002-of-00002.safetensors").write_bytes(b"torn")
    assert convert_once(original, torch.float32) == directory
    assert Conversion.model_validate_json((directory / RECORD).read_text()).files == record.files
    assert convert_once(original, torch.bfloat16) != directory
    plain = AutoModelForCausalLM.from_pretrained(directory, trust_remote_code=False)
    assert isinstance(plain, GlmForCausalLM)
    back = dict(original_tensors(plain.state_dict()))
    assert all(torch.equal(back[key], tensor) for key, tensor in formula_weights().items())


def test_workers_that_want_it_at_once_get_one_conversion(original, tmp_path):
    with ThreadPoolExecutor(3) as workers:
        found = list(workers.map(lambda _: convert_once(original, torch.float32), range(3)))
    assert len(set(found)) == 1
    names = sorted(path.name for path in (tmp_path / "cache" / "chatglm").iterdir())
    assert names == [found[0].name, f"{found[0].name}.lock"]


def test_a_cache_without_room_is_not_needed_unless_to_quantize(original, monkeypatch):
    monkeypatch.setattr("components.models.base.load_base.convert_once", lambda directory, dtype: None)
    model = load_base_model(ModelSpec(path=str(original)))
    assert torch.equal(model.lm_head.weight, formula_weights()["transformer.output_layer.weight"])
    with pytest.raises(ValueError, match="set TURNWISE_CACHE to a folder on another"):
        load_base_model(ModelSpec(path=str(original)), quantize="nf4")


# ---- writing


def test_a_model_written_back_has_the_published_keys_bit_by_bit(original, model, tmp_path):
    (original / "modeling_chatglm.py").write_text("# the user's own copy\n")
    copied = write_original(model.state_dict(), model.config, tmp_path / "out", base=original, shard_bytes=100_000)
    assert copied == ["modeling_chatglm.py"]
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    published = json.loads((original / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == published["weight_map"].keys()
    assert len(set(index["weight_map"].values())) > 2
    found = {}
    for file in sorted(set(index["weight_map"].values())):
        found |= load_file(tmp_path / "out" / file)
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in found.values())
    expected = {**formula_weights(), FREQUENCIES: load_file(original / "part-2.safetensors")[FREQUENCIES]}
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) and found[key].dtype == expected[key].dtype for key in expected)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config == parity()["config"]


def test_what_servers_look_for_is_in_a_config_written_without_a_base(model, tmp_path):
    write_original(model.state_dict(), model.config, tmp_path, base=None, dtype=torch.float16)
    config = json.loads((tmp_path / "config.json").read_text())
    assert "THUDM/chatglm3-6b" in config["_name_or_path"]
    assert config["architectures"] == ["ChatGLMModel"]
    assert config["torch_dtype"] == "float16"
    assert "rope_ratio" not in config
    again = load_original(tmp_path, dtype=torch.float16, attention="sdpa")
    assert all(torch.equal(again.get_parameter(n), p.half()) for n, p in model.named_parameters())


def test_the_rope_ratio_survives_the_round_trip(tmp_path):
    directory = formula_directory(tmp_path / "long", rope_ratio=50, seq_length=32768)
    model = load_original(directory, dtype=torch.float32, attention="sdpa")
    write_original(model.state_dict(), model.config, tmp_path / "out", base=directory)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["rope_ratio"] == 50


# ---- wrong directories, each named as what it is


WRONG = {
    "the first ChatGLM": ({"position_encoding_2d": True}, "the first ChatGLM-6B"),
    "ChatGLM2": ({"_name_or_path": "THUDM/chatglm2-6b"}, "ChatGLM2, not ChatGLM3"),
    "GLM-4 by its vocabulary": ({"padded_vocab_size": 151552}, "GLM-4, not ChatGLM3"),
    "GLM-4 by its ends": ({"eos_token_id": [1, 2, 3]}, "GLM-4, not ChatGLM3"),
    "GLM-4V": ({"vision_config": {"layers": 2}}, "a vision model"),
    "quantized": ({"quantization_bit": 4}, "quantized to 4 bits"),
    "quantized by others": ({"quantization_config": {"quant_method": "gptq"}}, "quantized"),
    "P-tuning": ({"pre_seq_len": 128}, "a P-tuning checkpoint"),
    "no RMS norm": ({"rmsnorm": False}, "rmsnorm is False and must be True"),
    "no last norm": ({"post_layer_norm": False}, "post_layer_norm is False and must be True"),
    "biases everywhere": ({"add_bias_linear": True}, "add_bias_linear is True and must be False"),
    "no bias": ({"add_qkv_bias": False}, "add_qkv_bias is False and must be True"),
    "no word of a bias": ({"add_qkv_bias": None}, "add_qkv_bias is absent, which means False and must be True"),
    "residual after the norm": (
        {"apply_residual_connection_post_layernorm": True},
        "apply_residual_connection_post_layernorm is True and must be False",
    ),
    "fp32 residual": ({"fp32_residual_connection": True}, "fp32_residual_connection is True and must be False"),
    "hidden dropout": ({"hidden_dropout": 0.1}, "hidden_dropout is 0.1 and must be 0.0"),
    "another rope": ({"original_rope": False}, "original_rope is False and must be True"),
    "no layers": ({"num_layers": None}, "num_layers must be a whole number from 1 to 1048576, not None"),
    "absurd length": ({"seq_length": 10**9}, "seq_length must be a whole number from 1 to 1048576, not 1000000000"),
    "a length of True": ({"seq_length": True}, "seq_length must be a whole number from 1 to 1048576, not True"),
    "rope NaN": ({"rope_ratio": math.nan}, "rope_ratio must be a number from 0.001 to 10000, not nan"),
    "rope negative": ({"rope_ratio": -1}, "rope_ratio must be a number from 0.001 to 10000, not -1"),
    "rope zero": ({"rope_ratio": 0}, "rope_ratio must be a number from 0.001 to 10000, not 0"),
    "rope true": ({"rope_ratio": True}, "rope_ratio must be a number from 0.001 to 10000, not True"),
    "epsilon NaN": ({"layernorm_epsilon": math.nan}, "layernorm_epsilon must be a number from 1e-12 to 0.01, not nan"),
    "epsilon infinite": (
        {"layernorm_epsilon": math.inf},
        "layernorm_epsilon must be a number from 1e-12 to 0.01, not inf",
    ),
    "epsilon negative": (
        {"layernorm_epsilon": -1e-5},
        "layernorm_epsilon must be a number from 1e-12 to 0.01, not -1e-05",
    ),
    "epsilon text": (
        {"layernorm_epsilon": "1e-5"},
        "layernorm_epsilon must be a number from 1e-12 to 0.01, not '1e-5'",
    ),
    "dropout 1": ({"attention_dropout": 1.0}, "attention_dropout must be a number from 0 to 0.99, not 1.0"),
    "groups": (
        {"multi_query_group_num": 3},
        "multi_query_group_num must divide num_attention_heads=4, which 3 does not",
    ),
    "no groups": ({"multi_query_group_num": 0}, "multi_query_group_num must divide num_attention_heads=4, which 0"),
    "end beyond": ({"eos_token_id": 512}, "eos_token_id must be the number of a token, below padded_vocab_size=512"),
    "pad negative": ({"pad_token_id": -1}, "pad_token_id must be the number of a token, below padded_vocab_size=512"),
}


@pytest.mark.parametrize(("changes", "what"), WRONG.values(), ids=WRONG)
def test_another_model_is_refused_by_name_before_anything_is_loaded(tmp_path, changes, what):
    directory = formula_directory(tmp_path / "wrong", **changes)
    with pytest.raises(ValueError, match=re.escape(what)) as error:
        resolve_model(ModelSpec(path=str(directory)))
    assert str(error.value).startswith(f"model.path={directory}: ")


def test_all_that_is_odd_in_a_config_is_said_at_once(tmp_path):
    directory = formula_directory(tmp_path, rmsnorm=False, hidden_dropout=0.1, original_rope=False)
    with pytest.raises(ValueError, match=r"rmsnorm .*; hidden_dropout .*; original_rope "):
        glm_config(directory)


def test_chatglm2_is_known_by_its_tokenizer_code_which_is_read_and_not_run(tmp_path):
    directory = formula_directory(tmp_path, _name_or_path="/models/base")
    (directory / "tokenization_chatglm.py").write_text("raise SystemExit('this was run')\n")
    with pytest.raises(ValueError, match="ChatGLM2, not ChatGLM3"):
        glm_config(directory)


def test_settings_without_effect_are_no_reason_to_refuse(tmp_path):
    directory = formula_directory(
        tmp_path, apply_query_key_layer_scaling=False, attention_softmax_in_fp32=False, bias_dropout_fusion=False
    )
    glm_config(directory)


class RunsCode:
    def __reduce__(self):
        return print, ("this was run",)


def break_nothing(directory):
    for file in directory.glob("*.safetensors*"):
        file.unlink()


def break_a_shard(directory):
    (directory / "part-2.safetensors").unlink()


def break_an_index(directory):
    (directory / "model.safetensors.index.json").unlink()


def break_bytes(directory):
    (directory / "part-2.safetensors").write_bytes(b"half of a file")


def add_quantized(directory):
    tensors = load_file(directory / "part-1.safetensors")
    key = next(key for key in tensors if key.endswith("dense_h_to_4h.weight"))
    save_file({**tensors, key: tensors[key].to(torch.int8)}, directory / "part-1.safetensors")


def add_prefix(directory):
    tensors = load_file(directory / "part-1.safetensors")
    tensors["transformer.prefix_encoder.embedding.weight"] = torch.zeros(2, 2)
    save_file(tensors, directory / "part-1.safetensors")


def lose_a_weight(directory):
    tensors = load_file(directory / "part-1.safetensors")
    del tensors["transformer.encoder.final_layernorm.weight"]
    save_file(tensors, directory / "part-1.safetensors")


def shrink_layers(directory):
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "num_layers": 1}))


def change_a_size(directory):
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "ffn_hidden_size": 100}))


BROKEN = {
    break_nothing: "no weights; there is neither a model.safetensors nor a pytorch_model.bin file",
    break_a_shard: "1 of 2 shards are missing: part-2.safetensors",
    break_an_index: "without model.safetensors.index.json, so shards may be missing",
    break_bytes: "part-2.safetensors: its weights cannot be read",
    add_quantized: "weights quantized by ChatGLM's own code",
    add_prefix: "part of a P-tuning checkpoint",
    lose_a_weight: "1 weights of the model are in no file, among them model.norm.weight",
    shrink_layers: "is in no model with this config.json",
    change_a_size: "the shape [64, 128], and config.json [64, 100]",
}


@pytest.mark.parametrize(("damage", "what"), BROKEN.items(), ids=[damage.__name__ for damage in BROKEN])
def test_weights_that_are_not_right_are_refused_by_name(tmp_path, damage, what):
    directory = formula_directory(tmp_path / "broken")
    damage(directory)
    with pytest.raises(ValueError, match=re.escape(what)):
        load_original(directory, dtype=torch.float32, attention="sdpa")
    with pytest.raises(ValueError, match=re.escape(what)):
        convert_once(directory, torch.float32)
    assert not list((tmp_path / "cache").glob("**/config.json"))


def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(tmp_path, capsys):
    directory = formula_directory(tmp_path / "unsafe", suffix=".bin")
    torch.save({"transformer.output_layer.weight": RunsCode()}, directory / "part-2.bin")
    with pytest.raises(ValueError, match=r"part-2\.bin: holds more than tensors, and loading it could run code"):
        load_original(directory, dtype=torch.float32, attention="sdpa")
    assert "this was run" not in capsys.readouterr().out


def test_published_files_are_readable_for_everyone(original, tmp_path):
    model = load_original(original, dtype=torch.float32, attention="sdpa")
    write_original(model.state_dict(), model.config, tmp_path / "out", base=None)
    files = [*(tmp_path / "out").glob("*.safetensors"), *convert_once(original, torch.float32).glob("*.safetensors")]
    assert {file.stat().st_mode & 0o444 for file in files} == {0o444}
    with safe_open(files[0], framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
