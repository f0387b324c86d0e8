"""What a search will keep on its storage is known before it starts: against what real trials keep, and against its budget."""

import re
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM

from components.cluster.capacity.cluster_capacity import ClusterCapacity, NodeType
from components.cluster.driver.checkpoint_retention import CheckpointRetention
from components.cluster.driver.trial_control import TrialController
from components.cluster.slots.search_context import SearchContext
from components.data.prepare import prepare_experiment
from components.errors import InputError
from components.experiment.load_experiment import load_experiment
from components.experiment.spec import FullMethod, LoraMethod
from components.models.base.reference import BaseReference
from components.planning.disk_plan import DiskCase, disk_use
from components.records.commands import CloneTrial
from components.records.disk_use import IN_A_BUCKET, BranchDisk, DiskUse
from components.records.events import InterimCheckpoint, TrialEnded, TrialProgressed
from components.records.histories import TrialHistories
from components.records.journal import Journal
from components.records.on_message import ignore_message
from components.search.check_disk import check_disk
from components.search.find import differences
from components.search.prepare_search import prepare_search
from components.storage.local import LocalFolder
from components.storage.size import tree_bytes
from components.training.workers import OneWorker
from tests.support.inbox import Inbox
from tests.support.records import started
from tests.support.sessions import FULL, Signals, session
from tests.support.three_trials import RECORDS
from tests.support.toy import letter_tokenizer, toy_conversations, write_messages_jsonl

EXPERIMENT = """
name: toy
model: {path: %(folder)s/model}
data: {train: %(folder)s/talks.jsonl, eval_fraction: 0.15, max_tokens: 128}
trial: {budget: {epochs: 3, evaluations: 3}, batch: {rows_per_step: 4, rows_per_micro_batch: 4}, precision: fp32}
storage: {path: %(folder)s/runs}
search:
  trials: 2
  scheduler: {name: none}
  space: {%(kind)s: {method: %(method)s, optimizer: {learning_rate: {log_uniform: [1.0e-4, 1.0e-3]}}}}
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Large enough that its weights are most of what is kept."""
    folder = tmp_path_factory.mktemp("wide")
    torch.manual_seed(0)
    tokenizer = letter_tokenizer()
    wide = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=384,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(wide).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    write_messages_jsonl(folder / "talks.jsonl", toy_conversations(25))
    return folder


class Watched(OneWorker):
    """Notes the bytes of the storage whenever a checkpoint has been written and none has been deleted for it yet."""

    def __init__(self, storage):
        super().__init__()
        self.storage, self.most = storage, 0

    def barrier(self):
        self.most = max(self.most, tree_bytes(self.storage))


def context(experiment, search, dataset):
    base = BaseReference(model=experiment.model, digest="sha256:toy", chat_format="auto")
    return SearchContext(
        experiment=experiment,
        search_id="search",
        folder=search,
        prepared=dataset.directory,
        budget=1,
        pad_token_id=0,
        base=base,
    )


@pytest.mark.parametrize("method", [LoraMethod(rank=16), FullMethod()], ids=lambda method: method.kind)
def test_the_estimate_is_within_15_percent_of_what_real_trials_keep(model, tmp_path, method):
    (tmp_path / "toy.yaml").write_text(
        EXPERIMENT % {"folder": model, "kind": method.kind, "method": method.model_dump_json(exclude_none=True)}
    )
    experiment = load_experiment(tmp_path / "toy.yaml", [f"storage.path={tmp_path}/runs"])
    dataset = prepare_experiment(experiment, model / "model", context=None)
    budget = FULL.budget.in_target_tokens(dataset.train.total_targets)
    case = DiskCase(experiment=experiment, config=AutoConfig.from_pretrained(model / "model"), dataset=dataset)
    use = disk_use(experiment, [case], budget).on_cluster({method.kind: 1})

    # The worst that can happen: the first report stays the best, and the trial is interrupted twice before its last one.
    search = experiment.folder / "search"
    watched, journal, histories = Watched(tmp_path / "runs"), Journal(search), TrialHistories()
    retention = CheckpointRetention(context(experiment, search, dataset), histories)
    histories.subscribe(journal.append)
    histories.subscribe(retention.update)
    spec = FULL.model_copy(update={"method": method})
    toy = model / "model", dataset.directory, 0
    for number in (1, 2):
        trial, running = f"trial{number}", session(toy, search / "checkpoints", watched)
        histories.record(started(trial, number=number, branch=method.kind, spec=spec))
        running.start(trial, spec)
        for step in range(3):
            for _ in range(2 if step == 2 else 0):
                assert isinstance(running.advance(Signals(preempted=lambda: True)), InterimCheckpoint)
            report = running.advance().model_copy(update={"eval_loss": 1.0 + step})
            histories.record(TrialProgressed(trial_id=trial, progress=report, slot="s", time=1.0))
        histories.record(TrialEnded(trial_id=trial, state="completed", time=2.0))
    journal.close()
    assert use.peak == pytest.approx(watched.most, rel=0.15)
    assert use.end == pytest.approx(tree_bytes(tmp_path / "runs"), rel=0.15)


