"""The steps of a search as far as they are plain: which search is meant, what it came to, how it is followed."""

import signal
import threading
import time

import pytest

from components.cluster.capacity.node_history import NodeTime
from components.errors import InputError
from components.experiment.load_experiment import load_experiment
from components.experiment.spec import LoraMethod
from components.records.commands import CommandReply, StopTrial
from components.records.driver_presence import DriverHeartbeat
from components.records.histories import TrialHistories
from components.records.journal import Journal
from components.records.mailbox import Mailbox
from components.records.manifest import LAYOUT, SearchManifest
from components.records.outcome import Outcome
from components.records.slot_timeline import slot_intervals
from components.records.stop_flag import StopRequest
from components.registry.result import RegistryResult
from components.reports.search_state import SearchState
from components.search import follow
from components.search import send_command as commands
from components.search.decide_outcome import (
    TrialsResult,
    outcome_of_no_success,
    outcome_of_registry,
    outcome_of_unfinished,
    resume_command,
)
from components.search.find import find_interrupted, find_search
from components.search.follow import FollowedSearch
from components.search.node_timeline import trials_on
from components.search.send_command import NoReplyError, ask, send_command
from tests.support.servers import until
from tests.support.three_trials import CLONE, RECORDS, ended, instructed, progressed, started
from workflows import terminal
from workflows.cli import STATUS_OF_ERROR, Exit, exit_on_error, status_of

EXPERIMENT = """
name: toy
model: {path: model}
data: {train: data.jsonl, eval_fraction: 0.2}
search:
  trials: 2
  space: {lora: {method: {kind: lora, rank: {choice: [2, 4]}}}}
storage: {path: %(folder)s/runs}
"""


@pytest.fixture
def experiment(tmp_path):
    (tmp_path / "toy.yaml").write_text(EXPERIMENT % {"folder": tmp_path})
    return load_experiment(str(tmp_path / "toy.yaml"), [])


def begun(experiment, search_id, created, **changes):
    manifest = SearchManifest(
        search_id=search_id, experiment=experiment, created=created, prepared="p", budget=1000, layout=LAYOUT
    )
    manifest = manifest.model_copy(update=changes)
    manifest.write(experiment.folder / search_id)
    return manifest


def test_a_search_is_found_by_its_id_or_as_the_newest_or_newest_unfinished(experiment):
    begun(experiment, "one", 1.0)
    begun(experiment, "two", 2.0, finished=True)
    assert find_search(experiment).search_id == "two"
    assert find_search(experiment, unfinished=True).search_id == "one"
    assert find_search(experiment, "one").search_id == "one"
    with pytest.raises(InputError, match="search two has ended; what it left can be seen with --watch two"):
        find_search(experiment, "two", unfinished=True)
    with pytest.raises(InputError, match=r"no search three in .*\(there: one, two \(ended\)\)"):
        find_search(experiment, "three")


def test_only_an_unfinished_search_of_the_same_experiment_and_layout_is_resumed(experiment):
    with pytest.raises(InputError, match=r"--resume one: no search of this id has begun in .*\(there: none\)"):
        find_interrupted(experiment, "one")
    begun(experiment, "old", 1.0, layout=LAYOUT - 1)
    begun(experiment, "one", 2.0)
    begun(experiment, "two", 3.0, finished=True)
    assert find_interrupted(experiment, "one").search_id == "one"
    with pytest.raises(InputError, match=r"--resume two: that search has ended \(there: old, one, two \(ended\)\)"):
        find_interrupted(experiment, "two")
    with pytest.raises(InputError, match="--resume old: it was begun by another version"):
        find_interrupted(experiment, "old")
    other = experiment.model_copy(update={"data": experiment.data.model_copy(update={"max_tokens": 99})})
    with pytest.raises(InputError, match=r"data\.max_tokens: was .*, is 99"):
        find_interrupted(other, "one")
    elsewhere = experiment.model_copy(update={"data": experiment.data.model_copy(update={"on_cluster_from": None})})
    assert find_interrupted(elsewhere, "one").search_id == "one"


@pytest.mark.parametrize(
    ("command", "advice"),
    [
        ("python workflows/tune.py x.yaml", "python workflows/tune.py x.yaml"),
        ("python workflows/tune.py --new x.yaml --json", "python workflows/tune.py x.yaml --json"),
        ("python workflows/tune.py x.yaml --resume s", "python workflows/tune.py x.yaml --resume s"),
        ("", "run(experiment)"),
    ],
)
def test_the_advice_how_to_go_on_is_the_same_command_that_begins_nothing_new(command, advice):
    assert resume_command(command) == advice


def trials(events, **facts):
    return TrialsResult(histories=TrialHistories(events), undelivered=0, **facts)


