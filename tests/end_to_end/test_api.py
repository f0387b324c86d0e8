"""Turnwise as a notebook uses it: a whole search through the Python face alone, and a second one in the same process."""

import threading

import pytest

import components as turnwise
from components.records.events import TrialEnded, TrialInstructed, TrialProgressed, TrialStarted
from components.records.outcome import Outcome
from components.registry import fresh_process
from tests.support.servers import until
from tests.support.toy import toy_conversations, write_messages_jsonl
from tests.support.toy_search import toy_search_folder

CHANGES = """
trial: {budget: {epochs: 4}}
search:
  trials: 2
  space:
    lora:
      method: {kind: lora, rank: {choice: [2, 4]}}
      optimizer: {learning_rate: {log_uniform: [5.0e-3, 2.0e-2]}}
registry: {name: toy}
"""
SECONDS = 600  # for one stage of a search, beside other work
ONE_SLOT = {"search.max_concurrent_trials": 1}


@pytest.fixture(scope="module")
def notebook(tmp_path_factory):
    """The working directory of a notebook that has no cluster and no tracking server."""
    folder = toy_search_folder(tmp_path_factory.mktemp("notebook"), CHANGES)
    write_messages_jsonl(folder / "held_out.jsonl", toy_conversations(40, seed=7))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        for name in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI"):
            patch.delenv(name, raising=False)
        yield folder


@pytest.fixture(scope="module")
def searched(notebook):
    """(the handle of a search that has ended, its events with the threads they came in, messages, replies)"""
    experiment = turnwise.load_experiment(
        "toy.yaml", {"search.trials": 3, "trial.budget.epochs": 40, "trial.budget.evaluations": 20}
    )
    events, messages, replies = [], [], []

    def on_event(event):
        events.append((event, threading.current_thread()))

    search = turnwise.start(experiment, on_event=on_event, on_message=messages.append)
    assert search.state == "running"
    with pytest.raises(TimeoutError):
        search.result(timeout_seconds=0.1)
    # The trials are ranked, the best first.
    until(lambda: any(trial.number == 1 and trial.checkpoint for trial in search.trials()), SECONDS)
    replies.append(search.extend(1, by=0.5))
    replies.append(search.clone(1, {"optimizer.learning_rate": 1e-3}, warm=True))
    with pytest.raises(turnwise.InputError, match="refused: "):
        search.stop(99)
    search.result(timeout_seconds=SECONDS)
    return search, events, messages, replies


def test_a_search_in_a_thread_ends_with_a_champion(searched):
    search, events, messages, _ = searched
    result = search.result()
    assert (result.outcome, search.state) == (Outcome.CHAMPION, "champion")
    assert (result.registry.promoted, result.registry.version) == (True, "1")
    assert result.best.started.number == search.trials()[0].number
    threads = {thread for _, thread in events}
    assert threads == {search._thread} != {threading.main_thread()}
    kinds = [type(event) for event, _ in events]
    assert {TrialStarted, TrialProgressed, TrialInstructed, TrialEnded} == set(kinds)
    assert any(message.startswith("data ") for message in messages)
    assert "champion" in search._repr_html_()
    assert fresh_process._ahead == []  # the proof took the process, or the search ended it
    assert "Champion: models:/toy@champion is version 1" in result._repr_html_()


def test_trials_obey_the_handle_while_it_runs(searched):
    search, _, _, (extended, cloned) = searched
    assert extended.startswith("trial 1 may spend ")
    assert "trial 4 is trial 1 with your changes, and begins with its weights" in cloned
    trials = {trial.number: trial for trial in search.trials()}
    assert len(trials) == 4
    assert trials[4].parent == trials[1].trial_id
    assert trials[4].varied["optimizer.learning_rate"] == 1e-3
    assert trials[1].target_tokens > 1.4 * trials[2].target_tokens


def test_results_are_a_table_with_a_row_for_each_trial(searched):
    search, *_ = searched
    frame = turnwise.results("runs/toy")
    frame = frame[frame["search"] == search.search_id]
    assert list(frame["trial"]) == [1, 2, 3, 4] or sorted(frame["trial"]) == [1, 2, 3, 4]
    assert {"method.rank", "optimizer.learning_rate"} <= set(frame.columns)
    assert frame["eval_loss"].min() == search.result().best.best.eval_loss
    assert (frame["state"] == "completed").all()
    assert frame["run_id"].notna().all()
    assert frame["run_id"].is_unique
    assert (frame["worker_seconds"] > 0).all()


def test_the_champion_replies_is_scored_compared_and_exported(searched, notebook):
    champion, base = turnwise.load_model("models:/toy@champion"), turnwise.load_model("model")
    reply = champion.reply("say ab", max_new_tokens=8)
    assert "".join(champion.stream("say ab", max_new_tokens=8)) == reply.text
    score = turnwise.score(champion, "held_out.jsonl", max_tokens=128)
    comparison = turnwise.compare(champion, base, "held_out.jsonl", max_tokens=128)
    assert comparison.beats
    assert comparison.candidate_loss == pytest.approx(score.loss)
    exported = turnwise.export(champion, "exported", layout="merged", data="held_out.jsonl")
    merged = turnwise.score(turnwise.load_model("exported"), "held_out.jsonl", max_tokens=128)
    assert merged.loss == pytest.approx(score.loss, abs=1e-3)
    assert abs(exported.merge.difference) < 1e-3


@pytest.mark.long  # two minutes; ray/test_search_on_ray.py stops and resumes one
def test_a_second_search_in_the_same_process_is_cancelled_and_resumed(searched, notebook):
    experiment = turnwise.load_experiment("toy.yaml", {"name": "second", "trial.budget.epochs": 20} | ONE_SLOT)
    search = turnwise.start(experiment, register=False)
    until(lambda: search.trials() and search.trials()[0].target_tokens, SECONDS)
    search.cancel()
    assert search.result(timeout_seconds=SECONDS).outcome is Outcome.INTERRUPTED
    again = turnwise.open_search("runs/second", search.search_id, resume=True, register=False)
    result = again.result(timeout_seconds=SECONDS)
    assert (again.search_id, result.outcome) == (search.search_id, Outcome.FINISHED)
    looked_at = turnwise.open_search(experiment)
    assert [trial.state for trial in looked_at.trials()] == ["completed", "completed"]
    assert (again.state, looked_at.state) == ("finished", "finished")
    assert "has ended: finished" in repr(looked_at)
    with pytest.raises(turnwise.InputError, match="no such interrupted search"):
        turnwise.open_search("runs/second", search.search_id, resume=True)


def test_run_blocks_and_is_stopped_from_another_thread(notebook):
    experiment = turnwise.load_experiment("toy.yaml", {"name": "third", "trial.budget.epochs": 6} | ONE_SLOT)
    stop, seen = turnwise.StopRequest(), []

    def on_event(event):
        seen.append(event)
        if isinstance(event, TrialProgressed):
            stop.request("enough")

    result = turnwise.run(experiment, register=False, on_event=on_event, stop=stop)
    assert result.outcome is Outcome.INTERRUPTED
    assert "Go on with: run(experiment)" in result.message
    assert seen
