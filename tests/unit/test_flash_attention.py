"""Flash attention computes in 16 bits only: no part of a trial's life asks it for more, and it answers what sdpa answers."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, modeling_flash_attention_utils

from components.conversations.messages import Message
from components.experiment.base_precisions import BaseVariant
from components.experiment.spec import BatchSpec, FullMethod, LoraMethod, ModelSpec, TrialSpec
from components.inference.chat_session import ChatSession
from components.inference.generate import reply_to, stream_reply
from components.models.load_trained import load_base, load_base_of, load_trained, package
from components.models.precision import computing
from components.planning.dry_run import MicroBatch, dry_run_step
from components.registry.chat_model import PACKAGE
from components.registry.checked_export import ExportRequest, export_model
from components.registry.model_package import save_packaged
from components.registry.probes import Probe
from components.registry.verification_messages import VerificationRequest
from components.registry.verification_worker import verify
from components.training.evaluate import score
from components.training.workers import TorchWorkers, UnfitWorkersError
from tests.support import flash_kernels
from tests.support.families import FAMILIES, GROUPED, scored_model
from tests.support.sessions import FULL, MAX_TOKENS, curve, reports, session
from tests.support.toy import toy_conversations, write_messages_jsonl

CPU, FLASH = torch.device("cpu"), "flash_attention_2"
BF16 = FULL.model_copy(update={"precision": "bf16"})
LORA = LoraMethod(rank=4, alpha=8.0)
QUESTION = [Message(role="user", content="say ab")]
# Of a loss in nats. Both compute in bf16, and round at other places.
ROUNDING = 0.01


@pytest.fixture
def flash(monkeypatch):
    flash_kernels.install(monkeypatch)


def of_method(method=None, dtype=None, **fields):
    return BF16.model_copy(update={"method": method or FullMethod(), "dtype": dtype, **fields})


TRIALS = {
    "full, weights in fp32": of_method(),
    "full, weights in bf16": of_method(dtype="bf16"),
    "lora, base in bf16": of_method(LORA),
    "lora, base in fp32": of_method(LORA, dtype="fp32"),
    "nf4, computed in bf16": of_method(LoraMethod(rank=4, alpha=8.0, quantize="nf4")),
    "nf4, computed in fp32": of_method(LoraMethod(rank=4, alpha=8.0, quantize="nf4"), dtype="fp32"),
    "int8": of_method(LoraMethod(rank=4, alpha=8.0, quantize="int8")),
    "dora": of_method(LoraMethod(rank=4, alpha=8.0, dora=True)),
    "checkpointed": of_method(LORA, gradient_checkpointing=True),
    "unpacked": of_method(batch=BatchSpec(rows_per_step=4, rows_per_micro_batch=2, packing=False)),
}


def test_such_kernels_refuse_what_is_asked_outside_of_autocast(flash, toy):
    loaded = load_base(ModelSpec(path=str(toy[0]), attention=FLASH))
    with pytest.raises(RuntimeError, match="only support fp16 and bf16"):
        loaded.model(input_ids=torch.tensor([[1, 2, 3]]))


def mean_loss(losses):
    return sum(loss.loss_sum for loss in losses) / sum(loss.num_targets for loss in losses)


@pytest.mark.parametrize("name", TRIALS)
def test_a_model_is_trained_loaded_asked_and_scored_with_it(flash, toy, tmp_path, name):
    """Packed rows are probed, the head is looked at, evaluated conversations are padded, and generation has a cache."""
    of = session(toy, tmp_path / "flash", attention=FLASH)
    progress = reports(of, TRIALS[name])
    assert of.running.scored.whole_logits == ""
    plain = reports(session(toy, tmp_path / "plain"), TRIALS[name])
    assert progress[0].steps[0].loss == pytest.approx(plain[0].steps[0].loss, abs=ROUNDING)
    assert curve(progress) == pytest.approx(curve(plain), abs=5 * ROUNDING)  # after 15 steps of different rounding
    loaded = load_trained(Path(progress[-1].checkpoint))
    assert loaded.attention == loaded.model.config._attn_implementation == FLASH
    reply = reply_to(loaded, QUESTION, max_new_tokens=4)
    assert reply.new_tokens > 0
    assert "".join(stream_reply(loaded, QUESTION, max_new_tokens=4)) == reply.text
    assert "".join(ChatSession(loaded, max_new_tokens=4).send("say ab")) == reply.text
    store = of.running.eval_store
    with_flash, with_sdpa, of_base = (
        mean_loss(score(each, store, max_tokens=MAX_TOKENS, rows_per_batch=4))
        for each in (
            loaded,
            load_trained(Path(progress[-1].checkpoint), flash=False),
            load_base_of(Path(progress[-1].checkpoint)),
        )
    )
    assert with_flash == pytest.approx(progress[-1].eval_loss, abs=ROUNDING)
    assert with_flash == pytest.approx(with_sdpa, abs=ROUNDING)
    assert of_base > with_flash


def test_a_sharded_model_is_trained_with_it(flash, toy, tmp_path):
    plain = curve(reports(session(toy, tmp_path / "plain"), BF16))
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        of = session(toy, tmp_path / "flash", TorchWorkers(CPU, parallel="fsdp"), attention=FLASH)
        assert curve(reports(of, BF16)) == pytest.approx(plain, abs=5 * ROUNDING)
    finally:
        dist.destroy_process_group()


WINDOWED = MistralConfig(**GROUPED, sliding_window=3)
# sdpa knows no soft cap of attention, so those are compared with eager.
CONFIGS = {
    "llama": (FAMILIES["llama"][0], "sdpa"),
    "gpt2": (FAMILIES["gpt2"][0], "sdpa"),
    "glm": (FAMILIES["glm"][0], "sdpa"),
    "cohere": (FAMILIES["cohere"][0], "sdpa"),
    "gemma3": (FAMILIES["gemma3"][0], "sdpa"),
    "a window of attention": (WINDOWED, "sdpa"),
    "a soft cap": (FAMILIES["a soft cap"][0], "eager"),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("family", CONFIGS)
def test_every_layout_of_rows_has_the_logits_of_another_attention(flash, family, dtype):
    """Packed rows, rows padded on either side, and one token after a cache."""
    config, other = CONFIGS[family]
    flash, plain = (
        AutoModelForCausalLM.from_config(copy.deepcopy(config), attn_implementation=name).to(dtype).eval()
        for name in (FLASH, other)
    )
    flash.load_state_dict(plain.state_dict())
    assert scored_model(flash, "bf16", FLASH).isolates_packed_rows()
    assert_same_head(flash, plain)
    for answer in (packed, padded, continued):
        ours, theirs = answer(flash), answer(plain)
        assert (ours - theirs).norm() < 0.03 * theirs.norm(), answer.__name__


def test_a_neighbor_that_is_seen_is_found(flash, monkeypatch):
    """All sequences of the probe lie in one row, one behind the other."""
    monkeypatch.setattr(modeling_flash_attention_utils, "_is_packed_sequence", lambda *_: False)
    model = AutoModelForCausalLM.from_config(copy.deepcopy(FAMILIES["llama"][0]), attn_implementation=FLASH)
    assert not scored_model(model, "bf16", FLASH).isolates_packed_rows()


def assert_same_head(*models):
    scored = [scored_model(model, "bf16", model.config._attn_implementation) for model in models]
    for each in scored:
        each.look_at_head()
    assert len({each.whole_logits for each in scored}) == 1


@torch.no_grad()
def logits(model, **inputs):
    with computing("bf16", CPU):
        return model(**inputs)


TOKENS = torch.randint(4, 90, (1, 12), generator=torch.Generator().manual_seed(0))


def packed(model):
    positions = torch.tensor([[*range(5), *range(4), *range(3)]])
    return logits(model, input_ids=TOKENS, position_ids=positions, attention_mask=None, use_cache=False).logits.float()


def padded(model):
    mask = torch.tensor([[0] * 3 + [1] * 9, [1] * 9 + [0] * 3])
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    answer = logits(model, input_ids=TOKENS.repeat(2, 1), attention_mask=mask, position_ids=positions, use_cache=False)
    return answer.logits.float()[mask.bool()]


def continued(model):
    """Two rows, one of them padded on its left, as `generate` has them."""
    mask = torch.tensor([[0] * 3 + [1] * 9, [1] * 12])
    first = logits(model, input_ids=TOKENS.repeat(2, 1)[:, :-1], attention_mask=mask[:, :-1], use_cache=True)
    last = {"input_ids": TOKENS.repeat(2, 1)[:, -1:], "attention_mask": mask, "past_key_values": first.past_key_values}
    return logits(model, **last, use_cache=True).logits.float()


def test_a_version_that_was_trained_with_it_is_verified_with_it(flash, toy, tmp_path):
    of = session(toy, tmp_path / "checkpoints", attention=FLASH)
    for name, spec in {"lora": TRIALS["lora, base in bf16"], "full": TRIALS["full, weights in fp32"]}.items():
        last = reports(of, spec, name)[-1]
        package(Path(last.checkpoint), tmp_path / name / PACKAGE)
        save_packaged(tmp_path / name / PACKAGE, tmp_path / name / "version")
        request = VerificationRequest(
            model=tmp_path / name / "version",
            incumbent=tmp_path / "lora" / "version",
            judged_store=of.running.eval_store.path,
            max_tokens=MAX_TOKENS,
            rows_per_batch=4,
            probes=(Probe(messages=({"role": "user", "content": "say ab"},)),),
            max_new_tokens=4,
        )
        found = verify(request)
        assert sum(found.candidate_sums) / sum(found.num_targets) == pytest.approx(last.eval_loss, abs=ROUNDING)
        base = verify(request.model_copy(update={"phase": "base"}))
        assert sum(base.base_sums) > sum(found.candidate_sums)
        incumbent = verify(request.model_copy(update={"phase": "incumbent", "digest": found.digest}))
        assert incumbent.incumbent_problem is None
        if name == "lora":
            assert found.base_sums == pytest.approx(base.base_sums, abs=1.0)
            assert incumbent.incumbent_sums == pytest.approx(found.candidate_sums, abs=1.0)


@pytest.mark.parametrize("name", ["lora, base in bf16", "nf4, computed in fp32", "full, weights in fp32"])
def test_what_was_trained_with_it_is_merged_in_float32_and_compared(flash, toy, tmp_path, name):
    checkpoint = reports(session(toy, tmp_path / "checkpoints", attention=FLASH), TRIALS[name])[-1].checkpoint
    write_messages_jsonl(tmp_path / "data.jsonl", toy_conversations(4, seed=3))
    request = ExportRequest(source=checkpoint, target=tmp_path / "out", data=str(tmp_path / "data.jsonl"))
    export = export_model(replace(request, max_tokens=MAX_TOKENS))
    assert (export.merge is None) == name.startswith("full")
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_workers_without_the_package_say_so_for_all_trials_at_once(toy, tmp_path):
    of = session(toy, tmp_path, attention=FLASH)
    of.warm_up(BaseVariant("fp32"))  # loads nothing, and says nothing: there is no trial yet to say it to
    with pytest.raises(UnfitWorkersError) as caught:
        of.start("trial", BF16)
    assert str(caught.value) == (
        "model.attention=flash_attention_2: 1 of 1 workers of a trial have no package flash-attn, or no GPU that it"
        " supports; install flash-attn (its wheels are for one version of torch, Python and CUDA), or set"
        " model.attention: sdpa"
    )


def test_what_was_trained_with_it_talks_on_a_machine_that_has_none(toy, tmp_path, caplog):
    of = session(toy, tmp_path)
    checkpoint = Path(reports(of, BF16)[-1].checkpoint)
    reference = json.loads((checkpoint / "base.json").read_text())
    reference["model"]["attention"] = FLASH
    (checkpoint / "base.json").write_text(json.dumps(reference))
    loaded = load_trained(checkpoint)
    assert loaded.attention == "sdpa"
    assert reply_to(loaded, QUESTION, max_new_tokens=2).new_tokens > 0
    assert "sdpa computes the same" in caplog.text


def test_a_model_with_it_is_rehearsed_on_a_machine_that_has_none():
    spec, batch = TrialSpec(method=FullMethod(), precision="bf16"), MicroBatch(rows=2, tokens=16, targets=8)
    flash, plain = (
        dry_run_step(LlamaConfig(**GROUPED), ModelSpec(path="a model", attention=name), spec, batch)
        for name in (FLASH, "sdpa")
    )
    assert flash == plain
    assert flash.whole_logits == ""
