"""Which search a command means: the same command goes on, whatever platform repeats it, and no two drivers begin one."""

import contextlib
import json
import logging
import threading

import pytest

from components.errors import InputError
from components.experiment.load_experiment import load_experiment
from components.experiment.spec import LoraMethod
from components.records.driver_presence import DriverHeartbeat
from components.records.journal import Journal
from components.records.manifest import LAYOUT, SearchManifest, searches_in
from components.search.choose_search import choose_search
from components.search.find import NEWEST
from components.search.prepare_search import prepare_search
from components.search.search_lock import SearchLock
from tests.support.three_trials import ended, started
from tests.support.toy import toy_conversations, write_messages_jsonl


@pytest.fixture
def experiment(toy_search):
    return load_experiment("toy.yaml")


def changed(experiment):
    return experiment.model_copy(update={"data": experiment.data.model_copy(update={"max_tokens": 99})})


def begun(experiment, search_id, created, *, trials=1, **changes):
    """A search with so many running trials, and one more that has ended if there are any."""
    folder = experiment.folder / search_id
    manifest = SearchManifest(
        search_id=search_id, experiment=experiment, created=created, prepared="p", budget=1000, layout=LAYOUT
    )
    manifest.model_copy(update=changes).write(folder)
    journal = Journal(folder)
    for number in range(1, trials + 1):
        journal.append(started(number, LoraMethod()))
    if trials:
        journal.append(ended(1, "completed", ""))
    journal.close()


def chosen(experiment, **options):
    """The id of the search that goes on, None for a new one; and what was said."""
    said = []
    choice = choose_search(experiment, on_message=said.append, **options)
    choice.lock.close()
    return choice.manifest and choice.manifest.search_id, " | ".join(said)


def test_the_same_experiment_goes_on_and_one_that_has_ended_begins_anew(experiment):
    assert chosen(experiment) == (None, "")
    begun(experiment, "one", 1.0)
    retracked = experiment.model_copy(
        update={"tracking": experiment.tracking.model_copy(update={"uri": "http://elsewhere:5000"})}
    )
    assert chosen(experiment) == chosen(retracked) == ("one", "")
    assert chosen(experiment, new=True) == (None, "")
    begun(experiment, "two", 2.0)
    assert chosen(experiment) == ("two", "search one is unfinished, too; --resume one goes on with that one")
    begun(experiment, "two", 2.0, finished=True)
    assert chosen(experiment) == (None, "search one is unfinished, too; --resume one goes on with that one")
    assert chosen(experiment, resume=NEWEST) == ("one", "")
    assert chosen(experiment, resume="one") == ("one", "")


def test_a_retried_command_with_resume_begins_where_nothing_has(experiment):
    search, said = chosen(experiment, resume=NEWEST)
    assert search is None
    assert "there is nothing to go on with in " in said
    with pytest.raises(InputError, match=r"--resume x: no search of this id has begun in .* \(there: none\)"):
        choose_search(experiment, resume="x")
    with pytest.raises(InputError, match="either new or resumed"):
        choose_search(experiment, resume="x", new=True)


@pytest.mark.parametrize("resume", [None, NEWEST])
def test_a_changed_experiment_is_refused_while_the_newest_search_is_unfinished(experiment, resume):
    begun(experiment, "other", 1.0, layout=LAYOUT - 1)
    begun(experiment, "one", 2.0)
    refusal = r"search one is unfinished, .*\n  data\.max_tokens: was 128, is 99\nSet these back .* --new; "
    with pytest.raises(InputError, match=refusal):
        choose_search(changed(experiment), resume=resume)
    assert chosen(changed(experiment), new=True)[0] is None
    begun(changed(experiment), "two", 3.0)  # of two variants side by side, each goes on with its own
    assert chosen(experiment, resume=resume)[0] == "one"
    assert chosen(changed(experiment), resume=resume)[0] == "two"


def test_what_was_left_behind_or_trained_nothing_refuses_no_changed_experiment(experiment):
    begun(experiment, "left", 1.0)
    begun(changed(experiment), "newer", 2.0, finished=True)
    assert chosen(changed(experiment))[0] is None
    begun(experiment, "no_trial", 3.0, trials=0)
    assert chosen(changed(experiment))[0] is None
    assert chosen(experiment)[0] == "no_trial"


