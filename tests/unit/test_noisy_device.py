"""On a device whose passes differ in the last bit, each decision is the one that it is where every pass is the same."""

import copy
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, LlamaConfig, LlamaForCausalLM
from transformers.models.llama import modeling_llama

from components.errors import InputError, VerificationError
from components.experiment.spec import BatchSpec, BudgetSpec, LoraMethod
from components.models.load_trained import load_base_of, load_trained
from components.registry import checked_export
from components.registry.checked_export import ExportRequest, export_model
from components.registry.gate import check_report
from components.registry.verification_messages import VerificationReport
from components.statistics.paired_bootstrap import paired_bootstrap
from components.storage.open_folder import folder_at
from components.training.evaluate import score
from components.training.loss import ScoredModel
from components.training.workers import TorchWorkers
from tests.support.families import (
    FAMILIES,
    GROUPED,
    OLD,
    Banning,
    Capped,
    Dropping,
    OtherHead,
    Scaling,
    model_of,
    scored_model,
)
from tests.support.noisy_device import last_bit_noise
from tests.support.processes import run_together
from tests.support.sessions import FULL, LORA, MAX_TOKENS, curve, reports, session
from tests.support.toy import toy_conversations, write_messages_jsonl

BF16 = {"precision": "bf16"}
PRECISIONS = {
    "fp32": ("fp32", torch.float32),
    "weights in fp32": ("bf16", torch.float32),
    "weights in bf16": ("bf16", torch.bfloat16),
}
SEEDS = range(3)


def test_the_noise_moves_numbers_by_one_unit_and_never_twice_the_same():
    layer = torch.nn.Linear(64, 64).to(torch.bfloat16)
    inputs = torch.randn(8, 64).to(torch.bfloat16).requires_grad_()
    plain = layer(inputs)
    unit = torch.nextafter(plain.detach().abs(), torch.tensor(torch.inf).bfloat16()) - plain.detach().abs()
    with last_bit_noise():
        first, second = layer(inputs), layer(inputs)
    for moved in (first, second):
        assert 0.5 < (moved != plain).float().mean() < 0.8
        assert ((moved - plain).abs() <= unit).all()
    assert not torch.equal(first, second)
    assert torch.equal(layer(inputs), plain)
    gradients = [torch.autograd.grad(answer.sum(), inputs)[0] for answer in (plain, first)]
    assert torch.equal(*gradients)


# What a model does to its logits


def reason(model, precision):
    scored = scored_model(model, precision)
    scored.look_at_head()
    return scored.whole_logits


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_family_does_to_its_logits_is_known(family, precision):
    model = model_of(FAMILIES[family][0])
    plain = reason(model, precision)
    for seed in SEEDS:
        with last_bit_noise(seed):
            assert reason(model, precision) == plain


class Tilting(LlamaForCausalLM):
    """Makes its logits larger by so little that no loss would show it."""

    def forward(self, **kwargs):
        answer = super().forward(**kwargs)
        answer.logits = 1.02 * answer.logits
        return answer


class Embedding(LlamaForCausalLM):
    """Embeds its tokens itself, as models beside a vision tower do."""

    def forward(self, input_ids, **kwargs):
        return super().forward(inputs_embeds=self.get_input_embeddings()(input_ids), **kwargs)


DEEP = {**GROUPED, "num_hidden_layers": 64}  # so that the last bit of each layer adds up


@pytest.mark.parametrize("kind", [Tilting, Capped, Banning, OtherHead, Dropping, Scaling, Embedding])
def test_a_strange_model_is_seen_and_a_deep_one_is_not_taken_for_strange(kind):
    torch.manual_seed(0)
    model = kind(LlamaConfig(**DEEP)).to(torch.bfloat16)
    plain = reason(model, "bf16")
    assert (plain == "") == (kind is Embedding)
    for seed in SEEDS:
        with last_bit_noise(seed):
            assert reason(model, "bf16") == plain


