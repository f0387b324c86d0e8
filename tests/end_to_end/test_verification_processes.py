"""The processes in which a version is verified, one a phase: what they run, and what becomes of one that dies."""

import shutil

import pytest

from components.registry import fresh_process
from components.registry.chat_model import PACKAGE
from components.registry.own_code import CODE, package_name
from components.registry.verification_launcher import _PhaseError, run_phase, verify_candidate, verify_incumbent
from components.registry.verification_messages import VerificationReport

KILLED = "\nimport os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n"
FULL = "\n\ndef _full(request):\n    torch.empty(2**60, dtype=torch.uint8)\n\n\nPHASES['{phase}'] = _full\n"


def tampered(versions, target, phase, code):
    """The lora version, with code that comes to its end in one phase."""
    shutil.copytree(versions / "lora", target)
    file = target / CODE / package_name(target) / "registry" / "verification_worker.py"
    head, main = file.read_text().split('if __name__ == "__main__":')
    file.write_text(head + code.format(phase=phase) + '\n\nif __name__ == "__main__":' + main)
    return target


@pytest.mark.parametrize(("code", "told"), [(KILLED, "it was killed"), (FULL, "can't allocate memory")])
def test_a_candidate_that_does_not_fit_is_not_proven_for_that_reason(asked, versions, tmp_path, code, told):
    model = tampered(versions, tmp_path / "model", "candidate", code)
    with pytest.raises(RuntimeError, match=f"^models:/toy/3 does not fit into the memory of the machine .*{told}"):
        verify_candidate(asked("lora", model=model), "models:/toy/3", 120.0)


def test_a_base_model_that_does_not_fit_is_named(asked, versions, tmp_path):
    model = tampered(versions, tmp_path / "model", "base", FULL)
    package = model / "artifacts" / PACKAGE
    shutil.rmtree(package)
    shutil.copytree(versions / "full" / "artifacts" / PACKAGE, package)
    with pytest.raises(RuntimeError, match=r"^the base model of models:/toy/3, .*, does not fit into the memory"):
        verify_candidate(asked("lora", model=model), "models:/toy/3", 120.0)


def test_an_incumbent_that_does_not_fit_is_a_reason_and_the_candidate_is_proven(asked, versions, tmp_path, monkeypatch):
    model = tampered(versions, tmp_path / "model", "incumbent", FULL)
    proof = verify_candidate(asked("lora", model=model), "models:/toy/3", 120.0)
    assert isinstance(proof, VerificationReport)
    monkeypatch.setattr("components.registry.verification_launcher._download", lambda *_: versions / "full")
    request = asked("lora", "incumbent", model=model, digest=proof.digest)
    found = verify_incumbent(request, "models:/toy/2", "sqlite://", tmp_path, 120.0)
    assert list(found) == ["incumbent_problem"]
    assert found["incumbent_problem"].startswith("does not fit into the memory of the machine that proves it")


def test_a_process_of_a_phase_runs_the_versions_own_code_and_leaves_nothing(asked, versions):
    found = run_phase(asked("full", "base"), 120.0)
    assert found.code == versions / "full" / CODE / package_name(versions / "full")
    assert found.base_sums
    assert not list((versions / "full" / CODE).glob("*.json"))


def test_the_process_of_the_next_phase_imports_while_this_one_runs(asked, versions):
    proof = verify_candidate(asked("full"), "models:/toy/3", 120.0, more=True)
    assert proof.base_sums
    (waiting,) = fresh_process._ahead
    assert waiting.is_waiting()
    fresh_process.drop_ahead()
    assert not waiting.is_waiting()


def test_a_process_of_a_phase_finds_the_libraries_of_this_one_and_no_other_code(asked, versions, tmp_path, monkeypatch):
    """Libraries of a folder on sys.path; beside them lies another package of the common name, installed like them."""
    for name in ("only_there", "components"):
        (tmp_path / "libraries" / name).mkdir(parents=True)
        (tmp_path / "libraries" / name / "__init__.py").write_text(f"NAME = {name!r}")
    (tmp_path / "libraries" / "only_there-1.0.dist-info").mkdir()
    check = "\nimport sys, only_there\nassert only_there.NAME == 'only_there' and 'components' not in sys.modules\n"
    model = tampered(versions, tmp_path / "model", "base", check)
    with pytest.raises(_PhaseError, match="No module named 'only_there'"):
        run_phase(asked("lora", "base", model=model), 120.0)
    monkeypatch.syspath_prepend(tmp_path / "libraries")
    found = run_phase(asked("lora", "base", model=model), 120.0)
    assert found.code == model / CODE / package_name(model)
    assert found.base_sums