def test_a_search_of_another_version_is_left_and_a_new_one_begins(experiment, caplog):
    begun(experiment, "old", 1.0, layout=LAYOUT - 1)
    for resume in (None, NEWEST):
        search, said = chosen(experiment, resume=resume)
        assert search is None
        assert "search old is unfinished, but another version of Turnwise began it" in said
    assert chosen(changed(experiment))[0] is None
    written = json.loads((experiment.folder / "old").read_text("search.json"))
    (experiment.folder / "later").write_text("search.json", json.dumps({**written, "a_later_key": 1}))
    with caplog.at_level(logging.WARNING):
        assert [manifest.search_id for manifest in searches_in(experiment.folder)] == ["old"]
    assert "later/search.json is of another version of Turnwise (a_later_key: Extra inputs" in caplog.text


def test_a_search_that_runs_is_not_begun_a_second_time(experiment):
    begun(experiment, "one", 1.0)
    driver = SearchLock(experiment.folder)
    driver.take(experiment.folder / "one")
    DriverHeartbeat(host="far", pid=7, started=1.0).write(experiment.folder / "one")
    running = r"search one is running \(its driver is process 7 on far\): look at it with --watch one, wait .* --new"
    with contextlib.closing(driver):
        for resume in (None, NEWEST, "one"):
            with pytest.raises(InputError, match=running):
                choose_search(experiment, resume=resume)
        assert chosen(experiment, new=True)[0] is None
    assert chosen(experiment)[0] == "one"


def test_a_search_that_ends_between_the_look_and_the_lock_is_not_begun_again(experiment, monkeypatch):
    begun(experiment, "one", 1.0)
    take = SearchLock.take

    def take_late(lock, folder, **options):
        begun(experiment, "one", 1.0, finished=True)
        take(lock, folder, **options)

    monkeypatch.setattr(SearchLock, "take", take_late)
    assert chosen(experiment) == (None, "")
    begun(experiment, "one", 1.0)
    with pytest.raises(InputError, match="--resume one: that search has ended"):
        choose_search(experiment, resume="one")


def test_of_equal_commands_at_once_one_begins_and_the_others_are_told(experiment):
    together, opened, refused = threading.Barrier(4), [], []

    def command():
        together.wait(60)
        try:
            opened.append(prepare_search(experiment))
        except InputError as error:
            refused.append(str(error))

    commands = [threading.Thread(target=command) for _ in range(4)]
    for each in commands:
        each.start()
    for each in commands:
        each.join()
    (driver,) = opened
    assert len(refused) == 3
    assert all("another command is starting a search of this experiment right now" in text for text in refused)
    driver.begin()
    with pytest.raises(InputError, match=f"search {driver.search_id} is running"):
        prepare_search(experiment)
    driver.lock.close()
    later = prepare_search(experiment)
    later.lock.close()
    assert (later.search_id, later.resumed) == (driver.search_id, True)


def test_a_search_that_never_began_leaves_no_folder(experiment):
    prepare_search(experiment).lock.close()
    assert [name for name in experiment.folder.list_names() if name != "lock"] == []


def test_changed_data_begins_anew_unless_the_search_is_named(experiment, toy_search):
    first = prepare_search(experiment)
    first.begin()
    first.lock.close()
    said = []
    again = prepare_search(experiment, on_message=said.append)
    again.lock.close()
    assert again.search_id == first.search_id
    sentence = f"search {first.search_id} goes on: 0 of 2 trials have ended, 0 are under way. --new begins another one"
    assert sentence in said
    write_messages_jsonl(toy_search / "data.jsonl", toy_conversations(50, seed=3))
    said.clear()
    anew = prepare_search(experiment, on_message=said.append)
    anew.lock.close()
    assert not anew.resumed
    assert anew.manifest.prepared != first.manifest.prepared
    (sentence,) = [text for text in said if "its data has changed since" in text]
    assert f"--resume {first.search_id} goes on with the data of then" in sentence
    named = prepare_search(experiment, resume=first.search_id)
    named.lock.close()
    assert (named.search_id, named.dataset.digest) == (first.search_id, first.dataset.digest)
