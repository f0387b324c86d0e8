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
from components.registry.own_code import CODE, package_name
from components.registry.probes import Probe
from components.registry.verification import (
    OUT_OF_MEMORY,
    PhaseResult,
    VerificationReport,
    VerificationRequest,
    _in_new_process,
    _last_words,
    _of_candidate,
    _of_incumbent,
    answer,
    is_out_of_memory,
)
from components.registry.weightless_save import is_being_saved
from tests.support.trials import MAX_TOKENS, Trials

PROBES = (Probe(messages=({"role": "user", "content": "say ab"},)),)


@pytest.fixture(scope="module")
def trials(tmp_path_factory):
    return Trials(tmp_path_factory.mktemp("trials"))


@pytest.fixture(scope="module")
def versions(trials, tmp_path_factory):
    """A version of each method, as it lies in a folder once it is downloaded."""
    folder = tmp_path_factory.mktemp("versions")
    for method in ("lora", "full", "nf4"):
        save_packaged(trials.packaged(method, folder / f"{method}-packaged" / PACKAGE), folder / method)
    return folder


@pytest.fixture
def asked(trials, versions):
    def asked(method, phase="candidate", **fields):
        request = VerificationRequest(
            phase=phase,
            model=versions / method,
            incumbent=None,
            eval_store=trials.dataset.eval.path,
            max_tokens=MAX_TOKENS,
            rows_per_batch=4,
            probes=PROBES,
        )
        return request.model_copy(update=fields)

    return asked


def loss(sums, trials):
    return sum(sums) / trials.dataset.eval.total_targets


def test_an_adapter_that_is_switched_off_is_the_base_model_that_is_loaded_alone(asked, trials):
    candidate, base = answer(asked("lora")), answer(asked("lora", "base"))
    assert loss(candidate.candidate_sums, trials) == pytest.approx(trials.trained("lora")[1], abs=1e-6)
    assert candidate.base_sums == pytest.approx(base.base_sums, abs=1e-5)
    assert candidate.base_answers == base.base_answers
    assert len(base.base_answers) == 1
    assert base.candidate_sums == ()


@pytest.mark.parametrize("method", ["full", "nf4"])
def test_a_winner_that_is_not_its_base_with_an_adapter_leaves_the_base_to_another_process(asked, trials, method):
    found = answer(asked(method))
    assert loss(found.candidate_sums, trials) == pytest.approx(trials.trained(method)[1], rel=0.01)
    assert (found.base_sums, found.base_answers) == (None, ())


def test_a_full_winner_is_scored_without_its_base_model_in_reach(asked, trials, monkeypatch, tmp_path):
    monkeypatch.setenv("TURNWISE_BASE_MODEL", str(tmp_path))
    found = answer(asked("full"))
    assert loss(found.candidate_sums, trials) == pytest.approx(trials.trained("full")[1], abs=1e-6)
    with pytest.raises(ValueError, match="the base model this was trained on is not here"):
        answer(asked("full", "base"))


def test_a_version_is_saved_on_a_machine_that_need_not_hold_its_model_and_tried_where_it_is_proven(
    asked, trials, tmp_path
):
    package = trials.packaged("full", tmp_path / PACKAGE)
    (weights,) = package.rglob("model.safetensors")
    os.truncate(weights, weights.stat().st_size // 2)
    save_packaged(package, tmp_path / "version")
    assert not is_being_saved()
    with pytest.raises(ValueError, match="its weights cannot be read"):
        answer(asked("full", model=tmp_path / "version"))


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
    digest = answer(asked("lora")).digest
    found = answer(asked("lora", "incumbent", incumbent=broken, digest=digest))
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
    assert words in _last_words(returncode, stderr)


KILLED = "\nimport os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n"
FULL = "\n\ndef _full(request):\n    torch.empty(2**60, dtype=torch.uint8)\n\n\nPHASES['{phase}'] = _full\n"


def tampered(versions, target, phase, code):
    """The lora version, with code that comes to its end in one phase."""
    shutil.copytree(versions / "lora", target)
    file = target / CODE / package_name(target) / "registry" / "verification.py"
    head, main = file.read_text().split('if __name__ == "__main__":')
    file.write_text(head + code.format(phase=phase) + '\n\nif __name__ == "__main__":' + main)
    return target


@pytest.mark.end_to_end
@pytest.mark.parametrize(("code", "told"), [(KILLED, "it was killed"), (FULL, "can't allocate memory")])
def test_a_candidate_that_does_not_fit_is_not_proven_for_that_reason(asked, versions, tmp_path, code, told):
    model = tampered(versions, tmp_path / "model", "candidate", code)
    with pytest.raises(RuntimeError, match=f"^models:/toy/3 does not fit into the memory of the machine .*{told}"):
        _of_candidate(asked("lora", model=model), "models:/toy/3", 120.0)


@pytest.mark.end_to_end
def test_a_base_model_that_does_not_fit_is_named(asked, versions, tmp_path):
    model = tampered(versions, tmp_path / "model", "base", FULL)
    package = model / "artifacts" / PACKAGE
    shutil.rmtree(package)
    shutil.copytree(versions / "full" / "artifacts" / PACKAGE, package)
    with pytest.raises(RuntimeError, match=r"^the base model of models:/toy/3, .*, does not fit into the memory"):
        _of_candidate(asked("lora", model=model), "models:/toy/3", 120.0)


@pytest.mark.end_to_end
def test_an_incumbent_that_does_not_fit_is_a_reason_and_the_candidate_is_proven(asked, versions, tmp_path, monkeypatch):
    model = tampered(versions, tmp_path / "model", "incumbent", FULL)
    proof = _of_candidate(asked("lora", model=model), "models:/toy/3", 120.0)
    assert isinstance(proof, VerificationReport)
    monkeypatch.setattr("components.registry.verification._downloaded", lambda *_: (versions / "full", None))
    request = asked("lora", "incumbent", model=model, digest=proof.digest)
    found = _of_incumbent(request, "models:/toy/2", "sqlite://", tmp_path, 120.0)
    assert list(found) == ["incumbent_problem"]
    assert found["incumbent_problem"].startswith("does not fit into the memory of the machine that proves it")


@pytest.mark.end_to_end
def test_a_process_of_a_phase_runs_the_versions_own_code_and_leaves_nothing(asked, versions):
    found = _in_new_process(asked("full", "base"), 120.0)
    assert found.code == versions / "full" / CODE / package_name(versions / "full")
    assert found.base_sums
    assert not list((versions / "full" / CODE).glob("*.json"))