def test_a_search_is_unfinished_while_a_trial_or_a_clone_has_not_ended():
    all_ended = trials(RECORDS)
    assert outcome_of_unfinished(all_ended, planned=3, resume="again") is None
    waiting = outcome_of_unfinished(all_ended, planned=5, resume="again")
    assert (waiting.outcome, waiting.message) == (
        Outcome.INTERRUPTED, "Interrupted with 2 trials to go. Go on with: again",
    )  # fmt: skip
    cloned = outcome_of_unfinished(trials([*RECORDS, instructed(2, CLONE, "1")]), planned=3, resume="again")
    assert cloned.message == "Interrupted with 1 trials to go. Go on with: again"


def test_what_stopped_a_search_decides_how_it_ended():
    for reason, outcome in (("SIGTERM", Outcome.TERMINATED), ("SIGINT", Outcome.INTERRUPTED)):
        assert outcome_of_unfinished(trials(RECORDS, stop_reason=reason), planned=3, resume="").outcome is outcome
    hopeless = outcome_of_unfinished(trials(RECORDS, hopeless="no bf16"), planned=3, resume="")
    assert (hopeless.outcome, hopeless.message) == (
        Outcome.NO_TRIAL_SUCCEEDED, "No trial can succeed: no bf16",
    )  # fmt: skip


def failed(*reasons):
    """The outcome of a search whose trials failed for these reasons of their own."""
    events = []
    for number, reason in enumerate(reasons, start=1):
        own = ended(number, "failed", reason).model_copy(update={"impossible": True})
        events += [started(number, LoraMethod()), own]
    return outcome_of_no_success(TrialHistories(events).values(), "again")


def test_without_a_success_the_most_common_reason_is_named_first_with_its_count():
    outcome = failed("no such module", "step 3: loss nan", "step 12: loss inf", "step 7: loss nan")
    assert (outcome.outcome, outcome.message) == (
        Outcome.NO_TRIAL_SUCCEEDED,
        "No trial succeeded: 3 of 4 trials: step 3: loss nan; 1 of 4 trials: no such module",
    )
    assert failed("nan").message == "No trial succeeded: nan"


def test_of_many_reasons_the_three_most_common_make_a_sentence():
    outcome = failed(*"abcde", "d", "e")
    assert outcome.message == (
        "No trial succeeded: 2 of 7 trials: d; 2 of 7 trials: e; 1 of 7 trials: a; 2 for other reasons"
    )


def test_a_search_whose_trials_were_lost_can_go_on():
    own = ended(1, "failed", "nan").model_copy(update={"impossible": True})
    events = [started(1, LoraMethod()), own, started(2, LoraMethod()), ended(2, "failed", "its slot died")]
    outcome = outcome_of_no_success(TrialHistories(events).values(), "again")
    assert outcome.outcome is Outcome.LOST
    assert outcome.outcome.resumable
    assert outcome.message == (
        "No trial succeeded, and 1 of 2 were lost with their slots: 1 of 2 trials: nan; 1 of 2 trials: its slot died."
        " Go on with: again"
    )


def test_the_registrys_decision_is_the_outcome():
    histories = TrialHistories([started(1, LoraMethod()), progressed(1, 500, 0.9)])
    registry = RegistryResult(
        name="bot", version="3", alias="champion", promoted=True, reason="better", verdicts=(), probes=(),
        base_answers=(), candidate_answers=(), base_loss=2.0, candidate_loss=0.9,
    )  # fmt: skip
    champion = outcome_of_registry(registry, histories["t1"])
    assert (champion.outcome, champion.best.trial_id) == (Outcome.CHAMPION, "t1")
    assert champion.message == (
        "Champion: models:/bot@champion is version 3, eval loss 0.9000 against the base model's 2.0000"
    )
    challenger = outcome_of_registry(registry.model_copy(update={"promoted": False}), histories["t1"])
    assert (challenger.outcome, challenger.message) == (
        Outcome.NOT_PROMOTED, "bot version 3 is a challenger only: better",
    )  # fmt: skip


def test_what_can_go_on_is_not_over():
    assert {outcome.value for outcome in Outcome if outcome.resumable} == {
        "lost", "not proven", "tracking away", "interrupted", "terminated",
    }  # fmt: skip


def test_every_outcome_has_an_exit_status_and_errors_have_theirs(capsys):
    assert terminal.STATUS.keys() == set(Outcome)
    assert status_of(InputError("x")) == status_of(ValueError("x")) == Exit.BAD_INPUT
    assert status_of(NoReplyError("x")) == Exit.NO_REPLY
    for kind, status in STATUS_OF_ERROR.items():
        with pytest.raises(SystemExit) as end, exit_on_error():
            raise kind("the reason")
        assert end.value.code == status
        assert capsys.readouterr().err == "the reason\n"


