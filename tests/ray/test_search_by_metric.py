"""A search that goes by a user's function of what its models say, on a real Ray cluster of this test's own."""

import pytest

from components.api import results, run
from components.experiment.load_experiment import load_experiment
from tests.support.toy_search import toy_search_folder

CHANGES = """
trial: {budget: {epochs: 2, evaluations: 2}}
search:
  trials: 3
  max_concurrent_trials: 1
  metric: {name: letters_said:many, direction: maximize}
  scheduler: {name: asha, reduction_factor: 2, brackets: shared}
evaluation:
  conversations_at_rungs: 3
  generate: {conversations: 6, max_new_tokens: 8, scores: [stop_rate]}
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
    assert table["stop_rate"].dropna().between(0, 1).all()
    assert table["checkpoint"].isna().equals(table["eval_loss"].isna())
    for history in result.histories.values():
        assert history.reports[0].is_sampled
        assert set(history.reports[0].rung.scores) >= {"letters_said:many", "stop_rate"}
        assert history.reports[0].rung_objective == -history.reports[0].rung.scores["letters_said:many"]
    assert not result.best.best.is_sampled
    assert any(line.startswith("MLflow equals the journal: 3 trials") for line in said)
    assert any("trials are ranked by letters_said:many (maximize)" in line for line in said)
