"""One precision for all that a model is asked to do, and logits only where a token is scored, where that is all there is."""

import itertools
import json
import logging
import math
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    CohereConfig,
    Gemma2Config,
    Gemma3Config,
    Gemma3TextConfig,
    GlmConfig,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    OPTConfig,
    PhiConfig,
    PreTrainedModel,
    modeling_flash_attention_utils,
)
from transformers.modeling_outputs import CausalLMOutput

from components.conversations.messages import Message
from components.data.batch import Batch
from components.experiment.base_variants import BaseVariant
from components.experiment.spec import FullMethod, LoraMethod, ModelSpec, TrialSpec
from components.inference.generate import reply_to, stream_reply
from components.models import attention_backend as attention
from components.models.adapters import attach_lora
from components.models.load_trained import load_base, load_trained
from components.planning.dry_run import MicroBatch, dry_run_step
from components.training.evaluate import score
from components.training.loss import ScoredModel
from components.training.workers import UnfitWorkersError
from tests.support.sessions import FULL, curve, reports, session

SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
GROUPED = {**SIZES, "num_key_value_heads": 2}
ENDS = {"bos_token_id": None, "eos_token_id": 2, "pad_token_id": 0}
OLD = {"vocab_size": 96, "n_layer": 2, "n_head": 4, **ENDS}
OPT = {"vocab_size": 96, "hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
VISION = {**{name: SIZES[name] for name in SIZES if name != "vocab_size"}, "image_size": 28, "patch_size": 14}
CAP = "div, tanh, mul"
FAMILIES = {
    "llama": (LlamaConfig(**GROUPED), ""),
    "gpt2": (GPT2Config(n_embd=32, **OLD), ""),
    "glm": (GlmConfig(**GROUPED, **ENDS, head_dim=8), ""),
    "a projection inside the decoder": (OPTConfig(**OPT, word_embed_proj_dim=16), ""),
    "bloom": (BloomConfig(hidden_size=32, **OLD), ""),
    "no attention at all": (
        MambaConfig(vocab_size=96, hidden_size=32, num_hidden_layers=2, state_size=4, **ENDS),
        "",
    ),
    "a bias in the head": (PhiConfig(**SIZES), ""),
    "gemma3": (Gemma3TextConfig(**GROUPED, head_dim=8), ""),
    "gemma3 beside its vision tower": (
        Gemma3Config(text_config={**GROUPED, "head_dim": 8}, vision_config=VISION),
        "",
    ),
    "a soft cap": (Gemma2Config(**GROUPED, head_dim=8), CAP),
    "no soft cap": (Gemma2Config(**GROUPED, head_dim=8, final_logit_softcapping=None), ""),
    "cohere": (CohereConfig(**GROUPED, **ENDS), "mul"),
    "cohere with a scale of 1": (CohereConfig(**GROUPED, **ENDS, logit_scale=1.0), ""),
    "granite": (GraniteConfig(**GROUPED, logits_scaling=8.0), "div"),
    "granite with a scale of 1": (GraniteConfig(**GROUPED, logits_scaling=1.0), ""),
}


def scored_model(model, precision="fp32", attention="sdpa"):
    return ScoredModel(model, precision=precision, attention=attention, device=torch.device("cpu"))


def model_of(config):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config)


def reason(model, precision="fp32"):
    scored = scored_model(model, precision)
    scored.look_at_head()
    return scored.whole_logits


def batch_of(token_ids, positions, labels):
    return Batch(
        token_ids_BT=torch.tensor(token_ids),
        labels_BT=torch.tensor(labels),
        weights_BT=torch.ones(len(labels), len(labels[0])),
        position_ids_BT=torch.tensor(positions),
        segment_ids_BT=torch.ones(len(labels), len(labels[0]), dtype=torch.int64),
    )


PACKED = batch_of([[5, 6, 7, 8, 9, 10, 11, 12]], [[0, 1, 2, 3, 0, 1, 2, 3]], [[-100, 7, 8, 9, -100, -100, 12, 13]])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_family_does_to_its_logits_is_known_by_its_operations(family, precision):
    config, operations = FAMILIES[family]
    expected = f"it does more to its logits than its head says: {operations}" if operations else ""
    assert reason(model_of(config), precision) == expected


@pytest.mark.parametrize("family", ["llama", "a bias in the head", "bloom", "a soft cap"])
def test_either_way_gives_the_losses_of_the_models_own_logits(family):
    model = model_of(FAMILIES[family][0]).eval()
    batch = batch_of([[5, 6, 7, 8]], [[0, 1, 2, 3]], [[6, 7, -100, 9]])
    with torch.no_grad():
        losses, _ = scored_model(model).losses(batch)
        logits = model(input_ids=batch.token_ids_BT).logits[0, [0, 1, 3]]
    expected = nn.functional.cross_entropy(logits, torch.tensor([6, 7, 9]), reduction="none")
    torch.testing.assert_close(losses, expected)


