"""A resumed search draws and decides as an uninterrupted one: its trials are replayed from the journal, without Ray."""

import math

import pytest

from components.cluster.scheduling.branched_searcher import BranchedSearcher
from components.cluster.scheduling.numbered_searcher import NumberedSearcher, PresampledTrials
from components.cluster.scheduling.overdue_ends import overdue_ends
from components.cluster.scheduling.scheduler import ending_rules
from components.cluster.slots.trial_config import TrialConfig
from components.experiment.space import num_trials
from components.records.events import (
    Clone,
    Stop,
    TrialEnded,
    TrialEvent,
    TrialInstructed,
    TrialProgressed,
    TrialStarted,
    replay,
)
from components.records.histories import TrialHistories
from components.records.unfinished_trials import lost_trials, trials_to_go_on
from tests.support.records import progress, started
from tests.support.sampling import BUDGET, SPACE, experiment

SPACES = {
    "tpe": {
        "lora": {
            "method": {"rank": {"choice": [2, 4]}, "target_modules": {"choice": [["q_proj"], ["q_proj", "v_proj"]]}},
            "optimizer": {"learning_rate": {"log_uniform": [1e-5, 1e-1]}},
        },
        "full": SPACE["full"],
    },
    "gp": SPACE,
    "cmaes": {"lora": {"method": {"dropout": {"uniform": [0.0, 0.2]}}, "optimizer": SPACE["lora"]["optimizer"]}},
    # So few configurations that suggestions are refused and drawn again.
    "small": {"lora": {"method": {"rank": {"choice": [4, 8]}, "alpha": {"choice": [16, 32, 64]}}}},
}


def loss(spec):
    return (math.log10(spec.optimizer.learning_rate) + 2) ** 2 + spec.method.kind.count("f")


class Search:
    """Two trials at a time, ended in the order of their numbers but for every third; each event as in the journal."""

    def __init__(self, asked, events=()):
        self.asked, self.histories = asked, TrialHistories()
        for event in events:
            self.histories.record(event)
        self.journal = list(events)
        self.histories.subscribe(self.journal.append)
        sampler = BranchedSearcher(asked, BUDGET) if asked.search.learns else PresampledTrials(asked)
        self.searcher = NumberedSearcher(sampler, num_trials(asked), 2)
        self.searcher.go_on_after(self.histories)

    def run(self, events=10**6):
        """Until so many lines are in the journal."""
        running = {}
        while True:
            while self.searcher.has_unfinished:
                name, config = self.searcher.next_unfinished()
                running[name] = config
            while (config := self.searcher.next_new(f"t{self._next_number()}", ())) is not None:
                running[f"t{config.number}"] = config
                if self._record(self._started(config), events):
                    return self
            if not running:
                return self
            name = sorted(running, key=lambda each: (running[each].number % 3 == 0, running[each].number))[0]
            config = running.pop(name)
            report = progress(1, loss(config.spec), target_tokens=BUDGET, done=True)
            known = self.histories[name].reports
            if not known and self._record(TrialProgressed(trial_id=name, progress=report, slot="s", time=2.0), events):
                return self
            self.searcher.end(name, self.histories[name].reports, impossible=False)
            if self._record(TrialEnded(trial_id=name, state="completed", time=3.0), events):
                return self

    def _next_number(self):
        return 1 + len(self.histories)

    def _started(self, config):
        fields = {name: getattr(config, name) for name in TrialConfig.model_fields}
        return TrialStarted(trial_id=f"t{config.number}", workers=1, time=1.0, **fields)

    def _record(self, event: TrialEvent, events):
        self.histories.record(event)
        return len(self.journal) >= events

    @property
    def trials(self):
        return {history.started.number: (history.started.branch, dict(history.started.varied)) for history in
                self.histories.values()}  # fmt: skip


def as_read_back(events):
    """Through JSON, as a resumed driver has them."""
    return [type(event).model_validate_json(event.model_dump_json()) for event in events]


