"""The scheduler of every search: it decides which slots trials get, and leaves all other decisions to the one below it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler

from components.cluster.capacity.placement import SlotPlacement
from components.cluster.ray_internals.tune import is_new, is_queued, requeue
from components.cluster.scheduling.budget_guard import BudgetGuard
from components.cluster.scheduling.clone_queue import CloneQueue
from components.cluster.scheduling.elastic import ElasticPolicy, QueuedTrial
from components.cluster.scheduling.migration import Migration
from components.cluster.scheduling.returning_trials import ReturningTrials
from components.cluster.slots.slot_result import SlotResult
from components.experiment.spec import WorkersSpec


class SlotScheduler(TrialScheduler):  # type: ignore[misc]
    """Trials that have lost their slots go on first, then clones start; elastic trials get more workers or fewer.

    What `clones`, `migration` and `policy` hold is about slots; a resumed search has new ones.

    Args:
        base: any scheduler of Tune, or ours. It hears of reports alone: not of results after which a trial only moves.
        workers_of: what the trial's method asks for.
        planned: how many trials Tune will get, those included that the sampler has not made yet.
    """

    def __init__(
        self,
        base: TrialScheduler,
        *,
        workers_of: Callable[[Trial], WorkersSpec],
        planned: int,
        clones: CloneQueue,
        migration: Migration,
        policy: ElasticPolicy,
        guard: BudgetGuard | None = None,
    ) -> None:
        super().__init__()
        self.base = base
        self._workers_of, self._planned = workers_of, planned
        self._clones, self._migration, self._policy, self._guard = clones, migration, policy, guard
        self._returning = ReturningTrials()

    @property
    def metric(self) -> str | None:
        metric: str | None = self.base.metric
        return metric

    @property
    def supports_buffered_results(self) -> bool:
        return bool(self.base.supports_buffered_results)

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        return bool(self.base.set_search_properties(metric, mode, **spec))

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        self.base.on_trial_add(tune_controller, trial)
        if not is_new(tune_controller, trial):  # an elastic one gets its number of workers with all that wait
            self._returning.add(tune_controller, trial)
            return
        workers = self._workers_of(trial)
        if workers.elastic:
            number = self._policy.at_start(workers, waiting=self._num_waiting(tune_controller))
            trial.update_resources(SlotPlacement(workers, number))

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        if self._migration.takes(trial, SlotResult.of(result)):
            return str(TrialScheduler.NOOP)
        decision = str(self.base.on_trial_result(tune_controller, trial, result))
        workers = self._workers_of(trial)
        if decision != TrialScheduler.CONTINUE or not workers.elastic:
            return decision
        has = trial.placement_group_factory.count
        number = self._policy.at_report(workers, has, waiting=self._num_waiting(tune_controller))
        if number == has:
            return decision
        self._migration.leave(trial, SlotPlacement(workers, number))
        return str(TrialScheduler.NOOP)

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        self.base.on_trial_error(tune_controller, trial)

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        self.base.on_trial_complete(tune_controller, trial, result)

    def on_trial_remove(self, tune_controller: Any, trial: Trial) -> None:
        self.base.on_trial_remove(tune_controller, trial)

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        if self._guard is not None:
            self._guard.look(tune_controller)
        if self._policy.is_due():
            self._resize_queued(tune_controller)
        for trial, placement in self._migration.ready():
            requeue(tune_controller, trial, placement)
            self._returning.add(tune_controller, trial)
        return (
            self._returning.first()
            or self._clones.first(tune_controller.get_trials())
            or self.base.choose_trial_to_run(tune_controller)
        )

    def debug_string(self) -> str:
        return str(self.base.debug_string())

    def save(self, checkpoint_path: str) -> None:
        self.base.save(checkpoint_path)

    def restore(self, checkpoint_path: str) -> None:
        self.base.restore(checkpoint_path)

    def _resize_queued(self, tune_controller: Any) -> None:
        """Queues each elastic trial that no longer fits at its number of workers with another number."""
        trials = {trial.trial_id: trial for trial in tune_controller.get_trials()}
        queued = [
            QueuedTrial(trial_id=trial_id, workers=workers, num_workers=trial.placement_group_factory.count)
            for trial_id, trial in trials.items()
            if (workers := self._workers_of(trial)).elastic and is_queued(tune_controller, trial)
        ]
        for trial_id, number in self._policy.changes(queued, waiting=self._num_waiting(tune_controller)):
            trial = trials[trial_id]
            requeue(tune_controller, trial, SlotPlacement(self._workers_of(trial), number))

    def _num_waiting(self, tune_controller: Any) -> int:
        """How many trials wait for a slot, those included that the sampler has not made yet."""
        trials = tune_controller.get_trials()
        queued = sum(trial.status in (Trial.PENDING, Trial.PAUSED) for trial in trials)
        return queued + max(0, self._planned - len(trials))