# Whether packed conversations see each other

ISOLATING = ["llama", "gpt2", "glm", "gemma3", "gemma3 beside its vision tower", "a soft cap", "cohere", "granite"]
LEAKING = ["a projection inside the decoder", "no attention at all"]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("family", [*ISOLATING, *LEAKING])
def test_neighbors_that_are_seen_are_found_and_no_others(family, precision):
    computes_in, dtype = PRECISIONS[precision]
    scored = scored_model(model_of(copy.deepcopy(FAMILIES[family][0])).to(dtype), computes_in)
    for seed in SEEDS:
        with last_bit_noise(seed):
            assert scored.isolates_packed_rows() == (family in ISOLATING)


def test_a_model_that_rounds_by_half_of_what_its_own_past_does_is_still_told_apart():
    scored = scored_model(model_of(GPT2Config(n_embd=32, **{**OLD, "n_layer": 8})).to(torch.bfloat16), "bf16")
    for seed in SEEDS:
        with last_bit_noise(seed, units=2):
            assert scored.isolates_packed_rows()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_mask_that_takes_no_notice_of_restarts_is_found(monkeypatch, precision):
    made = modeling_llama.create_causal_mask
    monkeypatch.setattr(modeling_llama, "create_causal_mask", lambda **given: made(**{**given, "position_ids": None}))
    computes_in, dtype = PRECISIONS[precision]
    scored = scored_model(model_of(LlamaConfig(**GROUPED)).to(dtype), computes_in)
    for seed in SEEDS:
        with last_bit_noise(seed):
            assert not scored.isolates_packed_rows()


