"""`precision: auto`: decided by the devices of each branch when a search begins, and kept while it goes on elsewhere."""

import pytest
import torch

from components.experiment.experiment_errors import ExperimentError
from components.experiment.load_experiment import load_experiment
from components.experiment.precisions import precisions, with_precisions
from components.experiment.space import branches_of, change_trial, corner_trials
from components.experiment.spec import LoraMethod, TrialSpec
from components.models.precision import computing, fast_on_cpu
from components.search.prepare_search import prepare_search
from components.training import model_settings
from tests.support.toy_search import toy_experiment

UNSAID = "trial.precision=auto"
CPUS = {"lora": "fp32", "full": "fp32"}


@pytest.fixture
def loaded(tmp_path):
    path = tmp_path / "toy.yaml"
    path.write_text(toy_experiment())
    return lambda *changes: load_experiment(path, [UNSAID, *changes])


def found(experiment):
    return precisions(experiment, on_cpu="fp32", on_gpu="bf16")


def drawn(experiment, branch):
    """The precisions of a branch's trials."""
    return {trial.precision for trial in corner_trials(experiment, branches_of(experiment)[branch])}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ([], CPUS),
        (["resources.lora.gpus_per_worker=1"], {"lora": "bf16", "full": "fp32"}),
        (["model.dtype=bf16"], {"lora": "bf16", "full": "bf16"}),
        (["trial.dtype=bf16", "search.space.full.dtype=auto"], {"lora": "bf16", "full": "fp32"}),
        (["search.space.lora.dtype={choice: [fp32, bf16]}"], {"lora": "bf16", "full": "fp32"}),
        (
            [
                "model.attention=flash_attention_2",
                "resources.lora.gpus_per_worker=1",
                "resources.full.gpus_per_worker=1",
            ],
            {"lora": "bf16", "full": "bf16"},
        ),
    ],
)
def test_a_branch_gets_what_its_devices_are_fast_in_unless_bf16_is_asked_for(loaded, changes, expected):
    assert found(loaded(*changes)) == expected


def test_gpus_that_only_imitate_bf16_get_fp32(loaded):
    experiment = loaded("resources.lora.gpus_per_worker=1")
    assert precisions(experiment, on_cpu="bf16", on_gpu="fp32") == {"lora": "fp32", "full": "bf16"}


def test_what_is_written_is_not_decided_and_a_domain_keeps_its_other_values(loaded):
    experiment = loaded(
        "search.space.lora.precision={choice: [auto, fp32, bf16]}",
        "search.start_from=[{branch: lora, precision: auto, method.rank: 4}]",
    )
    decided = with_precisions(experiment, {"lora": "bf16", "full": "bf16"})
    assert (drawn(decided, "lora"), drawn(decided, "full")) == ({"fp32", "bf16"}, {"bf16"})
    assert decided.search.space["lora"]["precision"] == {"choice": ["bf16", "fp32"]}
    assert decided.search.start_from == ({"branch": "lora", "precision": "bf16", "method.rank": 4},)
    written = loaded("trial.precision=fp32", "search.space.full.precision=bf16")
    assert with_precisions(written, {"lora": "bf16", "full": "fp32"}) == written


def test_nothing_is_computed_before_it_is_decided():
    with pytest.raises(ValueError, match="precision=auto"):
        computing("auto", torch.device("cpu"))
    with pytest.raises(ValueError, match="precision=auto"):
        _ = TrialSpec().computed_in


def test_a_clone_names_a_precision_or_keeps_that_of_its_trial(loaded):
    experiment, parent = loaded(), TrialSpec(method=LoraMethod(rank=2), precision="bf16")
    assert change_trial(experiment, parent, {"method.rank": 4}).precision == "bf16"
    assert change_trial(experiment, parent, {"precision": "fp32"}).precision == "fp32"
    with pytest.raises(ExperimentError, match="precision: auto is decided when a search begins; give fp32 or bf16"):
        change_trial(experiment, parent, {"precision": "auto"})


@pytest.mark.parametrize("other", ["fp32", "bf16"])
def test_a_search_that_goes_on_keeps_the_precisions_that_it_began_with(toy_search, monkeypatch, other):
    experiment = load_experiment("toy.yaml", [UNSAID])
    here, said = fast_on_cpu(), []
    first = prepare_search(experiment, on_message=said.append)
    first.begin()
    first.lock.close()
    assert drawn(first.experiment, "lora") == {here}
    assert any(sentence.startswith(f"precision {here}") for sentence in said)
    monkeypatch.setattr(model_settings, "fast_on_cpu", lambda: other)
    again = prepare_search(experiment)
    again.lock.close()
    assert (again.search_id, drawn(again.experiment, "lora")) == (first.search_id, {here})
    new = prepare_search(experiment, new=True)
    new.lock.close()
    assert drawn(new.experiment, "lora") == {other}
