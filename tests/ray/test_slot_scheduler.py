"""Tune's own schedulers below the scheduler of slots, in real searches of trials that train nothing."""

import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest
from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, HyperBandScheduler, MedianStoppingRule

from components.cluster.capacity.placement import SlotPlacement
from components.cluster.ray_internals.tune_loop import interruptible
from components.cluster.ray_session import connected
from components.cluster.scheduling.scheduler import on_slots
from components.cluster.slots.slot_result import METRIC, TIME, ExitReason, SlotResult
from components.cluster.slots.trial_config import KEY, TrialConfig
from components.experiment.spec import ExperimentSpec, TrialSpec, WorkersSpec
from tests.support.records import progress

TRIALS, BUDGET = 4, 2
EXPERIMENT = ExperimentSpec.model_validate(
    {
        "name": "toy",
        "model": {"path": "somewhere"},
        "data": {"train": "a.jsonl"},
        "search": {"trials": TRIALS, "space": {"lora": {"method": {"rank": {"integer": [1, TRIALS]}}}}},
    }
)
BELOW = {
    "fifo": FIFOScheduler(),
    "asha": ASHAScheduler(
        time_attr=TIME, metric=METRIC, mode="min", max_t=BUDGET, reduction_factor=2, stop_last_trials=False
    ),
    "median": MedianStoppingRule(time_attr=TIME, metric=METRIC, mode="min", grace_period=0, min_samples_required=1),
    "hyperband": HyperBandScheduler(time_attr=TIME, metric=METRIC, mode="min", max_t=BUDGET, reduction_factor=2),
}


class Counter(tune.Trainable):
    """Spends one token a step; the higher a trial's number, the higher its loss. Trial 1 leaves its slot once."""

    def setup(self, config, folder):
        self.folder = Path(folder)
        self.reset_config(config)

    def reset_config(self, new_config):
        self.number, self.tokens = TrialConfig.of(new_config).number, 0
        return True

    def step(self):
        if self.number == 1 and self.tokens == 1 and not (left := self.folder / "left").exists():
            left.touch()
            return self.result(exit_reason=ExitReason.PREEMPTED)
        self.tokens += 1
        with (self.folder / f"{self.number}.txt").open("a") as steps:
            steps.write(f"{self.tokens}\n")
        return self.result()

    def result(self, exit_reason=None):
        report = progress(self.tokens, float(self.number), target_tokens=self.tokens)
        done = exit_reason is None and self.tokens == BUDGET
        return SlotResult(slot="s", progress=report, exit_reason=exit_reason, done=done).to_tune()

    def save_checkpoint(self, checkpoint_dir):
        (Path(checkpoint_dir) / "tokens.json").write_text(json.dumps(self.tokens))

    def load_checkpoint(self, checkpoint_dir):
        self.tokens = json.loads((Path(checkpoint_dir) / "tokens.json").read_text())


class Killed(Counter):
    """Trial 1 loses its slot once, while trial 2 keeps the other one until somebody has got that place."""

    def step(self):
        lost = self.folder / "lost"
        if self.number == 1 and self.tokens == 1 and not lost.exists():
            lost.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        while self.number == 2 and not set(self.order()) & {"3", "1 again"}:
            time.sleep(0.1)
        with (self.folder / "order.txt").open("a") as order:
            order.write(f"{self.number} again\n" if lost.exists() and self.number == 1 else f"{self.number}\n")
        return super().step()

    def order(self):
        file = self.folder / "order.txt"
        return file.read_text().splitlines() if file.exists() else []


@pytest.fixture(scope="module", autouse=True)
def cluster():
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        with connected(num_cpus=2):
            yield


def fit(folder, trainable, below):
    configs = [TrialConfig(number=n + 1, branch="lora", varied={}, spec=TrialSpec()).to_tune() for n in range(TRIALS)]
    tuner = tune.Tuner(
        tune.with_resources(
            tune.with_parameters(trainable, folder=str(folder)), lambda config: SlotPlacement(WorkersSpec(), 1)
        ),
        param_space={KEY: tune.grid_search([config[KEY] for config in configs])},
        tune_config=tune.TuneConfig(scheduler=on_slots(below, EXPERIMENT), reuse_actors=True),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(folder),
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=1),
            failure_config=tune.FailureConfig(max_failures=1),
            verbose=0,
        ),
    )
    with interruptible(threading.Event()):  # Tune's own handlers of signals would outlast the test
        tuner.fit()


@pytest.mark.parametrize("below", BELOW)
def test_every_trial_ends_and_one_that_leaves_its_slot_goes_on_where_it_was(tmp_path, below):
    fit(tmp_path, Counter, BELOW[below])
    steps = {n: (tmp_path / f"{n}.txt").read_text().split() for n in range(1, TRIALS + 1)}
    assert (tmp_path / "left").exists()
    assert steps[1] == ["1", "2"]
    assert all(taken in (["1"], ["1", "2"]) for taken in steps.values())
    if below == "fifo":
        assert [len(taken) for taken in steps.values()] == [2, 2, 2, 2]
    if below == "hyperband":  # two brackets of two trials: the worse one of the second is stopped half way
        assert [len(taken) for taken in steps.values()] == [2, 2, 2, 1]


def test_a_trial_that_has_lost_its_slot_goes_on_before_others_begin(tmp_path):
    fit(tmp_path, Killed, FIFOScheduler())
    order = (tmp_path / "order.txt").read_text().splitlines()
    assert order.index("1 again") < order.index("3")
