"""What Tune is given when it asks for trials: the search algorithm with Tune's own trials, without a cluster."""

from types import SimpleNamespace

import pytest
from ray.tune.experiment import Experiment

from components.cluster.driver.trial_control import TrialController, attached
from components.cluster.scheduling.branched_searcher import BranchedSearcher
from components.cluster.scheduling.journal_scheduler import JournalScheduler
from components.cluster.scheduling.tune_search import search_algorithm
from components.cluster.slots.slot_result import SlotResult
from components.cluster.slots.trial_config import TrialConfig
from components.records.events import Clone, TrialEnded, TrialInstructed, TrialProgressed
from components.records.histories import TrialHistories
from tests.support.records import progress, started
from tests.support.sampling import BUDGET, experiment
from tests.support.tune_controller import Untrained

SEARCH = "generated"


class Asked:
    """A search as Tune sees it, and a driver that hands clones over once."""

    def __init__(self, place, events=(), *, is_closed=False, **search):
        self.histories = TrialHistories(events)
        self.clones = {
            clone.trial_id: (name, clone) for name, history in self.histories.items() for clone in history.clones
        }
        self.waiting = [name for name in self.clones if name not in self.histories]
        self.starts_again = set()
        self.context, self.is_closed, self.planned = SimpleNamespace(search_id=SEARCH), is_closed, 4
        self.generator = search_algorithm(experiment(4, **search), BUDGET, SEARCH)
        with attached(self):
            self.generator.add_configurations([Experiment("tune", run=Untrained, storage_path=str(place))])

    @property
    def has_clones(self):
        return bool(self.waiting)

    def next_clone(self):
        return self.clones[self.waiting.pop(0)] if self.waiting else None

    def next(self):
        with attached(self):
            trial = self.generator.next_trial()
        return None if trial is None else (trial.trial_id, TrialConfig.of(trial))

    def is_finished(self):
        with attached(self):
            return self.generator.is_finished()

    def end(self, trial_id, loss, **result):
        """A trial's only report, and its end as Tune has it."""
        if trial_id not in self.histories:
            self.histories.record(started(trial_id, number=9))
        report = progress(1, loss, target_tokens=BUDGET)
        self.histories.record(TrialProgressed(trial_id=trial_id, progress=report, slot="s", time=2.0))
        with attached(self):
            self.generator.on_trial_complete(trial_id, SlotResult(slot="s", progress=report, **result).to_tune())

    @property
    def studies(self):
        return self.generator._searcher._sampler._studies


def clone_of(trial_id, name, number):
    clone = Clone(trial_id=name, number=number, branch="lora", spec=started("x").spec, varied={})
    return TrialInstructed(trial_id=trial_id, instruction=clone, request_id=name, by="ann@desk", time=2.0)


def test_trials_that_had_begun_come_first_under_their_ids_then_clones_then_new_ones(tmp_path):
    begun = [started("a", number=1), started("b", number=2), clone_of("a", "late", 6), clone_of("a", "early", 5)]
    ended = TrialEnded(trial_id="a", state="completed", time=3.0)
    asked = Asked(tmp_path, [*begun, started("early", number=5, parent="a"), ended], sampler="random")
    names = [asked.next() for _ in range(5)]
    assert [(name, config.number) for name, config in names[:3]] == [("b", 2), ("early", 5), ("late", 6)]
    assert [config.number for _, config in names[3:]] == [3, 4]
    assert names[2][1].parent == "a"
    assert len({name for name, _ in names}) == 5
    assert asked.next() is None
    assert asked.is_finished()


def test_a_search_that_has_ended_asks_for_nothing(tmp_path):
    trials = [started(name, number=number) for number, name in enumerate("abcd", start=1)]
    ends = [TrialEnded(trial_id=name, state="completed", time=3.0) for name in "abcd"]
    assert Asked(tmp_path, [*trials, *ends], sampler="random").is_finished()
    assert not Asked(tmp_path, [*trials, *ends[1:]], sampler="random").is_finished()


def test_a_budget_that_is_spent_lets_only_those_go_on_that_had_begun(tmp_path):
    asked = Asked(tmp_path, [started("a", number=1), clone_of("a", "c", 5)], is_closed=True, sampler="random")
    assert not asked.is_finished()
    assert asked.next()[0] == "a"
    assert asked.next() is None
    assert asked.is_finished()


def test_what_ends_all_trials_ends_those_that_wait(tmp_path):
    asked = Asked(tmp_path)
    assert not asked.is_finished()
    asked.generator.set_finished()
    assert asked.is_finished()


@pytest.mark.parametrize(("result", "state"), [({}, "COMPLETE"), ({"failure": "no such module"}, "PRUNED")])
def test_the_sampler_learns_from_the_journal_and_of_its_own_trials_only(tmp_path, result, state):
    first = BranchedSearcher(experiment(4), BUDGET).draw()
    fields = {name: getattr(first, name) for name in ("branch", "varied", "spec", "drawn_after")}
    asked = Asked(tmp_path, [started("a", number=1, **fields), clone_of("a", "c", 5)])
    assert [asked.next()[0] for _ in range(2)] == ["a", "c"]
    asked.end("c", 0.1)
    asked.end("a", 3.0, **result)
    states = [trial.state.name for study in asked.studies.values() for trial in study.trials]
    assert [each for each in states if each != "FAIL"] == [state]
    assert asked.next()[1].drawn_after == 1


def test_a_trial_whose_slot_was_lost_at_its_start_is_handed_out_again(tmp_path):
    asked = Asked(tmp_path, [started("a", number=1), clone_of("a", "c", 5)], sampler="random", max_concurrent_trials=2)
    assert [asked.next()[0] for _ in range(2)] == ["a", "c"]
    for name, number in (("a", 1), ("c", 5)):
        asked.starts_again = {name}
        with attached(asked):
            asked.generator.on_trial_complete(name, error=True)
        assert not asked.is_finished()
        again, config = asked.next()
        assert (again, config.number) == (name, number)
    assert asked.next()[1].number == 2
    assert asked.next() is None  # two of the sampler's are at work


def test_a_slot_may_be_lost_at_its_start_as_often_as_trials_may_fail():
    context = SimpleNamespace(search_id=SEARCH, experiment=experiment(4, max_failures=1))
    controller = TrialController(context, None, TrialHistories(), None)
    scheduler = JournalScheduler(search_id=SEARCH, rules=())
    with attached(controller):
        scheduler.on_trial_error(None, SimpleNamespace(trial_id="a", status="RUNNING"))
        assert controller.starts_again == set()
        scheduler.on_trial_error(None, SimpleNamespace(trial_id="a", status="PENDING"))
        assert controller.starts_again == {"a"}
        controller.starts_again.clear()
        scheduler.on_trial_error(None, SimpleNamespace(trial_id="a", status="PENDING"))
        assert controller.starts_again == set()
