"""Several trials in one pass: each of them is what it would be alone, whoever comes and goes beside it."""

import json
import math
import random
from pathlib import Path

import pytest
import torch

from components.errors import InputError
from components.experiment.spec import (
    FullMethod,
    LoraMethod,
    why_alone,
)
from components.models.shared_base import SharedBase, TrialPart
from components.storage.open_folder import folder_at
from components.training import joint_step
from components.training.joint_step import step_together
from tests.support.co_trials import (
    FOUR,
    WILD,
    after,
    group_of,
    joined,
    lora,
    next_reports,
    reports_together,
    weights_in,
)
from tests.support.reads import Reads
from tests.support.sessions import LORA, Signals, curve, reports, session, weights
from tests.support.toy import tiny_llama

ATTENTIONS = pytest.mark.parametrize("attention", ["sdpa", "eager"], ids=["in one row", "row by row"])


def each_alone(toy, folder, specs, **of_the_model):
    return [
        curve(reports(session(toy, folder / f"alone{number}", **of_the_model), spec))
        for number, spec in enumerate(specs)
    ]


def all_together(toy, folder, specs, **of_the_model):
    of = session(toy, folder / "together", **of_the_model)
    group = group_of(of, specs[0])
    return [curve(found) for found in reports_together(group, [joined(of, group, spec) for spec in specs])]


@ATTENTIONS
def test_trials_together_have_the_curves_of_each_alone(toy, tmp_path, attention):
    alone = each_alone(toy, tmp_path, FOUR, attention=attention)
    together = all_together(toy, tmp_path, FOUR, attention=attention)
    assert len({len(each) for each in alone}) > 2  # some go on when others have ended
    for mine, other in zip(together, alone, strict=True):
        assert mine == pytest.approx(other, abs=1e-5)
    if attention == "sdpa":
        assert together[:3] == alone[:3]  # without padding every kernel computes what it would alone


def test_trials_whose_layers_are_computed_again_draw_their_dropout_once(toy, tmp_path):
    specs = [spec.model_copy(update={"gradient_checkpointing": True}) for spec in FOUR[1:3]]
    together, alone = (of(toy, tmp_path, specs) for of in (all_together, each_alone))
    for mine, other in zip(together, alone, strict=True):
        assert mine == pytest.approx(other, abs=1e-5)


def test_in_bf16_trials_together_have_the_curves_of_each_alone(toy, tmp_path):
    specs = [spec.model_copy(update={"precision": "bf16"}) for spec in FOUR[:2]]
    together, alone = (of(toy, tmp_path, specs) for of in (all_together, each_alone))
    for mine, other in zip(together, alone, strict=True):
        assert mine == pytest.approx(other, abs=2e-2)


def test_a_head_with_an_adapter_is_each_trials_own(toy, tmp_path):
    """In the toy model head and embeddings are one matrix."""
    specs = [
        lora(4, rows=4, dropout=0.2, target_modules=("lm_head", "v_proj")),
        lora(2, rows=3, seed=1),
        lora(3, rows=5, seed=2, target_modules=("lm_head",)),
    ]
    assert all_together(toy, tmp_path, specs) == each_alone(toy, tmp_path, specs)


def some_trials(generator):
    methods = [("q_proj",), ("gate_proj", "down_proj"), "all-linear", "all-linear"]
    specs = [
        lora(
            generator.choice([1, 2, 4, 8]),
            rows=generator.randint(1, 6),
            at_once=generator.randint(1, 4),
            dropout=generator.choice([0.0, 0.0, 0.1, 0.4]),
            learning_rate=generator.choice([1e-3, 1e-2]),
            seed=seed,
            epochs=generator.choice([0.5, 1.0]),
            target_modules=generator.choice(methods),
        )
        for seed in range(7)
    ]
    return [*specs, WILD]