@pytest.mark.parametrize(
    ("sampler", "space", "trials"),
    [("tpe", "tpe", 14), ("gp", "gp", 8), ("cmaes", "cmaes", 14), ("tpe", "small", 6), ("random", "tpe", 8)],
)
def test_a_search_that_is_killed_after_any_event_draws_the_trials_of_one_that_is_not(sampler, space, trials):
    warm_up = {} if sampler == "random" else {"warm_up": 2}
    asked = experiment(trials, space=SPACES[space], sampler=sampler, **warm_up)
    whole = Search(asked).run()
    assert len(whole.trials) == num_trials(asked)
    at = range(1, len(whole.journal)) if sampler == "tpe" else range(len(whole.journal) // 2, len(whole.journal), 5)
    for killed_at in at:
        before = Search(asked).run(events=killed_at)
        resumed = Search(asked, as_read_back(before.journal)).run()
        assert resumed.trials == whole.trials, killed_at


def test_the_sampler_is_told_of_each_end_where_it_was_told_of_it():
    """Not of all ends at once: what it draws next would be another trial."""
    whole = Search(experiment(10, warm_up=2)).run()
    afterwards = [history.started.drawn_after for history in whole.histories.values()]
    assert afterwards == [0, 0, *range(1, 9)]
    at_once = [
        event.model_copy(update={"drawn_after": 0}) if isinstance(event, TrialStarted) else event
        for event in whole.journal
    ]
    (true, false) = (BranchedSearcher(experiment(10, warm_up=2), BUDGET) for _ in range(2))
    true.go_on_after(TrialHistories(whole.journal))
    false.go_on_after(TrialHistories(at_once))
    asked = [[trial.state for study in each._studies.values() for trial in study.trials] for each in (true, false)]
    assert asked[0] != asked[1]  # its own suggestions come again in the one, and are refused in the other


def test_a_trial_that_had_not_begun_while_later_ones_had_is_drawn_again_in_its_place():
    asked = experiment(8, warm_up=2)
    searcher = BranchedSearcher(asked, BUDGET)
    configs = [searcher.draw() for _ in range(4)]
    begun = [started(f"t{each.number}", **{name: getattr(each, name) for name in ("number", "branch", "varied", "spec")},
                     drawn_after=0) for each in (configs[0], configs[1], configs[3])]  # fmt: skip
    again = NumberedSearcher(BranchedSearcher(asked, BUDGET), 8)
    again.go_on_after(TrialHistories(begun))
    assert [again.next_unfinished()[0] for _ in range(3)] == ["t1", "t2", "t4"]
    assert again.next_new("new", ()) == configs[2]
    assert again.next_new("newer", ()).number == 5


def test_as_many_as_may_be_are_at_work_with_those_that_go_on():
    asked = experiment(4, sampler="random")
    searcher = NumberedSearcher(PresampledTrials(asked), 4, 1)
    searcher.go_on_after(TrialHistories([started("t1", number=1)]))
    assert searcher.next_unfinished()[0] == "t1"
    assert searcher.next_new("x", ()) is None
    searcher.end("t1", (), impossible=False)
    assert searcher.next_new("x", ()).number == 2


def test_a_clone_that_had_begun_goes_on_as_what_it_was():
    clone = started("c", number=5, parent="t1", warm_from="there")
    searcher = NumberedSearcher(PresampledTrials(experiment(4, sampler="random")), 4)
    searcher.go_on_after(TrialHistories([started("t1", number=1), clone]))
    names = dict(searcher.next_unfinished() for _ in range(2))
    assert names["c"] == TrialConfig.of_started(clone)
    assert (names["c"].parent, names["c"].warm_from) == ("t1", "there")
    asked = Clone(trial_id="d", number=6, branch="lora", spec=clone.spec, varied={"x": 1}, repeat=True)
    assert TrialConfig.of_clone("t1", asked).repeat


# What a dead driver had decided, and did not live to record


def reports(name, *losses, **last):
    marks = [progress(step, loss, target_tokens=250 * step) for step, loss in enumerate(losses, start=1)]
    marks[-1] = marks[-1].model_copy(update=last)
    return [TrialProgressed(trial_id=name, progress=mark, slot="s", time=2.0) for mark in marks]


def ends(events, **search):
    asked = experiment(4, **search)
    found = overdue_ends(TrialHistories(events), ending_rules(asked, BUDGET), now=9.0, held=lambda trial_id: 1.5)
    return {end.trial_id: (end.state.value, end.reason, end.impossible) for end in found}


def test_a_trial_that_had_reported_its_end_has_ended():
    events = [
        *[started(name, number=number) for number, name in enumerate("abcd", start=1)],
        *reports("a", 3.0, done=True),
        *reports("b", 3.0, diverged="the loss is nan", done=True),
        *reports("c", 3.0),
        TrialEnded(trial_id="d", state="completed", time=3.0),
    ]
    assert ends(events, scheduler={"name": "none"}) == {
        "a": ("completed", "", False),
        "b": ("failed", "the loss is nan", True),
    }


def test_a_person_s_stop_is_overdue_once_the_trial_has_reported():
    stop = TrialInstructed(trial_id="a", instruction=Stop(), request_id="r", by="ann@desk", time=2.0)
    none = {"name": "none"}
    first, second = reports("a", 3.0, 2.0)
    assert ends([started("a"), first, stop], scheduler=none) == {}
    assert ends([started("a"), first, stop, second], scheduler=none) == {"a": ("stopped", "stopped by ann@desk", False)}


ASHA = {"name": "asha", "reduction_factor": 2, "first_rung_target_tokens": 250}


def test_asha_s_verdict_is_that_of_the_moment_of_the_report():
    """`b` was the worst of two when it reported, and goes; what came later does not change that, nor spares it."""
    first = [started("a", number=1), started("b", number=2), started("c", number=3), started("d", number=4)]
    judged = [*first, *reports("a", 1.0), *reports("b", 2.0)]
    gone = {"b": ("stopped", "the scheduler gave its place to others", False)}
    assert ends(judged, scheduler=ASHA) == gone
    assert ends([*judged, *reports("c", 5.0), *reports("d", 6.0)], scheduler=ASHA)["b"] == gone["b"]
    spared = [*first, *reports("b", 2.0), *reports("a", 1.0)]
    assert ends(spared, scheduler=ASHA) == {}


# Which trials go on


def test_lost_trials_go_on_where_none_has_succeeded_and_all_have_had_their_turn():
    lost = [started("a", number=1), TrialEnded(trial_id="a", state="failed", reason="its slot died", time=2.0)]
    own = [started("b", number=2), TrialEnded(trial_id="b", state="failed", reason="nan", impossible=True, time=2.0)]
    running = [started("c", number=3)]
    done = [TrialProgressed(trial_id="c", progress=progress(1, 1.0, checkpoint="x", done=True), slot="s", time=2.0),
            TrialEnded(trial_id="c", state="completed", time=3.0)]  # fmt: skip
    names = lambda events, planned: [each.trial_id for each in trials_to_go_on(replay(events).values(), planned)]  # noqa: E731
    assert names([*lost, *own], 2) == ["a"]
    assert names([*lost, *own], 3) == []  # the third may succeed
    assert names([*lost, *own, *running], 3) == ["c"]
    assert names([*lost, *own, *running, *done], 3) == []
    assert [each.trial_id for each in lost_trials(replay([*lost, *own]).values())] == ["a"]
    again = replay([*lost, started("a", number=1, time=5.0)])["a"]
    assert (again.state, again.reason) == ("running", "")