class Capped(LlamaForCausalLM):
    """Caps logits at 30. A tiny model's are below 0.1, so no value differs by more than float32 rounds."""

    def forward(self, **kwargs):
        answer = super().forward(**kwargs)
        answer.logits = 30 * torch.tanh(answer.logits / 30)
        return answer


class Banning(LlamaForCausalLM):
    """Takes one token out, in place: nothing new is made."""

    def forward(self, **kwargs):
        answer = super().forward(**kwargs)
        answer.logits[..., 7] = -math.inf
        return answer


class OtherHead(LlamaForCausalLM):
    """Answers by weights of its own, with the very operations that its head would take."""

    def __init__(self, config):
        super().__init__(config)
        self.other = nn.Linear(32, 96, bias=False)

    def forward(self, **kwargs):
        return CausalLMOutput(logits=self.other(self.model(**kwargs).last_hidden_state))


class Dropping(LlamaForCausalLM):
    """Drops logits out, while it trains."""

    def forward(self, **kwargs):
        answer = super().forward(**kwargs)
        answer.logits = nn.functional.dropout(answer.logits, 0.1, self.training)
        return answer


class Scaling(LlamaForCausalLM):
    """Does something to what its decoder is given."""

    def forward(self, input_ids, **kwargs):
        embeddings = 3 * self.get_input_embeddings()(input_ids) + 0.1
        return super().forward(inputs_embeds=embeddings, **kwargs)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (Capped, "it does more to its logits than its head says: div, tanh, mul"),
        (Banning, "it does more to its logits than its head says: fill_"),
        (OtherHead, "its logits come from other operations, weights or positions than its head's"),
        (Dropping, "it does more to its logits than its head says: empty_like, bernoulli_, div_, mul"),
        (Scaling, "it gives its decoder other inputs than those it is given"),
    ],
)
def test_what_a_strange_model_does_is_seen_and_its_whole_logits_are_taken(kind, expected, caplog):
    torch.manual_seed(0)
    scored = scored_model(kind(LlamaConfig(**GROUPED))).train()
    with caplog.at_level(logging.WARNING):
        scored(PACKED)
    assert scored.whole_logits.startswith(expected)
    assert f"logits are computed at all positions, which takes memory: {scored.whole_logits}" in caplog.text
    assert scored.model.training


def test_an_adapter_on_the_head_is_a_part_of_the_head():
    method = LoraMethod(rank=2, dropout=0.1, target_modules=("lm_head", "q_proj"))
    assert reason(attach_lora(model_of(LlamaConfig(**GROUPED)), method), "bf16") == ""


# Attention that knows 16 bits only


def _attended(query, key, value, softmax_scale):
    """One sequence, [tokens, heads, width]; the last query stands at the last key."""
    if query.dtype == torch.float32:
        raise RuntimeError("FlashAttention only support fp16 and bf16 data type")
    heads = [part.transpose(0, 1)[None] for part in (query, key, value)]
    mask = torch.ones(len(query), len(key), dtype=torch.bool).tril(len(key) - len(query))
    attended = nn.functional.scaled_dot_product_attention(
        *heads, attn_mask=mask, scale=softmax_scale, enable_gqa=query.shape[1] != key.shape[1]
    )
    return attended[0].transpose(0, 1)


def flash_attn_func(q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0):
    return torch.stack([_attended(*each, softmax_scale) for each in zip(q, k, v, strict=True)])


def flash_attn_varlen_func(
    q,
    k,
    v,
    cu_seqlens_q,
    cu_seqlens_k,
    max_seqlen_q,
    max_seqlen_k,
    dropout_p=0.0,
    softmax_scale=None,
    causal=False,
    window_size=(-1, -1),
    softcap=0.0,
):
    ends = cu_seqlens_q.tolist()
    parts = [slice(start, end) for start, end in itertools.pairwise(ends)]
    return torch.cat([_attended(q[part], k[part], v[part], softmax_scale) for part in parts])


@pytest.fixture
def flash(monkeypatch):
    """transformers' own road to flash attention, with kernels at its end that run here and, like flash's, refuse float32."""
    parts = modeling_flash_attention_utils
    kernels = flash_attn_func, flash_attn_varlen_func, None, parts._pad_input, parts._unpad_input
    monkeypatch.setattr(parts, "_loaded_implementation", None)
    monkeypatch.setattr(parts, "_lazy_imports", lambda *_, **__: kernels)
    monkeypatch.setattr(PreTrainedModel, "_flash_attn_can_dispatch", lambda *_, **__: True)
    monkeypatch.setattr(attention, "is_flash_attn_2_available", lambda **_: True)


