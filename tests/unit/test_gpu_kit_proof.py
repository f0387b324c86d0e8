"""The kit's part `proof`: a phase holds one model, and one that holds more is found."""

import importlib.util
import time

import pytest

from components.registry.own_code import CODE
from experiments.benchmarks.gpu_kit import proof, proof_winner
from experiments.benchmarks.gpu_kit.proof_memory import PhasePeaks
from experiments.benchmarks.gpu_kit.proof_winner import TOKENS, letter_tokenizer
from experiments.benchmarks.gpu_kit.settings import Settings

pytestmark = pytest.mark.long  # the kit runs on a GPU once in a while, and its tests before that


def settings_in(folder):
    return Settings(device_name="cpu", shapes="tiny", scratch=folder, deadline=time.time() + 900)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(settings, checks of the whole part, the winners that it made by the names of their folders)."""
    settings, winners, make = settings_in(tmp_path_factory.mktemp("proof")), {}, proof_winner.make_winner

    def recording(config, folder, settings):
        winners[folder.name] = make(config, folder, settings)
        return winners[folder.name]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(proof_winner, "make_winner", recording)
        return settings, list(proof.run(settings)), winners


def test_each_phase_of_a_full_winner_takes_one_model_as_the_plan_says(whole):
    _, checks, _ = whole
    assert [check.asked for check in checks if check.verdict != "passed"] == []
    assert len(checks) == 5


def test_a_process_that_keeps_16_bit_copies_of_its_weights_is_found(whole):
    settings, checks, winners = whole
    winner, part = winners["winner"], proof._Proof(settings)
    (worker,) = (winner.version / CODE).glob("*/registry/verification_worker.py")
    frozen = worker.read_text()
    assert "requires_grad_(False)" in frozen
    worker.write_text(frozen.replace("requires_grad_(False)", "requires_grad_(True)"))
    with proof.processes_on("cpu"):
        _, peaks = part.phase(winner, "candidate")
    constant = PhasePeaks(resident=int(checks[0].figures["constant_bytes"]))
    of_model, of_plan = part.compare("candidate", winner, peaks, constant)
    assert (of_model.verdict, of_plan.verdict) == ("failed", "failed")
    assert of_model.figures["models"] == pytest.approx(1.55, abs=0.2)  # some ten MB are the process's, of 312


@pytest.mark.parametrize(
    ("candidate", "base", "verdict"),
    [((2.0, 3.0), (2.0, 3.0), "passed"), ((2.0, 3.0), (2.0, 3.01), "failed"), ((), (), "failed")],
)
def test_other_scores_of_equal_weights_are_found(candidate, base, verdict):
    assert proof.check_scores(candidate, base).verdict == verdict


def test_without_mlflow_the_part_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    (check,) = proof.run(settings_in(tmp_path))
    assert (check.verdict, check.seen) == ("skipped", "no package mlflow")


def test_the_tokenizer_has_a_token_for_each_letter():
    tokenizer = letter_tokenizer()
    assert tokenizer("<|im_start|>user\nHi!")["input_ids"][0] == 2
    assert tokenizer.decode(tokenizer("Hi, you!")["input_ids"]) == "Hi, you!"
    assert len(tokenizer("x" * TOKENS)["input_ids"]) == TOKENS
