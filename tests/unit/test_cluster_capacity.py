"""What fits a cluster, worked out by hand; what a cluster may become is asked of a real one in test_cluster_autoscaling."""

import pickle
from pathlib import Path

import pytest
import yaml

from components.cluster.capacity.autoscaler_config import capacity_of_config, capacity_of_nodes, kubernetes_config
from components.cluster.capacity.cluster_capacity import (
    ClusterCapacity,
    InsufficientCapacityError,
    NodeType,
    check_capacity,
    selects,
)
from components.cluster.capacity.placement import SlotPlacement
from components.cluster.scheduling.scheduler import pending_trials
from components.experiment.load_experiment import load_experiment
from components.experiment.spec import WorkersSpec

ROOT = Path(__file__).parents[2]
CONFIG = yaml.safe_load("""
head_node_type: head
max_workers: 6
available_node_types:
  head: {resources: {CPU: 0}}
  small: {resources: {CPU: 4, GPU: 1}, max_workers: 4, labels: {ray.io/market-type: spot}}
  wide: {resources: {CPU: 32, GPU: 8}}
""")
ROOM = capacity_of_config(CONFIG)

EXPERIMENT = """
name: toy
model: {path: somewhere}
data: {train: a.jsonl}
trial: {batch: {rows_per_step: 128}}
search:
  trials: 20
  space:
    lora: {method: {rank: {integer: [1, 64]}}}
    full: {method: {kind: full}, optimizer: {learning_rate: {log_uniform: [1.0e-5, 1.0e-4]}}}
resources:
  lora: {gpus_per_worker: 1, node_labels: {ray.io/market-type: spot}}
  full: {workers: 8, gpus_per_worker: 1, placement: strict_pack}
"""


@pytest.fixture
def path(tmp_path):
    (tmp_path / "toy.yaml").write_text(EXPERIMENT)
    return tmp_path / "toy.yaml"


def workers(count, **wishes):
    return WorkersSpec(workers=count, gpus_per_worker=1, **wishes)


def test_the_cap_on_all_nodes_together_is_spent_on_the_widest_nodes():
    assert ROOM.max_nodes == 6
    assert [kind.max_count for kind in ROOM.types] == [1, 4, 6]
    assert ROOM.workers_that_fit(workers(1)) == 6 * 8
    assert ROOM.trials_at_once(workers(9)) == 5


def test_strict_pack_counts_what_one_node_holds():
    assert ROOM.trials_at_once(workers(8, placement="strict_pack")) == 6
    assert ROOM.trials_at_once(workers(9, placement="strict_pack")) == 0
    assert ROOM.trials_at_once(workers(3, placement="strict_pack")) == 12  # two on each, and two GPUs stay free


def test_workers_with_labels_count_only_the_nodes_that_have_them():
    assert ROOM.workers_that_fit(workers(1, node_labels={"ray.io/market-type": "spot"})) == 4
    assert ROOM.workers_that_fit(workers(1, node_labels={"ray.io/market-type": "!spot"})) == 6 * 8


@pytest.mark.parametrize(
    ("selector", "value", "selected"),
    [
        ("a", "a", True),
        ("a", "b", False),
        ("a", None, False),
        ("!a", None, True),
        ("!a", "a", False),
        ("in(a, b)", "b", True),
        ("in(a,b)", "c", False),
        ("!in(a, b)", "a", False),
        ("!in(a, b)", None, True),
    ],
)
def test_label_selectors_read_as_ray_reads_them(selector, value, selected):
    assert selects(selector, value) is selected


def test_nodes_that_are_up_are_counted_together_if_they_are_alike():
    def node(number, alive=True, **resources):
        labels = {"ray.io/node-id": str(number)}
        return {"Alive": alive, "Resources": {f"node:{number}": 1.0, "memory": number, **resources}, "Labels": labels}

    room = capacity_of_nodes([node(1, CPU=4.0), node(2, CPU=4.0), node(3, CPU=2.0), node(4, alive=False, CPU=9.0)])
    assert not room.grows
    assert sorted((kind.resources["CPU"], kind.max_count) for kind in room.types) == [(2.0, 1), (4.0, 2)]


