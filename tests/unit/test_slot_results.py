"""What a slot and Tune hand to each other: a trial's config, and a slot's results."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ray.tune.utils import flatten_dict

from components.cluster.slots.slot_result import ExitReason, SlotResult
from components.cluster.slots.trial_config import TrialConfig
from components.experiment.spec import LoraMethod, TrialSpec
from components.records.events import Progress, StepMetrics

STEP = StepMetrics(
    step=1, target_tokens=10, loss=math.nan, learning_rate=0.1, grad_norm=math.inf, seconds=0.1, time=1.0
)
PROGRESS = Progress(
    step=1,
    target_tokens=10,
    epoch=0.1,
    train_loss=0.1 + 0.2,
    eval_loss=1 / 3,
    eval_num_targets=3,
    tokens_per_second=1.0,
    seconds=1.0,
    steps=(STEP,),
)


def test_tune_finds_its_own_keys_at_the_top_of_a_result():
    tune = SlotResult(slot="s", progress=PROGRESS, done=True).to_tune()
    assert (tune["objective"], tune["target_tokens"], tune["done"]) == (1 / 3, 10, True)


def test_a_trial_without_a_report_has_numbers_for_schedulers():
    tune = SlotResult(slot="s", exit_reason=ExitReason.STOP).to_tune()
    assert (tune["objective"], tune["target_tokens"]) == (math.inf, 0)


def test_a_result_is_read_as_it_was_whether_or_not_tune_has_flattened_it():
    result = SlotResult(slot="s", node="10.0.0.1 abc", device="cpu", progress=PROGRESS)
    for tune in (result.to_tune(), flatten_dict(result.to_tune())):
        read = SlotResult.of(tune)
        assert (read.slot, read.node, read.device) == ("s", "10.0.0.1 abc", "cpu")
        assert (read.report.eval_loss, read.report.train_loss) == (1 / 3, 0.1 + 0.2)
        assert math.isnan(read.report.steps[0].loss)
        assert read.report.steps[0].grad_norm == math.inf


@pytest.mark.parametrize("outcome", [{"failure": "no such module"}, {"exit_reason": ExitReason.PREEMPTED}])
def test_the_last_report_of_a_trial_that_fails_or_leaves_is_no_new_report(outcome):
    assert SlotResult.of(SlotResult(slot="s", progress=PROGRESS, **outcome).to_tune()).report is None


def test_a_config_is_read_as_it_was_and_holds_plain_values_only():
    config = TrialConfig(
        number=3,
        branch="lora",
        varied={"method.target_modules": ["q_proj"]},
        spec=TrialSpec(method=LoraMethod(rank=4)),
        parent="a",
        warm_from="b",
    )
    tune = config.to_tune()
    assert TrialConfig.of(tune) == config
    assert tune["trial"]["spec"]["method"]["rank"] == 4


def test_what_a_slot_and_trains_controller_import_is_light():
    """Each is a process of its own, in which these would take seconds and hundreds of MB beside the workers'."""
    heavy = "{'torch', 'transformers', 'peft', 'mlflow'}"
    code = f"import sys, components.cluster.slots.trainable; print({heavy} & set(sys.modules))"
    path = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code], env=path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
