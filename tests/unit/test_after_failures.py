"""A trial that fails, wherever it was, leaves no trace in the next one of its session."""

import pytest
import torch
from torch import nn

from components.experiment.spec import OptimizerSpec
from components.models.base import reusable
from components.training.workers import TorchWorkers
from tests.support.processes import run_together
from tests.support.sessions import FULL, LORA, curve, reports, session

WILD = FULL.model_copy(update={"optimizer": OptimizerSpec(learning_rate=1e30)})


class Refused(ValueError):
    """An error that is the same on every worker."""


def fail_in(of, spec, where):
    """Starts a trial that fails in its second pass through the last layer, forward or backward."""
    of.start(f"fails {where}", spec)
    passes = []

    def fail(*_):
        passes.append(where)
        if len(passes) == 2:
            handle.remove()
            raise Refused(where)

    layers = [module for module in of.running.model.modules() if type(module).__name__.endswith("DecoderLayer")]
    register = nn.Module.register_forward_hook if where == "forward" else nn.Module.register_full_backward_hook
    handle = register(layers[-1], fail)
    with pytest.raises(Refused):
        of.advance()


@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize("fails", [FULL, LORA], ids=["full", "lora"])
def test_the_trial_after_one_that_failed_in_a_step_is_as_in_a_session_of_its_own(toy, tmp_path, fails, where):
    of = session(toy, tmp_path / "used")
    fail_in(of, fails.model_copy(update={"gradient_checkpointing": True}), where)
    for number, spec in enumerate((FULL, LORA)):
        alone = curve(reports(session(toy, tmp_path / f"alone {number}"), spec))
        assert curve(reports(of, spec, f"next {number}")) == alone


def test_a_base_whose_adapters_were_attached_in_part_is_not_used_again(toy, tmp_path, monkeypatch):
    of, attach = session(toy, tmp_path / "used"), reusable.attach_lora

    def attach_and_fail(*arguments):
        attach(*arguments)
        raise Refused("half way")

    with monkeypatch.context() as patch:
        patch.setattr(reusable, "attach_lora", attach_and_fail)
        with pytest.raises(Refused):
            of.start("fails", LORA)
    assert curve(reports(of, FULL)) == curve(reports(session(toy, tmp_path / "alone"), FULL))


def fail_and_go_on(rank, toy, folder):
    """Of a sharded session: the losses of a trial before, and of the same one after each kind of failure."""
    of, curves = session(toy, folder, TorchWorkers(torch.device("cpu"), parallel="fsdp")), {}
    curves["before"] = curve(reports(of, FULL, "before"))
    for where in ("forward", "backward"):
        fail_in(of, FULL, where)
        curves[where] = curve(reports(of, FULL, f"after {where}"))
    of.start("wild", WILD)
    assert of.advance().diverged
    curves["diverged"] = curve(reports(of, FULL, "after diverged"))
    return curves


def test_the_trial_after_one_that_failed_sharded_is_as_in_a_session_of_its_own(toy, tmp_path):
    first, second = run_together(fail_and_go_on, toy, tmp_path / "runs", folder=tmp_path)
    assert first == second
    assert set(first) == {"before", "forward", "backward", "diverged"}
    for found in first.values():
        assert found == first["before"]
