"""A search that goes by a user's function of what its models say, on a real Ray cluster of this test's own."""

import pytest

from components.api import results, run
from components.experiment.load_experiment import load_experiment
from tests.support.toy_search import toy_search_folder

CHANGES = """
trial: {budget: {epochs: 2, evaluations: 2}}
search: {trials: 2, max_concurrent_trials: 1, metric: {name: letters_said:many, direction: maximize}}
evaluation: {generate: {conversations: 6, max_new_tokens: 8, scores: [stop_rate]}}
"""


def test_a_function_of_the_user_chooses_the_best_trial(tmp_path, monkeypatch):
    folder = toy_search_folder(tmp_path, CHANGES, conversations=30)
    (folder / "letters_said.py").write_text(
        "def many(conversations, answers):\n    return [len(set(answer)) for answer in answers]\n"
    )
    monkeypatch.chdir(folder)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    experiment = load_experiment("toy.yaml")
    said = []
    result = run(experiment, register=False, on_message=said.append)
    table = results(experiment).set_index("trial")
    best = table["letters_said:many"].max()
    assert table.loc[result.best.started.number, "letters_said:many"] == best
    assert result.best.best.objective == pytest.approx(-best)
    assert result.message.startswith(f"letters_said:many {best:.4f}, eval loss ")
    assert table["stop_rate"].between(0, 1).all()
    assert any("trials are ranked by letters_said:many (maximize)" in line for line in said)
