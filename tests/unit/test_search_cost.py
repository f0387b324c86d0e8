"""What a search has cost and may spend, from histories written by hand: no cluster, and a clock that tests turn."""

import random

import pytest
from pydantic import ValidationError

from components.cluster.capacity.cluster_capacity import ClusterCapacity, NodeType
from components.cluster.driver.spending import Spending
from components.errors import InputError
from components.experiment.spec import ExperimentSpec, SearchBudgetSpec
from components.records.budget_rule import BudgetRule, Spent
from components.records.driver_presence import DriverHeartbeat, DriverInbox
from components.records.events import TrialEnded, TrialProgressed, replay
from components.records.histories import TrialHistories
from components.records.outcome import Outcome
from components.records.search_cost import SearchCost, TrialCost, cost_of_search
from components.records.slot_clock import SlotClock
from components.search.branch_prices import branch_prices
from components.search.decide_outcome import SearchOutcome, TrialsResult, outcome_of_unfinished, within_budget
from components.storage.open_folder import folder_at
from tests.support.records import progress, started


def reported(trial_id, step, *, held, time, trained=0.0, evaluated=0.0, workers=1, restarts=0):
    seconds = {"seconds": trained / workers, "evaluation_seconds": evaluated / workers, "workers": workers}
    report = progress(
        step, 1.0, worker_seconds=trained, evaluation_worker_seconds=evaluated, checkpoint="there", **seconds
    )
    return TrialProgressed(trial_id=trial_id, progress=report, slot="s", held=held, restarts=restarts, time=time)


def cost(*events):
    (history,) = replay(events).values()
    found = TrialCost.of(history)
    return found.training, found.evaluation, found.restarts, found.other


# What a trial has cost


def test_what_a_slot_was_held_for_is_training_evaluation_and_the_rest():
    first = reported("a", 1, held=20.0, time=2.0, trained=10.0, evaluated=4.0)
    assert cost(started("a"), first) == (10.0, 4.0, 0.0, 6.0)
    second = reported("a", 2, held=16.0, time=3.0, trained=22.0, evaluated=8.0)
    assert cost(started("a"), first, second) == (22.0, 8.0, 0.0, 6.0)
    assert cost(started("a"), first, second, first, second) == (22.0, 8.0, 0.0, 6.0)  # the journal, told twice


def test_work_that_a_dead_worker_group_repeats_is_counted_beside_the_work_that_counts():
    first = reported("a", 1, held=14.0, time=2.0, trained=10.0, evaluated=4.0)
    died = reported("a", 2, held=30.0, time=3.0, trained=20.0, evaluated=8.0, restarts=1)
    assert cost(started("a"), first, died) == (20.0, 8.0, 16.0, 0.0)


def test_a_trial_that_starts_again_pays_for_what_it_lost_and_for_its_new_start():
    first = reported("a", 1, held=14.0, time=2.0, trained=10.0, evaluated=4.0)
    later = reported("a", 2, held=34.0, time=5.0, trained=20.0, evaluated=8.0)
    assert cost(started("a"), first, started("a", time=4.0), later) == (20.0, 8.0, 20.0, 0.0)
    again = reported(
        "a", 1, held=15.0, time=5.0, trained=10.0, evaluated=4.0
    )  # its report is lost for Tune, not for us
    assert cost(started("a"), first, started("a", time=4.0), again) == (10.0, 4.0, 15.0, 0.0)


def test_what_a_trial_held_until_it_failed_is_paid_for():
    assert cost(started("a"), TrialEnded(trial_id="a", state="failed", held=7.0, time=2.0)) == (0.0, 0.0, 0.0, 7.0)


def test_one_sentence_says_what_a_search_cost():
    events = [started("a"), reported("a", 1, held=3312.4, time=2.0, trained=2800.0, evaluated=400.0, restarts=1)]
    histories = list(replay(events).values())
    said = cost_of_search(histories, proof=100.0, proven_branch="lora", prices={"lora": 3.6})
    assert said.sentence == (
        "cost: 3,412 worker-seconds: 2,800 training, 400 evaluation, 112 repeated or started again after faults, 100 proof;"
        " $3.41 by the price table"
    )
    assert cost_of_search(histories, prices={"full": 3.6}).dollars is None
    assert SearchCost().sentence == "cost: 0 worker-seconds"


def test_slots_are_held_from_start_to_end_but_not_while_a_trial_waits_for_another_one():
    now = [0.0]
    clock = SlotClock(lambda: now[0])
    clock.starts("a", workers=2)
    now[0] = 5.0
    assert (clock.take("a"), clock.at_work) == (10.0, {"a": 2})
    now[0] = 6.0
    clock.leaves("a")
    now[0] = 100.0
    assert (clock.held("a"), clock.at_work) == (2.0, {})
    clock.starts("a", workers=1)
    now[0] = 103.0
    assert (clock.take("a", ends=True), clock.held("a")) == (5.0, 0.0)