def play(toy, folder, specs, generator):
    """Trials come and go by chance: they are interrupted, and go on from a checkpoint, together with others or alone."""
    of, beside = session(toy, folder / "group"), session(toy, folder / "beside")
    group = group_of(of, specs[0])
    found = {number: [] for number in range(len(specs))}
    waiting = [(number, None) for number in found]
    numbers, most = {}, 0
    while waiting or group.members:
        while waiting and (not group.members or generator.random() < 0.7):
            number, checkpoint = waiting.pop(0)
            if checkpoint and generator.random() < 0.3:
                beside.start(f"beside{number}", specs[number])
                beside.load(folder_at(checkpoint))
                while not (found[number] and found[number][-1].done):
                    found[number].append(beside.advance())
                continue
            trainer = joined(of, group, specs[number])
            numbers[trainer] = number
            if checkpoint:
                with group.alone(trainer.model):
                    trainer.load(Path(checkpoint))
        most = max(most, len(group.members))
        signals = {
            trainer: Signals(preempted=after(generator.randint(1, 4)))
            for trainer in group.members
            if generator.random() < 0.3
        }
        for trainer, progress in next_reports(group, signals).items():
            number = numbers[trainer]
            if progress is None:
                place = folder / f"interim{number}_{trainer.counters.step}"
                with group.alone(trainer.model):
                    trainer.save(folder_at(place), of.uploads)
                waiting.append((number, str(place)))
            else:
                found[number].append(progress)
            if progress is None or progress.done:
                group.leave(trainer)
    return found, most


@pytest.mark.parametrize("seed", range(2))
def test_whoever_joins_leaves_resumes_or_diverges_changes_no_other_trial(toy, tmp_path, seed):
    generator = random.Random(seed)
    specs = some_trials(generator)
    found, most = play(toy, tmp_path / "together", specs, generator)
    assert most >= 3
    of = session(toy, tmp_path / "alone")
    for number, spec in enumerate(specs):
        alone = reports(of, spec)
        assert curve(found[number]) == pytest.approx(curve(alone), abs=1e-5)
        assert [each.diverged for each in found[number]] == [each.diverged for each in alone]
        assert [each.step for each in found[number]] == [each.step for each in alone]
    assert found[7][-1].diverged
    assert found[7][-1].eval_loss == math.inf


def files_of(directory):
    return {str(path.relative_to(directory)): path for path in sorted(Path(directory).rglob("*")) if path.is_file()}


def without_times(content):
    """A state.json without what depends on the clock."""
    if isinstance(content, dict):
        return {
            name: without_times(value) for name, value in content.items() if "seconds" not in name and name != "time"
        }
    return [without_times(each) for each in content] if isinstance(content, list) else content


def test_a_checkpoint_written_beside_others_is_that_of_the_trial_alone(toy, tmp_path):
    alone = session(toy, tmp_path / "alone")
    alone.start("trial", FOUR[0])
    expected = files_of(alone.advance().checkpoint)
    of = session(toy, tmp_path / "together")
    group = group_of(of, FOUR[0])
    first, *_ = [joined(of, group, spec) for spec in FOUR]
    while first not in (said := next_reports(group)):
        for trainer in (trainer for trainer, progress in said.items() if progress.done):
            group.leave(trainer)
    with group.alone(first.model):
        first.save(folder_at(tmp_path / "written"), of.uploads)
    written = files_of(tmp_path / "written")
    assert written.keys() == expected.keys()
    state, expected_state = (json.loads(files.pop("state.json").read_text()) for files in (written, expected))
    assert without_times(state) == without_times(expected_state)
    assert all(path.read_bytes() == expected[name].read_bytes() for name, path in written.items())


def test_the_base_is_as_it_was_when_all_trials_have_left(toy, tmp_path):
    of = session(toy, tmp_path)
    group = group_of(of, FOUR[0])
    base = group.base.base
    before = {name: (weight.clone(), type(weight)) for name, weight in base.state_dict().items()}
    kinds = [type(module) for module in base.modules()]
    reports_together(group, [joined(of, group, spec) for spec in FOUR])
    assert [type(module) for module in base.modules()] == kinds
    assert base.state_dict().keys() == before.keys()
    assert all(torch.equal(weight, before[name][0]) for name, weight in base.state_dict().items())
    assert not {"peft_config", "_hf_peft_config_loaded"} & vars(base).keys()
    assert not group.base.models