BF16 = FULL.model_copy(update={"precision": "bf16"})
BF16_LORA = BF16.model_copy(update={"method": LoraMethod(rank=4, alpha=8.0)})


def test_such_kernels_refuse_what_is_asked_outside_of_autocast(flash, toy):
    loaded = load_base(ModelSpec(path=str(toy[0]), attention="flash_attention_2"))
    with pytest.raises(RuntimeError, match="only support fp16 and bf16"):
        loaded.model(input_ids=torch.tensor([[1, 2, 3]]))


@pytest.mark.parametrize("dtype", ["auto", "fp32"])
@pytest.mark.parametrize("spec", [BF16, BF16_LORA], ids=["full", "lora"])
def test_flash_attention_works_with_weights_of_every_dtype(flash, toy, tmp_path, spec, dtype):
    """Packed rows are probed, the head is looked at, evaluated conversations are padded, and generation has a cache."""
    spec = spec.model_copy(update={"dtype": dtype})
    of = session(toy, tmp_path / "flash", attention="flash_attention_2")
    progress = reports(of, spec)
    assert of.running.scored.whole_logits == ""
    plain = reports(session(toy, tmp_path / "plain"), spec)
    assert curve(progress) == pytest.approx(curve(plain), abs=0.05)
    loaded = load_trained(Path(progress[-1].checkpoint))
    assert loaded.attention == "flash_attention_2"
    question = [Message(role="user", content="say ab")]
    reply = reply_to(loaded, question, max_new_tokens=4)
    pieces = "".join(stream_reply(loaded, question, max_new_tokens=4))
    assert (reply.new_tokens > 0, pieces) == (True, reply.text)
    store = of.running.eval_store
    losses = score(loaded, store, max_tokens=128, rows_per_batch=4)
    mean = sum(loss.loss_sum for loss in losses) / store.total_targets
    assert mean == pytest.approx(progress[-1].eval_loss, abs=2e-3)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_probe_of_packed_rows_is_not_misled_by_bf16(toy, tmp_path, method):
    spec = BF16 if method == "full" else BF16_LORA
    for seed in range(3):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(LlamaConfig(**GROUPED))
        kept = model.to(torch.bfloat16) if method == "lora" else model
        assert scored_model(kept, spec.precision).isolates_packed_rows()
    bloom = model_of(FAMILIES["bloom"][0])  # its mask takes no notice of positions
    assert not scored_model(bloom, "bf16").isolates_packed_rows()


def test_workers_without_the_package_say_so_for_all_trials_at_once(toy, tmp_path):
    of = session(toy, tmp_path, attention="flash_attention_2")
    of.warm_up(BaseVariant("fp32"))  # loads nothing, and says nothing: there is no trial yet to say it to
    with pytest.raises(UnfitWorkersError) as caught:
        of.start("trial", BF16)
    assert str(caught.value) == (
        "model.attention=flash_attention_2: 1 of 1 workers of a trial have no package flash-attn, or no GPU that it"
        " supports; install flash-attn (its wheels are for one version of torch, Python and CUDA), or set"
        " model.attention: sdpa"
    )


def test_what_was_trained_with_flash_attention_talks_on_a_machine_that_has_none(toy, tmp_path, caplog):
    of = session(toy, tmp_path)
    checkpoint = Path(reports(of, BF16)[-1].checkpoint)
    reference = json.loads((checkpoint / "base.json").read_text())
    reference["model"]["attention"] = "flash_attention_2"
    (checkpoint / "base.json").write_text(json.dumps(reference))
    loaded = load_trained(checkpoint)
    assert loaded.attention == "sdpa"
    assert reply_to(loaded, [Message(role="user", content="say ab")], max_new_tokens=2).new_tokens > 0
    assert "sdpa computes the same" in caplog.text


def test_a_model_with_flash_attention_is_rehearsed_on_a_machine_that_has_none():
    spec, batch = TrialSpec(method=FullMethod()), MicroBatch(rows=2, tokens=16, targets=8)
    flash, plain = (
        dry_run_step(LlamaConfig(**GROUPED), ModelSpec(path="a model", attention=name), spec, batch)
        for name in ("flash_attention_2", "sdpa")
    )
    assert flash == plain
    assert flash.whole_logits == ""


@pytest.mark.parametrize("family", ["llama", "granite", "gemma3 beside its vision tower"])
def test_a_rehearsal_knows_what_a_trial_will_know_of_the_logits(family):
    config, operations = FAMILIES[family]
    batch = MicroBatch(rows=2, tokens=16, targets=8)
    dry_run = dry_run_step(config, ModelSpec(path="a model"), TrialSpec(method=FullMethod()), batch)
    assert dry_run.whole_logits == reason(model_of(config))
    assert bool(dry_run.whole_logits) == bool(operations)