def branch(name, trials, gigabytes, at_once, **fields):
    """Its checkpoints are three times its weights."""
    weights = round(gigabytes * 1e9)
    sizes = {"weights": weights, "optimizer": 2 * weights, "records": 0}
    return BranchDisk(branch=name, kind=name, trials=trials, at_once=at_once, **sizes, **fields)


def test_the_most_is_kept_while_the_largest_trials_run():
    use = DiskUse(branches=(branch("lora", 16, 1, 4), branch("full", 8, 10, 2)), prepared=10**9)
    # On a cluster of four places for lora, two of full run, and two of lora beside them.
    assert use.running == {"full": 2, "lora": 2}
    assert use.end == 16e9 + 80e9 + 1e9
    assert use.peak == 2 * 4 * 30e9 + 2 * 4 * 3e9 + 6 * 10e9 + 14 * 1e9 + 1e9
    assert use.arithmetic() == [
        "lora: 16 trials, 2 that run x 4 checkpoints x 3.0 GB = 24.0 GB + 14 ended x 1.0 GB of weights = 14.0 GB",
        "full: 8 trials, 2 that run x 4 checkpoints x 30.0 GB = 240.0 GB + 6 ended x 10.0 GB of weights = 60.0 GB",
        "prepared data 1.0 GB, journal and evaluations 0 MB",
    ]
    assert use.model_copy(update={"max_concurrent": 1}).running == {"full": 1, "lora": 0}
    # Those on GPUs leave CPUs to the others; in a bucket one more checkpoint is on its way.
    apart = DiskUse(
        branches=(branch("lora", 3, 1, 4), branch("full", 2, 1, 1, on_gpu=True)), prepared=0, checkpoints=IN_A_BUCKET
    )
    assert apart.running == {"full": 1, "lora": 3}
    assert apart.peak == 4 * 5 * 3e9 + 1e9


def test_a_clone_takes_the_room_of_another_trial_of_its_method():
    use = DiskUse(branches=(branch("lora", 2, 1, 2, rank=8),), prepared=0)
    assert use.end == 2e9
    cold = use.with_clone("lora", LoraMethod(rank=4), warm=False)
    assert (cold.end, cold.peak) == (3e9, 2 * 4 * 3e9 + 1e9)
    warm = use.with_clone("lora", LoraMethod(rank=24), warm=True)  # the weights that it begins with stay
    assert warm.end == 2e9 + 3e9 + 3e9
    assert use.with_clone("lora", FullMethod(), warm=False) is None


TWO_CPUS = ClusterCapacity(
    types=(NodeType(name="here", max_count=1, resources={"CPU": 2.0}),), max_nodes=1, grows=False
)


def opened(budget="null", *overrides):
    said = []
    experiment = load_experiment("toy.yaml", [f"storage.budget_gb={budget}", "search.trials=4", *overrides])
    prepared = prepare_search(experiment, on_message=said.append)
    prepared.lock.close()
    return prepared, said