@pytest.mark.parametrize("file", ["ray_cluster.yaml", "experiments/cluster/raycluster.yaml"])
def test_the_cluster_files_hold_8_lora_trials_and_2_full_ones(file):
    config = yaml.safe_load((ROOT / file).read_text())
    if "spec" in config:
        config["metadata"]["namespace"] = "default"  # Kubernetes fills it in
        config = kubernetes_config(config)
    room = capacity_of_config(config)
    lora = WorkersSpec(gpus_per_worker=1, node_labels={"turnwise/method": "lora"})
    full = WorkersSpec(workers=8, gpus_per_worker=1, placement="strict_pack", node_labels={"turnwise/method": "full"})
    assert (room.trials_at_once(lora), room.trials_at_once(full)) == (8, 2)
    assert (
        room.workers_that_fit(WorkersSpec(cpus_per_worker=0.5, node_labels={"turnwise/method": "!in(lora, full)"})) == 0
    )


def test_a_cluster_of_kubernetes_without_an_autoscaler_is_the_nodes_it_has():
    assert kubernetes_config({"spec": {}}) is None


def test_tenths_of_a_core_add_up():
    room = ClusterCapacity(types=(NodeType(name="one", max_count=1, resources={"CPU": 1.0}),), max_nodes=1, grows=False)
    assert room.workers_that_fit(WorkersSpec(cpus_per_worker=0.1)) == 10


def test_a_trial_that_can_never_fit_is_refused_with_the_arithmetic_of_each_node_type(path):
    check_capacity(load_experiment(path), ROOM)
    wishes = ["resources.full.workers=9", "resources.lora.node_labels={ray.io/market-type: on-demand}"]
    with pytest.raises(InsufficientCapacityError) as refused:
        check_capacity(load_experiment(path, wishes), ROOM)
    assert str(refused.value) == (
        "the cluster has no room for a trial, even at its largest (6 nodes beside the head); ask for less, raise"
        " max_workers, or add a type of nodes\n"
        "  resources.lora (branch lora): 1 workers with 1 CPU + 1 GPU each need 1 places on nodes labelled"
        " ray.io/market-type: on-demand\n"
        "    head, 1 x (0 CPU): not labelled ray.io/market-type: on-demand\n"
        "    small, 4 x (4 CPU + 1 GPU): not labelled ray.io/market-type: on-demand\n"
        "    wide, 6 x (32 CPU + 8 GPU): not labelled ray.io/market-type: on-demand\n"
        "  resources.full (branch full): 9 workers with 1 CPU + 1 GPU each need 9 places on one node (strict_pack)\n"
        "    head, 1 x (0 CPU): 1 x 0 places\n"
        "    small, 4 x (4 CPU + 1 GPU): 4 x 1 places\n"
        "    wide, 6 x (32 CPU + 8 GPU): 6 x 8 places"
    )


def test_so_many_trials_wait_that_each_node_type_has_its_work_and_no_more(path):
    """10 wide trials come first, of which 6 fit; then 10 narrow ones, of which 4 fit."""
    assert pending_trials(load_experiment(path), ROOM) == 10 + 4


def test_fewer_trials_wait_if_the_user_lets_fewer_run(path):
    assert pending_trials(load_experiment(path, ["search.max_concurrent_trials=2"]), ROOM) == 10 + 2


def test_tpe_lets_a_quarter_of_the_cluster_wait(path):
    tpe = ["search.sampler=tpe", "resources.lora.node_labels={}"]
    assert pending_trials(load_experiment(path, tpe), ROOM) == 20 // 4  # 48 would fit, but there are 20
    assert pending_trials(load_experiment(path, ["search.sampler=tpe"]), ROOM) == 6 // 4


def test_a_slot_is_handed_on_only_to_trials_that_share_their_model_the_same_way():
    """Tune compares placements; bundles alone would hand a sharded model's slot to LoRA trials of as many workers."""
    sharded, copied = SlotPlacement(workers(2, parallel="fsdp"), 2), SlotPlacement(workers(2), 2)
    assert sharded.bundles == copied.bundles
    assert sharded != copied
    assert {sharded: "a slot"}.get(
        pickle.loads(pickle.dumps(SlotPlacement(workers(2, parallel="fsdp"), 2)))
    ) == "a slot"