def test_a_search_that_is_followed_shows_new_events_and_its_state(experiment, monkeypatch):
    manifest = begun(experiment, "one", 1.0)
    folder, journal = experiment.folder / "one", Journal(experiment.folder / "one")
    for event in RECORDS[:3]:
        journal.append(event)
    followed, seen = FollowedSearch(experiment, manifest), []
    followed.histories.subscribe(seen.append)
    journal.append(RECORDS[3])
    journal.close()
    followed.poll()
    followed.poll()
    assert seen == [RECORDS[3]]
    assert followed.status().state is SearchState.RUNNING
    snapshot = followed.snapshot()
    assert (snapshot.planned, snapshot.running, snapshot.best_trial) == (2, 3, 1)

    monkeypatch.setattr(follow, "SILENT_SECONDS", 0.0)
    DriverHeartbeat(host="far", pid=7, started=1.0, last_beat=2.0).write(folder)
    silent = followed.status()
    assert silent.state is SearchState.SILENT
    assert "its driver, process 7 on far, has given no sign" in silent.sentence
    DriverHeartbeat(host="far", pid=7, started=1.0, outcome="not proven").write(folder)
    assert followed.status().state is SearchState.INTERRUPTED
    manifest.model_copy(update={"finished": True}).write(folder)
    ended = followed.status()
    assert (ended.sentence, ended.outcome) == ("search one has ended: not proven", "not proven")


def test_a_command_gets_the_drivers_reply_or_an_error_that_says_there_is_none(experiment, monkeypatch):
    monkeypatch.setattr(commands, "POLL_SECONDS", 0.01)
    manifest = begun(experiment, "one", 1.0)
    folder = experiment.folder / "one"
    with pytest.raises(NoReplyError, match=r"no driver is at this search.*The request stands in .*: resume it$"):
        ask(folder, StopTrial(trial="1"), timeout_seconds=0.05)

    def reply():
        box = Mailbox(folder)
        until(lambda: len(box.waiting()) == 2, seconds=30)
        box.reply(box.waiting()[1].request_id, CommandReply(accepted=True, message="it ends"))

    driver = threading.Thread(target=reply)
    driver.start()
    time.sleep(0.002)  # requests are sorted by milliseconds
    assert send_command(experiment, StopTrial(trial="2")).message == "it ends"
    driver.join()
    manifest.model_copy(update={"finished": True}).write(folder)
    assert ask(folder, StopTrial(trial="2")).message == "search one has ended meanwhile"


def test_a_trial_is_drawn_on_the_nodes_of_its_slot():
    events = [
        started(7, LoraMethod()).model_copy(update={"time": 10.0}),
        progressed(7, 100, 2.0).model_copy(update={"time": 20.0, "slot": "a"}),
    ]
    nodes = [
        NodeTime(kind="gpu", node_id=f"node{slot}", began=12.0, ended=None, slots=frozenset({slot})) for slot in "ab"
    ]
    with_trial, without = trials_on(nodes, slot_intervals(events))
    assert [row.label for row in with_trial.rows(now=30.0)] == ["gpu nodea", "  trial 7"]
    assert [(bar.began, bar.ended) for row in with_trial.rows(now=30.0) for bar in row.bars] == [
        (12.0, 30.0), (12.0, 20.0),
    ]  # fmt: skip
    assert with_trial.as_json()["trials"] == [{"number": 7, "slot": "a", "began": 10.0, "ended": 20.0}]
    assert without.as_json()["trials"] == []


def test_the_first_signal_requests_the_stop_and_a_second_one_acts_as_it_did_outside():
    stop, announced, outside = StopRequest(), threading.Event(), []
    before = signal.signal(signal.SIGINT, lambda number, frame: outside.append(number))
    try:
        with terminal.request_on_signal(stop, announced.set):
            signal.raise_signal(signal.SIGINT)
            assert stop.reason == "SIGINT"
            assert outside == []
            assert announced.wait(30)
            signal.raise_signal(signal.SIGINT)
            assert outside == [signal.SIGINT]
        signal.raise_signal(signal.SIGINT)
        assert outside == [signal.SIGINT, signal.SIGINT]
    finally:
        signal.signal(signal.SIGINT, before)


def test_histories_can_be_read_by_one_thread_while_another_records():
    histories, done = TrialHistories(), threading.Event()

    def record():
        for number in range(300):
            histories.record(started(number, LoraMethod()).model_copy(update={"trial_id": str(number)}))
        done.set()

    recorder = threading.Thread(target=record)
    recorder.start()
    while not done.is_set():
        list(histories.values())
    recorder.join()
    assert len(list(histories.values())) == 300


def test_histories_keep_the_error_of_a_subscriber_and_call_none_after_it():
    called, histories = [], TrialHistories()

    def journal(event):
        raise OSError("the share is away")

    histories.subscribe(journal)
    histories.subscribe(called.append)
    with pytest.raises(OSError, match="the share is away") as caught:
        histories.record(started(1, LoraMethod()))
    assert histories.error is caught.value
    assert called == []