def test_a_search_above_its_budget_is_refused_before_it_starts_with_the_arithmetic(toy_search):
    prepared, said = opened("1e-4")
    with pytest.raises(InputError, match=r"^storage\.budget_gb=0\.0001: this search may keep [\d.]+ MB in ") as refused:
        check_disk(prepared, TWO_CPUS, said.append)
    lora = r"lora: 4 trials, 2 that run x 4 checkpoints x [\d.]+ MB = [\d.]+ MB \+ 2 ended x [\d.]+ MB of weights"
    assert re.search(lora, str(refused.value))
    assert "Take fewer trials (search.trials), fewer at once (search.max_concurrent_trials), LoRA" in str(refused.value)
    assert not prepared.folder.has_file("search.json")  # nothing has begun
    prepared, said = opened("1.0")
    use = check_disk(prepared, TWO_CPUS, said.append)
    assert said[-1] == use.sentence()


def test_evaluations_of_a_sample_are_not_kept_and_a_sample_of_all_is_none(toy_search):
    rungs = "search.scheduler={name: asha, reduction_factor: 2}"
    (plain, quiet), (sampled, still), (whole, said) = (
        opened("null", rungs, *(f"evaluation.conversations_at_rungs={count}" for count in counts))
        for counts in ((), (1,), (999,))
    )
    held_out = len(plain.dataset.eval)
    remark = f"evaluation.conversations_at_rungs=999: {held_out} conversations are held out, and all decide the rungs"
    assert [remark in each for each in (quiet, still, said)] == [False, False, True]
    assert sampled.disk.end < plain.disk.end == whole.disk.end


def test_a_disk_with_less_room_is_a_warning_and_what_a_search_has_already_counts(toy_search, monkeypatch):
    prepared, said = opened()
    use = check_disk(prepared, TWO_CPUS, ignore_message)
    monkeypatch.setattr(LocalFolder, "free_bytes", lambda _: use.peak // 2)
    check_disk(prepared, TWO_CPUS, said.append)
    assert re.search(
        r"^Warning: \S+ has [\d.]+ MB of room left, and this search may take [\d.]+ MB more; where", said[-1]
    )
    prepared.folder.write_text("checkpoints", "x" * use.peak)  # it has grown to its full size: nothing more is to come
    check_disk(prepared, TWO_CPUS, said.append)
    assert said[-1] == use.sentence()


def test_the_budget_of_an_unfinished_search_may_be_changed():
    began = load_experiment("experiments/quickstart.yaml")
    assert differences(began, load_experiment("experiments/quickstart.yaml", ["storage.budget_gb=3"])) == []


@pytest.mark.parametrize(
    ("gigabytes", "changes", "reply"),
    [
        (2.0, {"schedule.warmup_fraction": 0.3}, None),
        (
            1.0,
            {"schedule.warmup_fraction": 0.3},
            r"with that clone the search may keep 1\.3 GB, and storage\.budget_gb=1",
        ),
        (9.0, {"method.kind": "full"}, "storage.budget_gb=9 holds what was planned, and no trial of method full was"),
        (None, {"method.kind": "full"}, None),
    ],
)
def test_a_clone_that_would_exceed_the_budget_is_refused(toy_search, monkeypatch, gigabytes, changes, reply):
    monkeypatch.setenv("RAY_ADDRESS", "ray-head:6379")  # the capacity of a cluster is not this test's matter
    monkeypatch.setattr("components.cluster.driver.trial_control.capacity_of_cluster", lambda: TWO_CPUS)
    inbox = Inbox(CloneTrial(trial="1", changes=changes))
    experiment = load_experiment("toy.yaml", [f"storage.budget_gb={gigabytes or 'null'}"])
    use = DiskUse(branches=(branch("lora", 1, 0.1, 1, rank=16),), prepared=0)
    context = SimpleNamespace(experiment=experiment, folder=experiment.folder)
    histories = TrialHistories([RECORDS[0]])
    TrialController(context, None, histories, None, inbox, disk=use).process_requests()
    (answer,) = inbox.replies
    assert answer.accepted == (reply is None), answer.message
    assert reply is None or re.search(reply, answer.message)
