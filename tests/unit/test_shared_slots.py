"""Which trials share a slot, what each reserves of it, and what is refused before a search starts."""

import pytest

from components.cluster.capacity.cluster_capacity import ClusterCapacity, NodeType, bundle
from components.cluster.capacity.placement import SlotPlacement
from components.experiment.check_search import check_search
from components.experiment.experiment_errors import ExperimentError
from components.experiment.shared_slots import kind_of
from components.experiment.spec import ExperimentSpec, FullMethod, LoraMethod, TrialSpec, WorkersSpec
from components.training.model_settings import abilities_for
from tests.support.zoo import config_of

LORA = {"method": {"kind": "lora"}}


def experiment(trials_per_slot, space=None, resources=None):
    return ExperimentSpec.model_validate(
        {
            "name": "x",
            "model": {"path": "a model"},
            "data": {"train": "a.jsonl", "max_tokens": 64},
            "search": {"space": space or {"lora": LORA}, "trials_per_slot": trials_per_slot},
            "resources": resources or {},
        }
    )


def one_node(cpus, **resources):
    kind = NodeType(name="node", max_count=1, resources={"CPU": cpus, **resources}, head=True)
    return ClusterCapacity(types=(kind,), max_nodes=0, grows=False)


@pytest.mark.parametrize("trials", [2, 3, 7, 32])
def test_a_worker_holds_as_many_trials_as_share_it(trials):
    workers = WorkersSpec().shared_by(trials)
    assert workers.trials_at_once == trials
    assert sum([bundle(workers)["CPU"]] * trials) <= 1.0
    assert one_node(4.0).trials_at_once(workers) == 4 * trials
    on_gpu = WorkersSpec(gpus_per_worker=1.0, cpus_per_worker=2.0).shared_by(trials)
    assert one_node(64.0, GPU=2.0).trials_at_once(on_gpu) == 2 * trials


def test_one_trial_a_slot_is_what_it_was():
    assert experiment(1).workers_of(LoraMethod()) == WorkersSpec()
    assert WorkersSpec().shared_by(1).trials_at_once == 1
    assert bundle(WorkersSpec()) == {"CPU": 1.0}


@pytest.mark.parametrize("method", [FullMethod(), LoraMethod(dora=True), LoraMethod(quantize="nf4")])
def test_what_cannot_share_has_workers_of_its_own(method):
    assert experiment(4).workers_of(LoraMethod()).trials_at_once == 4
    assert experiment(4).workers_of(method) == WorkersSpec()


def test_a_slot_is_handed_on_to_trials_of_its_kind_only():
    workers, of = WorkersSpec().shared_by(2), experiment(2).model
    trial = TrialSpec(precision="bf16")
    kinds = [
        kind_of(of, trial),
        kind_of(of, trial.model_copy(update={"seed": 3, "method": LoraMethod(rank=2)})),
        kind_of(of, trial.model_copy(update={"precision": "fp32"})),
        kind_of(of, trial.model_copy(update={"gradient_checkpointing": True})),
        kind_of(of.model_copy(update={"path": "another"}), trial),
    ]
    placements = [SlotPlacement(workers, 1, kind) for kind in kinds]
    assert [placement == placements[0] for placement in placements] == [True, True, False, False, False]


def test_a_search_none_of_whose_trials_can_share_is_refused_with_the_reasons():
    space = {"full": {"method": {"kind": "full"}}, "dora": {"method": {"kind": "lora", "dora": True}}}
    with pytest.raises(
        ExperimentError, match=r"search.trials_per_slot: .*full fine-tuning.*; method.dora.*; set it to 1"
    ):
        check_search(experiment(4, space))
    check_search(experiment(1, space))
    check_search(experiment(4, {**space, "lora": LORA}))
    wide = {"lora": {"workers": 2}}
    with pytest.raises(ExperimentError, match="a trial with 2 workers adds gradients up over them"):
        check_search(experiment(4, resources=wide))


@pytest.mark.parametrize("trials", [0, 33])
def test_the_number_of_trials_has_bounds(trials):
    with pytest.raises(ValueError, match="trials_per_slot"):
        experiment(trials)


def test_a_model_whose_trials_cannot_share_a_slot_is_refused_before_the_search():
    llama = config_of("llama")
    abilities_for(experiment(2), llama)
    dropping = config_of("llama")
    dropping.attention_dropout = 0.1
    with pytest.raises(ExperimentError, match=r"search.space.lora: search.trials_per_slot: 2: .*attention_dropout=0.1"):
        abilities_for(experiment(2), dropping)
    abilities_for(experiment(1), dropping)
    with pytest.raises(ExperimentError, match=r"search.trials_per_slot: 2: .*only plain linear layers"):
        abilities_for(experiment(2, {"lora": {"method": {"kind": "lora", "target_modules": ["embed_tokens"]}}}), llama)
