"""A version is proven in phases, each in a process of its own that holds one model, and each failure says what it was."""

import math
import os
import shutil
import signal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from components.registry.chat_model import PACKAGE
from components.registry.model_package import save_packaged
from components.registry.skip_load_on_save import is_being_saved
from components.registry.verification_launcher import explain_exit
from components.registry.verification_messages import OUT_OF_MEMORY, PhaseResult
from components.registry.verification_worker import is_out_of_memory, verify


def loss(sums, trials):
    return sum(sums) / trials.dataset.eval.total_targets


def test_an_adapter_that_is_switched_off_is_the_base_model_that_is_loaded_alone(asked, trials):
    candidate, base = verify(asked("lora")), verify(asked("lora", "base"))
    assert loss(candidate.candidate_sums, trials) == pytest.approx(trials.trained("lora")[1], abs=1e-6)
    assert candidate.base_sums == pytest.approx(base.base_sums, abs=1e-5)
    assert candidate.base_answers == base.base_answers
    assert len(base.base_answers) == 1
    assert base.candidate_sums == ()


@pytest.mark.parametrize("method", ["full", "nf4"])
def test_a_winner_other_than_base_and_adapter_leaves_the_base_to_another_process(asked, trials, method):
    found = verify(asked(method))
    assert loss(found.candidate_sums, trials) == pytest.approx(trials.trained(method)[1], rel=0.01)
    assert (found.base_sums, found.base_answers) == (None, ())


def test_a_full_winner_is_scored_without_its_base_model_in_reach(asked, trials, monkeypatch, tmp_path):
    monkeypatch.setenv("TURNWISE_BASE_MODEL", str(tmp_path))
    found = verify(asked("full"))
    assert loss(found.candidate_sums, trials) == pytest.approx(trials.trained("full")[1], abs=1e-6)
    with pytest.raises(ValueError, match="the base model this was trained on is not here"):
        verify(asked("full", "base"))


def test_a_version_is_saved_without_a_load_and_tried_where_it_is_verified(asked, trials, tmp_path):
    package = trials.packaged("full", tmp_path / PACKAGE)
    (weights,) = package.rglob("model.safetensors")
    os.truncate(weights, weights.stat().st_size // 2)
    save_packaged(package, tmp_path / "version")
    assert not is_being_saved()
    with pytest.raises(ValueError, match="its weights cannot be read"):
        verify(asked("full", model=tmp_path / "version"))


def test_losses_that_are_not_finite_survive_the_way_between_processes():
    found = PhaseResult(code="code", candidate_sums=(math.nan, math.inf, 1.0))
    back = PhaseResult.model_validate_json(found.model_dump_json())
    assert [str(each) for each in back.candidate_sums] == ["nan", "inf", "1.0"]


def test_an_incumbent_whose_losses_are_not_finite_is_no_measure(asked, trials, versions, tmp_path):
    broken = tmp_path / "incumbent"
    shutil.copytree(versions / "full" / "artifacts", broken / "artifacts")
    (file,) = broken.rglob("model.safetensors")
    weights = load_file(file)
    weights["model.norm.weight"] = torch.full_like(weights["model.norm.weight"], 3e38)  # finite, and overflows
    save_file(weights, file, metadata={"format": "pt"})
    digest = verify(asked("lora")).digest
    found = verify(asked("lora", "incumbent", incumbent=broken, digest=digest))
    assert found.incumbent_sums is None
    assert found.incumbent_problem == "scores nan nats here, which nothing can be compared with"


# Memory that runs out


def _fill_a_tensor():
    torch.empty(2**60, dtype=torch.uint8)


def _fill_an_array():
    np.zeros(2**60, dtype=np.uint8)


def _fill_a_list():
    [0] * 2**62


@pytest.mark.parametrize("fill", [_fill_a_tensor, _fill_an_array, _fill_a_list])
def test_memory_that_runs_out_is_recognized_whoever_says_so(fill):
    with pytest.raises((RuntimeError, MemoryError)) as error:
        fill()
    assert is_out_of_memory(error.value)


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), True),
        (OSError(12, "Cannot allocate memory"), True),
        (RuntimeError("shapes do not match"), False),
        (OSError(2, "No such file"), False),
        (ValueError("can't allocate memory"), False),
    ],
)
def test_other_errors_are_not_taken_for_it(error, is_one):
    assert is_out_of_memory(error) == is_one


@pytest.mark.parametrize(
    ("returncode", "stderr", "words"),
    [
        (
            -signal.SIGKILL,
            "",
            "does not fit into the memory of the machine that proves it (it was killed, as the kernel",
        ),
        (
            OUT_OF_MEMORY,
            "a\nCUDA out of memory. Tried 2 GiB\n",
            "(CUDA out of memory. Tried 2 GiB); prove it on a larger",
        ),
        (1, "Traceback\nValueError: x", "does not load and talk in a fresh process: ValueError: x"),
        (-signal.SIGSEGV, "", "does not load and talk in a fresh process: no word"),
    ],
)
def test_the_last_words_of_a_process_name_memory_where_it_was_that(returncode, stderr, words):
    assert words in explain_exit(returncode, stderr)
