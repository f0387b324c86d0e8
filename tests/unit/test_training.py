"""The loop: what must be equal is equal, however a step is split, and whether or not it was interrupted."""

import contextlib
import json
import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
import torch.nn.functional as F
from torch import nn
from transformers import OPTConfig, OPTForCausalLM

from components.experiment.spec import (
    BatchSpec,
    BudgetSpec,
    LoraMethod,
    OptimizerSpec,
    ScheduleSpec,
)
from components.records.events import Extension, InterimCheckpoint, Progress
from components.storage.open_folder import folder_at
from components.training import loss as loss_module
from components.training.checkpoint import load_optimizer, save_optimizer
from components.training.gradient_norm import gradient_norm
from components.training.loss import ScoredModel, isolates_packed_rows, target_losses
from components.training.optimizer import learning_rate_factor, make_optimizer
from components.training.workers import OneWorker, TorchWorkers
from tests.support.casts import Casts
from tests.support.reads import Reads
from tests.support.sessions import FULL, LORA, Signals, curve, reports, session, weights
from tests.support.toy import letter_tokenizer


def test_losses_of_chunks_are_those_of_whole_logits_and_so_are_their_gradients(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    hidden_NH = torch.randn(13, 8, generator=generator, requires_grad=True)
    labels_N = torch.randint(0, 32, (13,), generator=generator)
    head = nn.Linear(8, 32, bias=False)
    whole = F.cross_entropy(head(hidden_NH), labels_N, reduction="sum")
    expected = torch.autograd.grad(whole, [hidden_NH, head.weight])
    monkeypatch.setattr(loss_module, "MAX_LOGITS_AT_ONCE", 4 * 32)
    chunked = target_losses(hidden_NH, head, labels_N).sum()
    torch.testing.assert_close(chunked, whole)
    torch.testing.assert_close(torch.autograd.grad(chunked, [hidden_NH, head.weight]), expected)


def test_logits_never_exist_for_more_positions_than_a_chunk(monkeypatch):
    seen = []

    class Head(nn.Linear):
        def forward(self, hidden):
            seen.append(len(hidden))
            return super().forward(hidden)

    monkeypatch.setattr(loss_module, "MAX_LOGITS_AT_ONCE", 4 * 32)
    target_losses(torch.randn(13, 8), Head(8, 32), torch.zeros(13, dtype=torch.long)).sum().backward()
    assert max(seen) == 4
    assert sum(seen) == 2 * 13  # once forward, once again for the backward pass


@pytest.mark.parametrize("spec", [FULL, LORA.model_copy(update={"method": LoraMethod(rank=4)})], ids=["full", "lora"])
def test_the_loss_curve_does_not_depend_on_micro_batches(toy, tmp_path, spec):
    whole = curve(reports(session(toy, tmp_path), spec))
    for rows in (1, 2):
        batch = BatchSpec(rows_per_step=4, rows_per_micro_batch=rows)
        split = curve(reports(session(toy, tmp_path), spec.model_copy(update={"batch": batch})))
        assert split == pytest.approx(whole, abs=2e-5)


def test_nothing_is_waited_for_while_the_passes_of_a_step_are_queued(toy, tmp_path):
    counts = []
    for rows in (4, 1):
        of = session(toy, tmp_path)
        of.start("trial", FULL.model_copy(update={"batch": BatchSpec(rows_per_step=4, rows_per_micro_batch=rows)}))
        of.running.step()  # the first one also looks at the head
        batches = of.running.draw().batches
        with Reads() as reads:
            of.running._backward(batches, num_targets=1)
        counts.append(reads.count)
    assert counts == [0, 0]  # with a mask transformers would ask whether rows are packed, once a pass


def train_as_worker(rank, toy, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    of = session(toy, folder, TorchWorkers(torch.device("cpu")))
    result = curve(reports(of, FULL.model_copy(update={"batch": BatchSpec(rows_per_step=4, rows_per_micro_batch=1)})))
    (folder / f"worker_{rank}.json").write_text(json.dumps(result))
    dist.destroy_process_group()


def test_two_gloo_workers_have_the_loss_curve_of_one(toy, tmp_path):
    multiprocessing.spawn(train_as_worker, args=(toy, tmp_path), nprocs=2)
    first, second = (json.loads((tmp_path / f"worker_{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    assert first == pytest.approx(curve(reports(session(toy, tmp_path), FULL)), abs=2e-5)


@pytest.mark.parametrize("spec", [FULL, LORA], ids=["full", "lora with dropout"])
def test_a_trial_resumed_in_a_new_session_ends_bit_equal_to_one_that_never_stopped(toy, tmp_path, spec):
    straight = session(toy, tmp_path / "a")
    whole = reports(straight, spec)
    stopped = session(toy, tmp_path / "b")
    stopped.start("trial", spec)
    first = stopped.advance()
    resumed = session(toy, tmp_path / "b")
    resumed.start("trial", spec)
    resumed.load(folder_at(tmp_path / "b" / "trial" / f"step_{first.step:06d}"))
    rest = [resumed.advance(), resumed.advance()]
    assert rest[-1].done
    assert curve([first, *rest]) == curve(whole)
    left, right = weights(straight), weights(resumed)
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


def after(steps):
    """A signal that is set after so many steps."""
    return iter([*[False] * (steps - 1), True]).__next__


@pytest.mark.parametrize("spec", [FULL, LORA], ids=["full", "lora with dropout"])
def test_a_trial_resumed_between_two_reports_reports_what_it_would_have(toy, tmp_path, spec):
    whole = reports(session(toy, tmp_path / "a"), spec)
    stopped = session(toy, tmp_path / "b")
    stopped.start("trial", spec)
    first, interim = stopped.advance(), stopped.advance(Signals(preempted=after(1)))
    assert interim == InterimCheckpoint(step=first.step + 1, checkpoint=f"{first.checkpoint}+{first.step + 1:06d}")
    resumed = session(toy, tmp_path / "b")
    resumed.start("trial", spec)
    resumed.load(folder_at(interim.checkpoint))
    assert curve([first, resumed.advance(), resumed.advance()]) == curve(whole)


def test_every_file_of_a_checkpoint_on_a_share_can_be_read_by_other_users(toy, tmp_path):
    of = session(toy, tmp_path)
    of.start("trial", LORA)
    files = [path for path in Path(of.advance().checkpoint).rglob("*") if path.is_file()]
    assert "adapter_model.safetensors" in {path.name for path in files}
    assert {path.stat().st_mode & 0o444 for path in files} == {0o444}


def test_reports_at_rungs_change_nothing_of_the_training_also_after_an_interruption(toy, tmp_path):
    """And the time of every evaluation is counted."""
    plain = reports(session(toy, tmp_path / "plain"), LORA)
    of = session(toy, tmp_path / "rungs")
    of.rungs = tuple(plain[-1].target_tokens * sixteenth // 16 for sixteenth in (1, 4))
    with_rungs = reports(of, LORA)
    assert curve(with_rungs)[: len(curve(plain)) - 3] == curve(plain)[:-3]  # every step; three evaluations follow
    assert {report.step: report.eval_loss for report in plain}.items() <= {
        report.step: report.eval_loss for report in with_rungs
    }.items()
    assert len(with_rungs) == len(plain) + 2
    assert all(report.target_tokens >= rung for report, rung in zip(with_rungs, of.rungs, strict=False))
    spent = [report.evaluation_worker_seconds for report in with_rungs]
    assert 0 < spent[0] < spent[1] < spent[-1]

    of.start("again", LORA)
    of.advance()  # the first rung
    left = of.advance(Signals(preempted=lambda: True))
    assert isinstance(left, InterimCheckpoint)
    later = session(toy, tmp_path / "rungs")
    later.rungs = of.rungs
    later.start("again", LORA)
    later.load(folder_at(left.checkpoint))
    rest = [later.advance() for _ in with_rungs[1:]]
    assert curve(rest) == curve(with_rungs[1:])


def test_an_interruption_costs_the_trial_that_goes_on_nothing(toy, tmp_path):
    whole = reports(session(toy, tmp_path / "a"), FULL)
    of = session(toy, tmp_path / "b")
    of.start("trial", FULL)
    of.advance(Signals(preempted=after(2)))
    of.advance(Signals(preempted=after(3)))  # at the evaluation's door: all five steps are done, none is done again
    assert curve([of.advance(), of.advance(), of.advance()]) == curve(whole)


ELASTIC = FULL.model_copy(
    update={
        "batch": BatchSpec(rows_per_step=2, rows_per_micro_batch=1),
        "budget": BudgetSpec(epochs=4.0, evaluations=2),
    }
)


def train_on_two_one_and_two(rank, toy, folder):
    """Each way of sharing the work out: what _two_one_and_two has of it."""
    torch.set_num_threads(1)
    results = {}
    for parallel in ("ddp", "fsdp"):
        (folder / parallel).mkdir(exist_ok=True)
        results[parallel] = _two_one_and_two(rank, toy, folder / parallel, parallel)
    (folder / f"worker_{rank}.json").write_text(json.dumps(results))


def _two_one_and_two(rank, toy, folder, parallel):
    """Two workers until an interim checkpoint; from it one of them alone until another; from that both."""
    first = _together(rank, toy, folder / "first", parallel)
    first.start("trial", ELASTIC)
    interim = first.advance(Signals(preempted=after(3)))
    dist.destroy_process_group()
    if rank == 0:
        alone = session(toy, folder)
        alone.start("trial", ELASTIC)
        alone.load(folder_at(interim.checkpoint))
        progress, interim = alone.advance(), alone.advance(Signals(preempted=after(3)))
        (folder / "alone.json").write_text(json.dumps([progress.model_dump(mode="json"), interim.checkpoint]))
    last = _together(rank, toy, folder / "last", parallel)  # waits for the other
    progress, checkpoint = json.loads((folder / "alone.json").read_text())
    last.start("trial", ELASTIC)
    last.load(folder_at(checkpoint))
    both = [Progress.model_validate(progress), last.advance()]
    dist.destroy_process_group()
    return {"curve": curve(both), "workers": [report.workers for report in both]}


def _together(rank, toy, rendezvous, parallel):
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    return session(toy, rendezvous.parent, TorchWorkers(torch.device("cpu"), parallel=parallel))


def test_two_workers_then_one_then_two_have_the_loss_curve_of_a_steady_run(toy, tmp_path):
    multiprocessing.spawn(train_on_two_one_and_two, args=(toy, tmp_path), nprocs=2)
    first, second = (json.loads((tmp_path / f"worker_{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    steady = curve(reports(session(toy, tmp_path / "steady"), ELASTIC))
    for parallel in ("ddp", "fsdp"):
        assert first[parallel]["workers"] == [1, 2]
        assert first[parallel]["curve"] == pytest.approx(steady, abs=1e-5)


def extended(of, extensions, since=1):
    """Reports of a trial that is told of its extensions before report number `since`, counted from 0, and of all after it."""
    progress = [of.advance(Signals(extensions=extensions if number >= since else ())) for number in range(since + 1)]
    while not progress[-1].done:
        progress.append(of.advance(Signals(extensions=extensions)))
    return progress


def test_an_extended_trial_keeps_its_evaluation_interval_on_its_new_schedule(toy, tmp_path):
    plain = reports(session(toy, tmp_path / "plain"), FULL)
    planned = plain[-1].target_tokens  # a whole number of epochs, and so of evaluations
    of = session(toy, tmp_path / "extended")
    of.start("trial", FULL)
    longer = extended(of, [Extension(target_tokens=planned * 5 // 3, from_step=1)])
    assert curve(longer[:1]) == curve(plain[:1])
    assert [report.epoch for report in longer] == [1.0, 2.0, 3.0, 4.0, 5.0]
    step = longer[1].steps[0]
    factor = learning_rate_factor(FULL.schedule, step.target_tokens / (planned * 5 // 3))
    assert step.learning_rate == FULL.optimizer.learning_rate * factor


def test_an_extended_trial_that_is_resumed_anywhere_ends_bit_equal(toy, tmp_path):
    straight = session(toy, tmp_path / "straight")
    planned = reports(straight, LORA)[-1].target_tokens
    given = [Extension(target_tokens=planned * 4 // 3, from_step=1)]
    straight.start("trial", LORA)
    whole = extended(straight, given)
    # Told of the extension from the start, as a driver that resumes is: the first stretch is still the old budget's.
    for number in range(len(whole) - 1):
        resumed = session(toy, tmp_path / f"resumed{number}")
        resumed.start("trial", LORA)
        if number:
            resumed.load(folder_at(whole[number - 1].checkpoint))
        rest = [resumed.advance(Signals(extensions=given))]
        while not rest[-1].done:
            rest.append(resumed.advance(Signals(extensions=given)))
        assert curve(rest) == curve(whole[number:])
        for name, tensor in weights(straight).items():
            assert torch.equal(tensor, weights(resumed)[name]), name


def test_a_trial_extended_after_its_last_report_goes_on(toy, tmp_path):
    of = session(toy, tmp_path)
    planned = reports(of, FULL)[-1]
    more = of.advance(
        Signals(extensions=[Extension(target_tokens=planned.target_tokens * 4 // 3, from_step=planned.step)])
    )
    assert more.epoch == 4.0
    assert more.done


def test_a_trial_that_shall_end_is_evaluated_after_the_step_it_is_at(toy, tmp_path):
    of = session(toy, tmp_path)
    plain = reports(of, FULL)
    of.start("ended", FULL)
    report = of.advance(Signals(stop_requested=after(2)))
    assert (report.step, report.done) == (2, False)
    assert report.steps[1].loss == plain[0].steps[1].loss
    assert report.eval_loss < math.inf
    assert report.checkpoint


def test_a_warm_trial_begins_with_the_weights_of_another_and_an_optimizer_of_its_own(toy, tmp_path):
    of = session(toy, tmp_path)
    parent = reports(of, LORA, "parent")[-1]
    spec = LORA.model_copy(update={"optimizer": OptimizerSpec(learning_rate=1e-12), "seed": 5})
    of.start("child", spec, warm_from=folder_at(parent.checkpoint))
    assert not of.running.optimizer.state
    first = of.advance()
    assert first.eval_loss == pytest.approx(parent.eval_loss, abs=1e-6)
    assert first.epoch == 1.0


def test_trials_in_one_session_are_as_if_each_had_its_own(toy, tmp_path):
    shared = session(toy, tmp_path)
    in_turn = [curve(reports(shared, spec)) for spec in (FULL, LORA, FULL, LORA)]
    alone = [curve(reports(session(toy, tmp_path), spec)) for spec in (FULL, LORA)]
    assert in_turn == alone + alone


def test_training_learns_and_counts_every_target_once_per_epoch(toy, tmp_path):
    of = session(toy, tmp_path)
    progress = reports(of, FULL)
    per_epoch = of.running.train_store.total_targets
    assert progress[-1].target_tokens == 3 * per_epoch
    assert [report.done for report in progress] == [False, False, True]
    assert progress[-1].eval_loss < 0.8 * progress[0].eval_loss


def test_lora_leaves_the_base_alone_and_changes_every_adapter_weight(toy, tmp_path):
    of = session(toy, tmp_path)
    of.start("trial", LORA)
    before = weights(of)
    of.advance()
    changed = {name for name, tensor in weights(of).items() if not torch.equal(tensor, before[name])}
    assert changed == {name for name in before if "lora_" in name}


def test_a_diverged_trial_ends_with_the_reason_and_the_session_goes_on(toy, tmp_path):
    of = session(toy, tmp_path)
    wild = FULL.model_copy(
        update={"optimizer": OptimizerSpec(learning_rate=1e30), "schedule": ScheduleSpec(name="constant")}
    )
    (progress,) = reports(of, wild)
    assert progress.done
    assert progress.checkpoint is None
    assert progress.eval_loss == math.inf
    assert "lower optimizer.learning_rate" in progress.diverged
    assert curve(reports(of, FULL)) == curve(reports(session(toy, tmp_path), FULL))


def test_a_model_whose_packed_conversations_see_each_other_is_not_packed(toy, tmp_path):
    _, prepared, pad_token_id = toy
    config = OPTConfig(
        vocab_size=len(letter_tokenizer()),
        hidden_size=32,
        word_embed_proj_dim=32,
        ffn_dim=64,
        num_hidden_layers=2,
        num_attention_heads=4,
    )
    OPTForCausalLM(config).save_pretrained(tmp_path / "opt")  # its mask takes no notice of positions that restart
    of = session((tmp_path / "opt", prepared, pad_token_id), tmp_path, attention="eager")
    packed, unpacked, auto = (
        FULL.model_copy(update={"batch": BatchSpec(rows_per_step=8, packing=packing)})
        for packing in (True, False, "auto")
    )
    for spec in (packed, packed.model_copy(update={"method": LORA.method})):
        with pytest.raises(ValueError, match="packing") as caught:
            of.start("trial", spec)
        assert str(caught.value) == (
            f"model.path={tmp_path / 'opt'}: with model.attention=eager it lets packed conversations see each other;"
            " set batch.packing: false"
        )
    progress = reports(of, unpacked)
    assert progress[-1].eval_loss < progress[0].eval_loss
    assert curve(reports(of, auto)) == curve(progress)
    assert not of.running.spec.batch.packing


def test_isolation_is_tried_once_for_each_loaded_base(toy, tmp_path, monkeypatch):
    tried = []

    def counted(*arguments, **others):
        tried.append(arguments)
        return isolates_packed_rows(*arguments, **others)

    monkeypatch.setattr(loss_module, "isolates_packed_rows", counted)
    of = session(toy, tmp_path)
    for spec in (FULL, LORA, FULL, LORA):
        of.start("trial", spec)
    assert len(tried) == 1


def test_a_checkpoint_holds_plain_files_only(toy, tmp_path):
    of = session(toy, tmp_path)
    of.start("trial", LORA)
    directory = of.advance().checkpoint
    names = {str(path.relative_to(directory)) for path in tmp_path.glob("trial/step_*/**/*") if path.is_file()}
    assert names == {
        "spec.json",
        "base.json",
        "state.json",
        "optimizer.safetensors",
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
    }


def test_gradient_checkpointing_changes_no_loss(toy, tmp_path):
    for spec in (FULL, LORA):
        plain = curve(reports(session(toy, tmp_path), spec))
        recomputed = session(toy, tmp_path)
        assert curve(reports(recomputed, spec.model_copy(update={"gradient_checkpointing": True}))) == pytest.approx(
            plain, abs=2e-5
        )


def test_embeddings_need_no_gradient_after_a_trial_with_checkpointing(toy, tmp_path):
    of = session(toy, tmp_path)
    hooks = []
    for checkpointing in (False, True, False):
        of.start("trial", LORA.model_copy(update={"gradient_checkpointing": checkpointing}))
        hooks.append(len(of.running.model.get_input_embeddings()._forward_hooks))
    assert hooks == [0, 1, 0]


def test_the_eight_bit_optimizer_says_that_it_needs_cuda():
    spec = OptimizerSpec(name="paged_adamw_8bit")
    with pytest.raises(ValueError, match="CUDA unified memory"):
        make_optimizer(nn.Linear(2, 2), spec, torch.device("cpu"))


@pytest.mark.parametrize(
    ("name", "spent", "factor"),
    [
        ("cosine", 0.05, 0.5),
        ("cosine", 0.1, 1.0),
        ("cosine", 0.55, 0.6),
        ("cosine", 1.0, 0.2),
        ("linear", 0.55, 0.6),
        ("linear", 1.5, 0.2),
        ("constant", 0.9, 1.0),
    ],
)
def test_the_learning_rate_follows_the_share_of_the_budget_spent(name, spent, factor):
    schedule = ScheduleSpec(name=name, warmup_fraction=0.1, final_fraction=0.2)
    assert learning_rate_factor(schedule, spent) == pytest.approx(factor)


def test_optimizer_tensors_that_share_memory_are_saved_each_on_its_own(tmp_path):
    model = nn.Linear(2, 2)
    optimizer = make_optimizer(model, OptimizerSpec(), torch.device("cpu"))
    table = torch.arange(4.0)
    for parameter in model.parameters():
        optimizer.state[parameter] = {"step": torch.tensor(3.0), "qmap1": table}
    numbers = save_optimizer(optimizer, model, tmp_path, OneWorker())
    fresh = make_optimizer(model, OptimizerSpec(), torch.device("cpu"))
    load_optimizer(fresh, model, tmp_path, numbers)
    assert [state["qmap1"].tolist() for state in fresh.state.values()] == [[0.0, 1.0, 2.0, 3.0]] * 2


def test_the_norm_of_large_gradients_is_exact_on_a_cpu():
    generator = torch.Generator().manual_seed(0)
    large = torch.empty(20_000, 500).normal_(generator=generator)  # vector_norm loses 3e-4 of its norm
    gradients = [large, torch.ones(3), torch.zeros(0, 4), torch.full((), 2.0)]
    exact = torch.stack([gradient.double().norm() for gradient in gradients]).norm()
    assert float(gradient_norm(gradients)) == pytest.approx(float(exact), rel=1e-6)


def test_a_weight_is_cast_once_an_evaluation_and_losses_are_the_same_bits(toy, tmp_path, monkeypatch):
    of = session(toy, tmp_path)
    batch = BatchSpec(rows_per_step=4, rows_per_micro_batch=1)  # one batch of the evaluation would show nothing
    of.start("trial", FULL.model_copy(update={"batch": batch, "precision": "bf16"}))
    counts, losses = [], []
    for kept in (True, False):
        if not kept:
            monkeypatch.setattr(ScoredModel, "evaluating", lambda _: contextlib.nullcontext())
        with Casts(of.running.model) as casts:
            losses.append(of.running._losses_on(of.running.eval_store))
        counts.append(casts.count)
    assert 0 < counts[0] == len(casts.copied) < counts[1]
    assert losses[0] == losses[1]


def test_a_weight_is_cast_once_a_step_and_gradients_are_the_same_bits(toy, tmp_path, monkeypatch):
    spec = FULL.model_copy(update={"batch": BatchSpec(rows_per_step=4, rows_per_micro_batch=1), "precision": "bf16"})
    counts, gradients = [], []
    for kept in (True, False):
        of = session(toy, tmp_path / str(kept))
        of.start("trial", spec)
        of.running.step()  # the first one also looks at the head
        if not kept:
            monkeypatch.setattr(ScoredModel, "accumulating", lambda _: contextlib.nullcontext())
        with Casts(of.running.model) as casts:
            of.running._backward(of.running.draw().batches, num_targets=1)
        counts.append(casts.count)
        gradients.append([weight.grad for weight in of.running.model.parameters()])
    assert counts[0] < counts[1] / 2
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))