def test_what_a_killed_driver_did_not_record_is_counted_up_to_its_last_sign():
    histories = replay(
        [
            started("a", time=10.0, workers=2),
            started("b", time=10.0),
            TrialEnded(trial_id="b", state="completed", time=12.0),
        ]
    )
    clock = SlotClock(lambda: 0.0)
    clock.resume(list(histories.values()), last_sign=40.0)
    assert (clock.held("a"), clock.held("b"), clock.at_work) == (60.0, 0.0, {})


def test_a_driver_counts_on_from_the_one_before_it_and_not_the_time_between(tmp_path):
    folder = folder_at(tmp_path)
    DriverHeartbeat(host="h", pid=1, started=5.0, last_beat=50.0, ran_seconds=40.0, proof_seconds=3.0).write(folder)
    with DriverInbox(folder) as inbox:
        assert 40.0 <= inbox.ran_seconds < 45.0
        inbox.proof_seconds += 2.0
        assert inbox.last_sign == 50.0
    now = DriverHeartbeat.read(folder)
    assert (now.proof_seconds, 40.0 <= now.ran_seconds < 45.0) == (5.0, True)


# What it may spend


def rule(first_report=100, prices=None, **limits):
    return BudgetRule(limits=SearchBudgetSpec(**limits), first_report=first_report, prices=prices or {})


FIRST = replay(
    [started("a", branch="lora"), reported("a", 10, held=0.0, time=2.0, trained=40.0, evaluated=20.0, workers=2)]
)


@pytest.mark.parametrize(
    ("limits", "spent", "exhausted", "refuses"),
    [
        ({"worker_seconds": 200.0}, Spent(seconds=0, worker_seconds=140.0), None, None),  # 60 are needed, 60 are left
        ({"worker_seconds": 200.0}, Spent(seconds=0, worker_seconds=141.0), None, "search.budget.worker_seconds=200"),
        ({"worker_seconds": 200.0}, Spent(seconds=0, worker_seconds=200.0), *["search.budget.worker_seconds=200"] * 2),
        ({"hours": 1.0}, Spent(seconds=3569.0, worker_seconds=0), None, None),  # its 2 workers take 30 seconds
        ({"hours": 1.0}, Spent(seconds=3571.0, worker_seconds=0), None, "search.budget.hours=1"),
        ({"dollars": 2.0}, Spent(seconds=0, worker_seconds=0, dollars=1.94), None, None),  # a dollar a minute
        ({"dollars": 2.0}, Spent(seconds=0, worker_seconds=0, dollars=1.0), None, None),
        ({"dollars": 2.0}, Spent(seconds=0, worker_seconds=0, dollars=1.995), None, "search.budget.dollars=2"),
    ],
)
def test_no_trial_starts_that_cannot_come_to_its_first_report(limits, spent, exhausted, refuses):
    found = rule(**limits, prices={"lora": 3.6})
    assert found.exhausted(spent) == exhausted
    assert found.refuses(spent, FIRST.values(), "lora", at_work=2) == refuses
    assert found.refuses(spent, FIRST.values(), "full", at_work=2) == (
        None if "dollars" in limits and not exhausted else refuses
    )


def test_those_that_run_beside_a_new_trial_spend_too():
    spent = Spent(seconds=0, worker_seconds=100.0)
    assert rule(worker_seconds=200.0).refuses(spent, FIRST.values(), "lora", at_work=2) is None
    assert rule(worker_seconds=200.0).refuses(spent, FIRST.values(), "lora", at_work=4) is not None


def test_before_any_trial_has_reported_nothing_is_known_and_trials_start():
    assert rule(worker_seconds=1.0).refuses(Spent(seconds=0, worker_seconds=0), [], "lora", at_work=0) is None
    far = rule(worker_seconds=61.0, first_report=101)  # the one report is before the first rung
    assert far.refuses(Spent(seconds=0, worker_seconds=60.5), FIRST.values(), "lora", at_work=2) is None