def test_a_trial_begins_with_the_weights_that_it_has_alone_and_trains_its_own(toy, tmp_path):
    of = session(toy, tmp_path / "together")
    group = group_of(of, FOUR[0])
    trainers = [joined(of, group, spec) for spec in FOUR[:2]]
    began = [weights_in(group, trainer) for trainer in trainers]
    for _ in range(2):  # at the first one B is zero, and A has no gradient
        assert not step_together(group.base, trainers)
    for trainer, spec, before in zip(trainers, FOUR, began, strict=False):
        alone = session(toy, tmp_path / f"alone{spec.seed}")
        alone.start("trial", spec)
        expected = weights(alone)
        assert before.keys() == expected.keys()
        assert all(torch.equal(before[name], expected[name]) for name in expected)
        changed = {name for name, weight in weights_in(group, trainer).items() if not torch.equal(weight, before[name])}
        assert changed == {name for name in before if "lora_" in name}


def test_the_time_of_a_joint_step_is_counted_once(toy, tmp_path):
    of = session(toy, tmp_path)
    group = group_of(of, FOUR[0])
    trainers = [joined(of, group, spec) for spec in FOUR]
    step_together(group.base, trainers)
    longest = max(trainer.counters.seconds for trainer in trainers)
    assert 0 < sum(trainer.counters.worker_seconds for trainer in trainers) <= longest
    tokens = [trainer.interval.num_tokens for trainer in trainers]
    assert len(set(tokens)) > 1  # a trial with more tokens pays more
    assert max(trainers, key=lambda trainer: trainer.counters.worker_seconds).interval.num_tokens == max(tokens)


def test_nothing_is_waited_for_while_the_passes_of_a_joint_step_are_queued(toy, tmp_path):
    of = session(toy, tmp_path)
    group = group_of(of, FOUR[0])
    steps = [joint_step._drawn(joined(of, group, spec)) for spec in FOUR]
    with Reads() as reads:
        joint_step._backward(group.base, steps, 0)
    assert reads.count == 0


REFUSED = {
    "full fine-tuning changes the base": FullMethod(),
    "method.dora: true": LoraMethod(dora=True),
    "method.quantize: nf4": LoraMethod(quantize="nf4"),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_changes_the_base_or_its_products_is_trained_alone(reason):
    assert why_alone(LORA.method, 1) == ""
    assert why_alone(REFUSED[reason], 1).startswith(reason)


def test_a_trial_with_two_workers_is_trained_alone(toy, tmp_path):
    of = session(toy, tmp_path)
    group = group_of(of, LORA)
    of.workers.count = 2
    with pytest.raises(InputError, match=r"a trial with 2 workers adds gradients up over them.*trials_per_slot: 1"):
        joined(of, group, LORA)
    assert not group.base.models


@pytest.mark.parametrize("change", [{"precision": "bf16"}, {"gradient_checkpointing": True}])
def test_trials_that_compute_otherwise_are_not_in_one_group(toy, tmp_path, change):
    of = session(toy, tmp_path)
    group = group_of(of, LORA)
    joined(of, group, LORA)
    with pytest.raises(InputError, match=f"trials with {next(iter(change))} .*train them in other slots"):
        joined(of, group, LORA.model_copy(update=change))
    assert len(group.members) == 1


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        (LoraMethod(dora=True), "method.dora: true"),
        (
            LoraMethod(target_modules=("embed_tokens",)),
            r"model.embed_tokens is a Embedding, and only plain linear layers",
        ),
    ],
)
def test_adapters_that_take_no_tokens_of_their_own_leave_no_trace_on_the_base(method, reason):
    model = tiny_llama(64)
    kinds = [type(module) for module in model.modules()]
    base = SharedBase(model)
    with pytest.raises(InputError, match=reason):
        base.add(method, seed=0)
    assert [type(module) for module in model.modules()] == kinds
    assert not base.models
    assert base.add(LoraMethod(), seed=0) in base.models


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"attention_dropout": 0.1}, "the model itself has attention_dropout=0.1"),
        ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "rope_type=dynamic"),
    ],
)
def test_a_model_whose_rows_depend_on_each_other_is_not_shared(config, reason):
    with pytest.raises(InputError, match=reason):
        SharedBase(tiny_llama(64, **config))


def test_a_layer_that_computes_other_tokens_than_the_batchs_is_an_error():
    base = SharedBase(tiny_llama(64))
    part = TrialPart(model=base.add(LoraMethod(rank=2), seed=0), place=(slice(0, 1), slice(0, 4)))
    with base.together([part], (1, 8)), pytest.raises(ValueError, match=r"computes 4 of 1 x 8 tokens"):
        base.base(input_ids=torch.arange(4)[None])