def find_a_neighbor_on_one(rank, toy, folder):
    """What a trial says whose second worker alone finds that rows are seen."""
    of = session(toy, folder, TorchWorkers(torch.device("cpu")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ScoredModel, "isolates_packed_rows", lambda *_: rank == 0)
        with pytest.raises(InputError) as caught:
            of.start("trial", FULL.model_copy(update={"batch": BatchSpec(rows_per_step=4, packing=True)}))
    return str(caught.value)


def test_a_neighbor_that_one_worker_has_found_ends_the_trial_on_all(toy, tmp_path):
    first, second = run_together(find_a_neighbor_on_one, toy, tmp_path / "runs", folder=tmp_path)
    assert first == second
    assert "lets packed conversations see each other" in first


# Training, and what follows it

LONG = BudgetSpec(epochs=40.0, evaluations=1)  # a model that is sure of itself, and so wrong by more where it is moved
SPECS = {
    "full": FULL,
    "full in bf16": FULL.model_copy(update=BF16),
    "full in bf16 throughout": FULL.model_copy(update={**BF16, "dtype": "bf16"}),
    "lora": LORA,
    "lora in bf16": LORA.model_copy(update=BF16),
    "nf4": LORA.model_copy(update={**BF16, "method": LoraMethod(rank=4, alpha=8.0, quantize="nf4")}),
    "checkpointed": LORA.model_copy(update={**BF16, "gradient_checkpointing": True}),
}


@pytest.mark.parametrize("name", SPECS)
def test_a_trial_ends_near_where_it_would_and_resumes_there(toy, tmp_path, name):
    spec = SPECS[name]
    near = 1e-3 if spec.precision == "fp32" else 0.1
    plain = reports(session(toy, tmp_path / "plain"), spec)
    with last_bit_noise():
        noisy = reports(session(toy, tmp_path / "noisy"), spec)
        resumed = session(toy, tmp_path / "resumed")
        resumed.start("trial", spec)
        resumed.load(folder_at(noisy[0].checkpoint))
        resumed.replay_to(noisy[1].step)
        last = resumed.advance()
    assert curve(noisy) == pytest.approx(curve(plain), abs=near)
    assert [report.step for report in noisy] == [report.step for report in plain]
    assert (last.step, last.done) == (plain[2].step, True)
    assert last.eval_loss == pytest.approx(plain[2].eval_loss, abs=near)


def test_a_replay_that_diverges_where_the_trial_had_not_ends_with_the_reason(toy, tmp_path):
    of = session(toy, tmp_path)
    second = reports(of, FULL)[1]
    of.start("again", FULL)
    with torch.no_grad():
        of.running.model.model.norm.weight.fill_(torch.nan)
    with pytest.raises(ValueError, match=rf"to the report at {second.step}, .* lower optimizer.learning_rate"):
        of.replay_to(second.step)


def losses_of(loaded, store):
    return score(loaded, store, max_tokens=MAX_TOKENS, rows_per_batch=4)


def report_of(losses):
    return VerificationReport(
        code=Path("code"),
        reply="hello",
        candidate_sums=tuple(loss.loss_sum for loss in losses),
        base_sums=(),
        incumbent_sums=None,
        incumbent_problem=None,
        num_targets=tuple(loss.num_targets for loss in losses),
        candidate_answers=(),
        base_answers=(),
    )


@pytest.mark.parametrize("name", ["full", "full in bf16", "full in bf16 throughout"])
def test_a_version_is_proven_by_its_loss_and_its_base_is_not(toy, tmp_path, name):
    with last_bit_noise(99):
        of = session(toy, tmp_path)
        last = reports(of, SPECS[name].model_copy(update={"budget": LONG}))[-1]
    store = of.running.eval_store
    loaded, base = load_trained(Path(last.checkpoint)), load_base_of(Path(last.checkpoint))
    for seed in range(20):
        with last_bit_noise(seed):
            check_report(report_of(losses_of(loaded, store)), last.eval_loss, "models:/toy/1")
    with last_bit_noise(), pytest.raises(VerificationError, match="nats per target after loading"):
        check_report(report_of(losses_of(base, store)), last.eval_loss, "models:/toy/1")


def test_a_model_beats_its_base_and_not_itself(trials):
    """It is measured twice, with other noise each time. At 95 % one noise in forty looks better than another."""
    checkpoint, _ = trials.trained("full")
    loaded, base = load_trained(checkpoint), load_base_of(checkpoint)
    beats_itself = 0
    for seed in SEEDS:
        with last_bit_noise(seed):
            found, again, of_base = (losses_of(each, trials.dataset.eval) for each in (loaded, loaded, base))
        targets = [loss.num_targets for loss in found]
        first, second, third = ([loss.loss_sum for loss in losses] for losses in (found, again, of_base))
        assert first != second
        beats_itself += paired_bootstrap("itself", first, second, targets, confidence=0.95).beats
        assert paired_bootstrap("base", first, third, targets, confidence=0.95).beats
    assert beats_itself <= 1


@pytest.mark.parametrize("name", ["lora", "lora in bf16", "nf4"])
def test_a_merged_model_is_the_adapter_and_a_wrong_one_is_refused(toy, tmp_path, monkeypatch, name):
    source = reports(session(toy, tmp_path / "checkpoints"), SPECS[name])[-1].checkpoint
    write_messages_jsonl(tmp_path / "data.jsonl", toy_conversations(4, seed=3))

    def export(target):
        request = {"data": str(tmp_path / "data.jsonl"), "max_tokens": MAX_TOKENS}
        return export_model(ExportRequest(source=source, target=tmp_path / target, **request))

    for seed in SEEDS:
        with last_bit_noise(seed):
            export(f"out_{seed}")
    merge = checked_export.merge

    def merge_too_much(model):
        for module in model.modules():
            if hasattr(module, "scaling") and isinstance(module.scaling, dict):
                module.scaling["default"] *= 20
        return merge(model)

    monkeypatch.setattr(checked_export, "merge", merge_too_much)
    with last_bit_noise(), pytest.raises(InputError, match="the merged model is another one"):
        export("wrong")