class Searched:
    """Trials of one step length on some places, a driver that looks every second, and stops that end the step under way."""

    def __init__(self, seed):
        chance, self.now = random.Random(seed), 0.0
        self.places, self.limit = chance.randint(1, 4), chance.uniform(50.0, 400.0)
        self.step, self.evaluation = chance.uniform(0.5, 3.0), chance.uniform(0.5, 5.0)
        self.interval = 4 * self.step + self.evaluation
        self.histories, self.clock = TrialHistories(), SlotClock(lambda: self.now)
        limits = rule(worker_seconds=self.limit, first_report=40)
        self.spending = Spending(limits, self.histories, self.clock, lambda: self.now)
        self.began, self.ends, self.reports = {}, {}, {}
        while self.ends or self.spending.refuses("lora") is None:
            self.turn()

    def turn(self):
        while len(self.ends) < self.places and self.spending.refuses("lora") is None:
            self.start(str(len(self.began) + 1))
        if self.spending.exhausted():
            self.ends = {name: min(end, self.now + self.step + self.evaluation) for name, end in self.ends.items()}
        self.now += 1.0
        for name in [name for name, end in self.ends.items() if self.now >= end]:
            self.report(name)

    def start(self, name):
        self.histories.record(started(name, number=int(name), time=self.now))
        self.clock.starts(name, 1)
        self.began[name], self.ends[name], self.reports[name] = self.now, self.now + self.interval, 0

    def report(self, name):
        self.reports[name] += 1
        evaluated = self.reports[name] * self.evaluation
        took = {"trained": self.now - self.began[name] - evaluated, "evaluated": evaluated}
        held = self.clock.take(name)
        self.histories.record(reported(name, 4 * self.reports[name], held=held, time=self.now, **took))
        self.ends[name] = self.now + self.interval
        if self.reports[name] == 5 or self.spending.exhausted():
            self.histories.record(TrialEnded(trial_id=name, state="stopped", time=self.now))
            self.clock.take(name, ends=True)
            del self.ends[name]


@pytest.mark.parametrize("seed", range(20))
def test_a_search_spends_its_budget_and_at_most_one_report_of_each_running_trial_more(seed):
    search = Searched(seed)
    spent = search.spending.spent().worker_seconds
    assert spent <= search.limit + search.places * (search.step + search.evaluation + 2.0)
    assert spent >= search.limit - search.places * (search.interval + 2.0)


def experiment(budget, **resources):
    return ExperimentSpec.model_validate(
        {
            "name": "toy",
            "model": {"path": "somewhere"},
            "data": {"train": "a.jsonl"},
            "search": {
                "budget": budget,
                "space": {"lora": {"method": {"rank": 2}}, "full": {"method": {"kind": "full"}}},
            },
            "resources": resources,
        }
    )


def capacity(*accelerators, gpus=8):
    kinds = [
        NodeType(name=name, max_count=1, resources={"CPU": 64, "GPU": gpus, f"accelerator_type:{name}": 1})
        for name in accelerators
    ]
    return ClusterCapacity(
        types=(NodeType(name="head", max_count=1, resources={"CPU": 8}), *kinds), max_nodes=9, grows=True
    )


def test_a_worker_costs_its_share_of_the_dearest_machine_that_it_may_get():
    shares = {"lora": {"gpus_per_worker": 0.5}, "full": {"gpus_per_worker": 1}}
    assert branch_prices(experiment({"dollars": 9}, **shares), capacity("L40S")) == {"lora": 1.12, "full": 2.24}
    dearest = branch_prices(experiment({"dollars": 9}, **shares), capacity("L40S", "A100"))  # the one of 80 GB may come
    assert dearest["full"] == pytest.approx(27.45 / 8)


def test_a_budget_in_dollars_is_refused_where_a_price_is_not_known():
    with pytest.raises(
        InputError, match=r"dollars=9: no price is known for workers of lora, full \(a CPU is not in the"
    ):
        branch_prices(experiment({"dollars": 9}), capacity("L40S"))
    unknown = experiment({"dollars": 9, "dollars_per_worker_hour": {"lora": 1}}, full={"gpus_per_worker": 1})
    with pytest.raises(InputError, match=r"for workers of full \(its GPU is not in the table.*dollars_per_worker_hour"):
        branch_prices(unknown, capacity("B300"))
    with pytest.raises(InputError, match="no branch qlora; there are lora, full"):
        branch_prices(experiment({"dollars": 9, "dollars_per_worker_hour": {"qlora": 1}}), capacity())
    assert branch_prices(experiment({"dollars": 9, "dollars_per_worker_hour": 2}), capacity()) == {"lora": 2, "full": 2}
    assert branch_prices(experiment({"hours": 9}), capacity()) == {}


def test_a_budget_without_a_limit_is_refused():
    with pytest.raises(ValidationError, match="give at least one limit: hours, dollars or worker_seconds"):
        SearchBudgetSpec(dollars_per_worker_hour=2.0)


def test_trials_that_the_budget_kept_from_starting_are_not_left_to_run():
    histories = replay([started("a"), TrialEnded(trial_id="a", state="stopped", time=2.0)])
    trials = TrialsResult(histories=histories, undelivered=0, limit="search.budget.hours=8")
    assert outcome_of_unfinished(trials, planned=8, resume="again") is None
    said = within_budget(SearchOutcome(outcome=Outcome.FINISHED, message="Done"), trials, 8).message
    assert said == "Done (search.budget.hours=8 ended the search with 1 of 8 trials started)"
    stopped = TrialsResult(histories=histories, undelivered=0, limit="search.budget.hours=8", stop_reason="SIGTERM")
    assert "7 trials to go" in outcome_of_unfinished(stopped, planned=8, resume="again").message
