"""Packed rows are computed conversation by conversation: the same step as with masks, and nothing of it stays behind."""

import pytest
import torch
from torch import Tensor
from transformers import (
    AttentionInterface,
    AutoModelForCausalLM,
    GlmConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Qwen3Config,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from components.data.attention_masks import mask_form, sees_whole_conversations
from components.data.collate import collate
from components.experiment.spec import BatchSpec
from components.models import cpu_attention, packed_attention
from components.models.cpu_attention import attend_within
from components.models.packed_attention import NAME, attend, conversations_apart, suits_kernel
from components.training.data_parallel import ReplicatedModel
from components.training.loss import ScoredModel
from components.training.workers import OneWorker
from tests.support.sessions import FULL, curve, reports, session

CPU = torch.device("cpu")
SIZES = {
    "vocab_size": 300, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
CONFIGS = {
    "llama": LlamaConfig(**SIZES, num_key_value_heads=2),
    "qwen3": Qwen3Config(**SIZES, num_key_value_heads=2, head_dim=24),
    "glm": GlmConfig(**SIZES, num_key_value_heads=2, head_dim=16),
    "gpt_neox": GPTNeoXConfig(**SIZES),
}
LENGTHS = ((30, 20, 11), (40, 1, 5))  # of two rows, the second of which has more padding
WINDOWED = MistralConfig(**SIZES, num_key_value_heads=2, sliding_window=16)


class Conversations:
    """A store of random conversations; every second token is a target."""

    def __init__(self, lengths):
        generator = torch.Generator().manual_seed(0)
        self.lengths = lengths
        self.tokens = [torch.randint(3, 300, (length,), generator=generator).numpy() for length in lengths]

    def __getitem__(self, index):
        tokens = self.tokens[index]
        return tokens, (torch.arange(len(tokens)) % 2).numpy()

    def forks(self, index):
        return ()


def packed_batch():
    return collate(Conversations(sum(LENGTHS, ())), [(0, 1, 2), (3, 4, 5)], pad_token_id=0)


def model_of(config):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").train()


def step(model, *, apart, precision="fp32"):
    """The loss and the gradients of a pass over packed rows."""
    scored = ScoredModel(model, precision=precision, attention="sdpa", device=CPU)
    scored.keeps_apart = apart
    model.zero_grad()
    loss = ReplicatedModel(scored, OneWorker(CPU)).backward(packed_batch(), 0.5, is_last=True)
    return float(loss), [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


def apart_by(one, other):
    pairs = [(a.detach(), b.detach()) for a, b in zip(one, other, strict=True)]
    return max(float((a - b).norm() / b.norm()) for a, b in pairs if b.any())


def test_a_batch_counts_the_tokens_of_each_conversation_and_of_padding():
    batch = packed_batch()
    assert batch.token_ids_BT.shape == (2, 64)
    assert batch.lengths == (30, 20, 11, 3, 40, 1, 5, 18)
    assert torch.equal(batch.targets_2N.T, (batch.labels_BT != -100).nonzero())


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_step_without_masks_is_the_step_with_masks(config, checkpointing):
    model = model_of(config)
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    loss, gradients = step(model, apart=False)
    assert config._attn_implementation == "sdpa"
    same_loss, same_gradients = step(model, apart=True)
    assert same_loss == pytest.approx(loss, rel=1e-6)
    assert apart_by(same_gradients, gradients) < 1e-5
    assert config._attn_implementation == "sdpa"  # what follows, an evaluation or a generation, is computed as ever


def test_rows_of_one_conversation_need_neither_lengths_nor_masks():
    model = model_of(CONFIGS["llama"])
    token_ids = torch.arange(3, 15).view(2, 6)
    usual = model(input_ids=token_ids).logits
    with conversations_apart(model, (), CPU):
        same = model(input_ids=token_ids).logits
    assert torch.equal(same, usual)


def test_in_bf16_it_is_as_near_to_float32_as_masks_are():
    model = model_of(CONFIGS["llama"])
    exact = step(model, apart=False)
    by_masks, apart = (step(model, apart=apart, precision="bf16") for apart in (False, True))
    assert apart[0] == pytest.approx(exact[0], rel=1e-3)
    assert apart_by(apart[1], exact[1]) < 1.2 * apart_by(by_masks[1], exact[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("short", [0, 20, 384], ids=["wide", "short and wide", "short"])
def test_a_cpus_kernels_have_the_gradients_of_sdpa(monkeypatch, dtype, short):
    monkeypatch.setattr(cpu_attention, "SHORT", short)
    generator = torch.Generator().manual_seed(0)
    lengths = (7, 33, 1)
    heads = [torch.randn(41, count, 16, generator=generator).to(dtype).requires_grad_() for count in (6, 2, 2)]
    slope = torch.randn(41, 6, 16, generator=generator).to(dtype)
    scaling = 0.3
    found = attend_within(*heads, lengths, scaling)
    gradients = torch.autograd.grad(found, heads, slope)
    exact = [tensor.detach().double().requires_grad_() for tensor in heads]
    parts = zip(*(tensor.split(lengths) for tensor in exact), strict=True)
    wanted = torch.cat(
        [
            torch.nn.functional.scaled_dot_product_attention(
                *(tensor.transpose(0, 1)[None] for tensor in part), is_causal=True, scale=scaling, enable_gqa=True
            )[0].transpose(0, 1)
            for part in parts
        ]
    )
    bound = 1e-5 if dtype == torch.float32 else 0.02
    assert apart_by([found.double()], [wanted]) < bound
    assert apart_by([g.double() for g in gradients], torch.autograd.grad(wanted, exact, slope.double())) < bound


def test_dropped_scores_and_values_of_another_size_are_computed_too():
    generator = torch.Generator().manual_seed(0)
    sizes = ((4, 8), (2, 8), (2, 6))
    heads = [torch.randn(1, count, 12, size, generator=generator) for count, size in sizes]
    module = torch.nn.Identity()
    module.num_key_value_groups = 2
    with conversations_apart(model_of(CONFIGS["llama"]), (5, 7), CPU):
        found, _ = attend(module, *heads, None)
        dropped, _ = attend(module, *heads, None, dropout=0.9)
    alone = [attend(module, *(tensor[:, :, place] for tensor in heads), None)[0] for place in (slice(5), slice(5, 12))]
    assert torch.allclose(found, torch.cat(alone, dim=1), atol=1e-6)
    assert (dropped == 0).any()
    assert not (found == 0).any()


def test_heads_whose_numbers_do_not_lie_side_by_side_are_computed_too():
    """One row of them is no copy; the kernels would read other numbers."""
    generator = torch.Generator().manual_seed(0)
    heads = [torch.randn(1, 12, 8, 2, generator=generator).permute(0, 3, 1, 2) for _ in range(3)]
    spread = [torch.randn(1, 2, 8, 12, generator=generator).transpose(2, 3) for _ in range(3)]
    with conversations_apart(model_of(CONFIGS["llama"]), (5, 7), CPU):
        for each in (heads, spread):
            found, _ = attend(torch.nn.Identity(), *each, None)
            same, _ = attend(torch.nn.Identity(), *(tensor.contiguous() for tensor in each), None)
            assert torch.allclose(found, same, atol=1e-6)


def test_conversations_that_are_not_those_of_the_batch_are_refused():
    model = model_of(CONFIGS["llama"])
    with conversations_apart(model, (5, 7), CPU), pytest.raises(ValueError, match="1 rows of 16 tokens, of which 12"):
        model(input_ids=torch.ones(1, 16, dtype=torch.int64))
    assert model.config._attn_implementation == "sdpa"
    assert packed_attention._present is None


def test_a_window_is_kept_by_masks():
    assert mask_form(WINDOWED).of_all.window == 16
    assert not ScoredModel(model_of(WINDOWED), precision="fp32", attention="sdpa", device=CPU).may_keep_apart
    assert ScoredModel(model_of(CONFIGS["llama"]), precision="fp32", attention="sdpa", device=CPU).may_keep_apart
    unknown = LlamaConfig(**SIZES, layer_types=["full_attention"] * 2)
    assert sees_whole_conversations(unknown)
    unknown.layer_types = ["full_attention", "hybrid_sliding"]
    assert not sees_whole_conversations(unknown)
    assert [suits_kernel(config) for config in (CONFIGS["qwen3"], LlamaConfig(**SIZES, head_dim=12))] == [True, False]
    assert not suits_kernel(LlamaConfig(**SIZES, attention_dropout=0.1))


def test_a_trial_that_is_not_packed_has_nothing_of_the_packed_one_before(toy, tmp_path):
    packed, alone = (
        FULL.model_copy(update={"batch": BatchSpec(rows_per_step=4, packing=one)}) for one in (True, False)
    )
    of = session(toy, tmp_path)
    of.start("trial", packed)
    assert of.running.scored.keeps_apart
    of.running.scored.keeps_apart = True  # as where a sharded model serves the next trial, too
    of._with_packing(of.running.scored, alone)
    assert not of.running.scored.keeps_apart


def seeing_all_of_a_row(module, query, key, value, attention_mask, dropout=0.0, scaling=None, is_causal=None, **others):
    return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, is_causal)


def adding_something(*arguments, **others) -> tuple[Tensor, None]:
    return attend(*arguments, **others)[0] + 0.5, None


def expecting_a_mask(*arguments, **others):
    raise TypeError("'NoneType' object is not subscriptable")


@pytest.mark.parametrize("wrong", [seeing_all_of_a_row, adding_something, expecting_a_mask])
def test_a_model_that_this_does_not_suit_gets_masks(toy, tmp_path, wrong):
    spec = FULL.model_copy(update={"batch": BatchSpec(rows_per_step=4, packing=True)})
    of = session(toy, tmp_path)
    usual = curve(reports(of, spec))
    assert of.running.scored.keeps_apart
    AttentionInterface.register(NAME, wrong)
    try:
        of = session(toy, tmp_path)
        by_masks = curve(reports(of, spec))
        assert not of.running.scored.keeps_apart
        assert of.running.spec.batch.packing is True
    finally:
        AttentionInterface.register(NAME, attend)
    assert by_masks == pytest.approx(usual, abs=2e-5)
