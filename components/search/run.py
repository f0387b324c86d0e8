"""The main job as a library: a prepared search runs its trials, registers the best one, and reports."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial

from components.cluster.capacity.autoscaler_config import capacity_of_cluster
from components.cluster.capacity.cluster_capacity import check_capacity
from components.cluster.driver.run_on_worker import run_on_worker
from components.cluster.ray_session import connected, this_job
from components.cluster.run_search import run_search
from components.cluster.scheduling.search_warnings import remarks
from components.errors import TakenOverError, TrackingError, VerificationError
from components.experiment.space import num_trials
from components.records.disk_use import DiskUse
from components.records.driver_presence import DriverInbox
from components.records.evaluation_record import EvaluationRecord
from components.records.events import TrialHistory, TrialState
from components.records.histories import Subscriber, TrialHistories
from components.records.journal import Journal
from components.records.on_message import OnMessage, ignore_message
from components.records.outcome import Outcome
from components.records.search_cost import cost_of_search
from components.records.stop_flag import StopRequest
from components.registry.fresh_process import begin_ahead, drop_ahead
from components.registry.promotion import Executor, register_best, run_locally
from components.registry.verification_messages import VerificationReport
from components.reports.leaderboard import ranked
from components.reports.search_summary import SearchSummary
from components.search.branch_prices import branch_prices, priced_by
from components.search.check_disk import check_disk
from components.search.choose_candidate import choose, compare_branches, with_complete_checkpoints
from components.search.decide_outcome import (
    SearchOutcome,
    SearchResult,
    TrialsResult,
    outcome_of_no_success,
    outcome_of_registry,
    outcome_of_stop,
    outcome_of_unfinished,
    resume_command,
    within_budget,
)
from components.search.prepare_search import PreparedSearch
from components.search.read_selection import read_selection
from components.search.record_end import record_end
from components.search.tracked_runs import TrackedRuns
from components.search.write_reports import REPORT, keep_summary, kept_summary, log_reports, summarize, write_page
from components.statistics.selection import Selection
from components.storage.free_room import lack_of_room
from components.storage.retry import StorageError
from components.tracking.journal_sync import JournalSync
from components.tracking.mlflow_access import MLFLOW_ERRORS, reason_of
from components.training.workers import UnfitWorkersError


@contextlib.contextmanager
def driver_session(
    prepared: PreparedSearch,
    *,
    on_message: OnMessage = ignore_message,
    stop: StopRequest | None = None,
    command: str = "",
) -> Iterator[SearchRun]:
    """Inside, Ray is connected and the search is known to others: its driver has a heartbeat and takes requests.

    Raises InsufficientCapacityError if the cluster can never hold a trial, InputError for a budget in dollars where a price
    is not known and for a disk budget that is too small, and TrackingError if MLflow is away.
    """
    with contextlib.closing(prepared.lock), connected() as dashboard:
        capacity = capacity_of_cluster()
        check_capacity(prepared.experiment, capacity)
        known = [trial.branch for trial in prepared.earlier]
        for remark in remarks(prepared.experiment, prepared.budget, capacity, known):
            on_message(remark)
        prices = branch_prices(prepared.experiment, capacity)
        disk = check_disk(prepared, capacity, on_message)
        prepared.begin()
        with DriverInbox(prepared.folder) as inbox:
            search = SearchRun(
                prepared,
                inbox,
                dashboard,
                on_message=on_message,
                stop=stop,
                command=command,
                prices=prices,
                disk=disk,
            )
            try:
                yield search
            except Exception:
                search.abandon()
                raise
            finally:
                drop_ahead()


class SearchRun:
    """The steps of one search: `run_trials`, then `conclude`, which registers the best trial and reports.

    `histories` is the state of the trials, from the journal at first; other threads may read it.
    """

    def __init__(
        self,
        prepared: PreparedSearch,
        inbox: DriverInbox,
        dashboard: str,
        *,
        on_message: OnMessage,
        stop: StopRequest | None,
        command: str,
        prices: Mapping[str, float],
        disk: DiskUse,
    ) -> None:
        """`prices`: dollars of a worker-hour, of the branches where it is known. `disk`: what the search keeps at most."""
        self.prices, self.disk = dict(prices), disk
        inbox.checkpoint_bytes = disk.largest_checkpoint
        self.prepared, self.inbox, self.on_message, self.command = prepared, inbox, on_message, command
        self.stop = stop or StopRequest()
        self._taken_over: str | None = None
        self._undelivered = 0  # records that MLflow has not taken
        prepared.lock.when_lost(self._lose)
        self._journal = Journal(prepared.folder)
        self.histories = TrialHistories(self._journal.read())
        self._concluded = kept_summary(prepared.folder) if prepared.resumed else None
        facts = this_job(dashboard)
        self._tracked = TrackedRuns(prepared, facts, on_message)
        self._show_links({"Ray dashboard": facts.get("ray.dashboard", dashboard), "MLflow": self._tracked.begin()})

    @property
    def planned(self) -> int:
        """How many trials the search sets out with; clones are added to them."""
        return num_trials(self.prepared.experiment)

    @property
    def resume_command(self) -> str:
        return resume_command(self.command)

    def remark(self) -> str:
        """What a person should know at this moment; mostly nothing."""
        return lack_of_room(self.prepared.folder, self.disk.largest_checkpoint)

    def run_trials(self, on_event: Subscriber | None = None) -> TrialsResult:
        """Returns once every trial has ended, or the search was stopped. Called once."""
        if self._is_concluded():
            return self._deliver_only()
        sync = JournalSync(self._journal, self._tracked.open)
        self.histories.subscribe(sync.append)
        if on_event is not None:
            self.histories.subscribe(on_event)
        context, hopeless, limit = self.prepared.context(self.prices), None, None
        try:
            limit = run_search(
                context,
                self.histories,
                inbox=self.inbox,
                stop=self.stop,
                running_seconds=lambda: self.inbox.ran_seconds,
                last_sign=self.inbox.last_sign,
                disk=self.disk,
            )
        except UnfitWorkersError as error:
            hopeless = str(error)
        finally:
            self._undelivered = sync.close(self._tracked.patience_seconds, self.stop)
        return TrialsResult(
            histories=self.histories,
            undelivered=self._undelivered,
            stop_reason=self.stop.reason,
            hopeless=hopeless,
            limit=limit,
        )

    def conclude(self, trials: TrialsResult) -> SearchResult:
        """Registers the best trial, if that was asked for and there is one, and reports."""
        if self._concluded is not None and self._is_concluded():
            return self._finish(self._concluded)
        return self.report(within_budget(self._decide(trials), trials, self.planned))

    def register(self, best: TrialHistory) -> SearchOutcome:
        """Packages the trial, verifies it, and sends it through the registry's gate."""
        self._check_lock()
        prepared = self.prepared
        self.on_message(f"trial {best.started.number} is the best: packaging it, and proving it in a fresh process ...")
        try:
            registry = register_best(
                self._tracked.open(),
                prepared.uri,
                prepared.experiment,
                best,
                prepared.opened.of_branch(best.started.branch).dataset,
                prepared.probes,
                self._executor(best),
                replace=prepared.replace,
                selection=self._selection(best),
                general=prepared.general_texts,
                generation=prepared.gate_generation,
                by_bytes=prepared.by_bytes,
            )
        except VerificationError as error:
            return self._not_registered(
                Outcome.NOT_PROVEN, f"The best trial was not registered: {error}. Once that is mended, try again", best
            )
        except StorageError as error:
            return self._not_registered(
                Outcome.NOT_PROVEN, f"The best trial was not registered: {error}. Then try again", best
            )
        except MLFLOW_ERRORS as error:
            return self._not_registered(
                Outcome.TRACKING_AWAY, f"MLflow took no version ({reason_of(error)}). Try again", best
            )
        return outcome_of_registry(registry, best)

    def report(self, outcome: SearchOutcome) -> SearchResult:
        """Writes the reports, and finishes the search unless it can go on."""
        self._check_lock()
        prepared = self.prepared
        cost = cost_of_search(
            self.histories.values(),
            proof=self.inbox.proof_seconds,
            proven_branch=outcome.best.started.branch if outcome.best else "",
            driver_seconds=self.inbox.ran_seconds,
            prices=self.prices,
            priced_by=priced_by(prepared.experiment),
        )
        summary = summarize(prepared, self.histories, outcome, run_id=self._tracked.parent_id, cost=cost)
        write_page(prepared, summary, self.histories, self.command)
        if not summary.outcome.resumable:
            keep_summary(prepared.folder, summary)
            return self._finish(summary)
        try:
            runs = self._tracked.open()
            log_reports(runs, prepared.folder, summary, self.histories)
            runs.end_search(summary.outcome.value)
        except MLFLOW_ERRORS as error:
            self.on_message(f"MLflow did not take the reports ({reason_of(error)}); they are in {prepared.folder}")
        return self._result(summary)

    def abandon(self) -> None:
        """Ends the search's runs in MLflow, if that answers: an error ends the driver, and a resume goes on in them."""
        with contextlib.suppress(*MLFLOW_ERRORS):
            if self._tracked.parent_id and self._taken_over is None:
                self._tracked.open().end_search(Outcome.INTERRUPTED.value)

    def _finish(self, summary: SearchSummary) -> SearchResult:
        """Records the end in MLflow, compares all of it with the journal, and only then marks the search as finished."""
        prepared = self.prepared
        try:
            if self._undelivered:
                raise TrackingError(f"{self._undelivered} records wait")
            runs = self._tracked.open()
            summary = summary.model_copy(update={"run_id": runs.parent_id})
            record_end(runs, prepared.folder, summary, self._journal.read(), self.on_message)
        except (TrackingError, *MLFLOW_ERRORS) as error:
            if isinstance(error, StorageError):
                raise  # it is an OSError, as the errors of MLflow's network are
            reason = str(error) if isinstance(error, TrackingError) else reason_of(error)
            message = (
                f"{summary.message}. But MLflow has not taken all of the record ({reason}); {prepared.folder} has it. When"
                f" MLflow is back: {self.resume_command}"
            )
            summary = summary.model_copy(update={"outcome": Outcome.TRACKING_AWAY, "message": message})
        else:
            prepared.finish()
        return self._result(summary)

    def _result(self, summary: SearchSummary) -> SearchResult:
        """Tells others of the outcome, too."""
        self.inbox.close(summary.outcome.value)
        return SearchResult(
            outcome=summary.outcome,
            message=summary.message,
            best=self.histories.get(summary.best or ""),
            registry=summary.registry,
            finalists=summary.finalists,
            summary=summary,
            histories=dict(self.histories),
            budget=self.prepared.budget,
            report=str(self.prepared.folder / REPORT),
        )

    def _is_concluded(self) -> bool:
        """Whether an earlier driver came to a final outcome, and nothing else is asked for now."""
        kept = self._concluded
        if kept is None or self.prepared.replace is not None:
            return False
        return not (kept.outcome is Outcome.FINISHED and self.prepared.register)

    def _deliver_only(self) -> TrialsResult:
        sync = JournalSync(self._journal, self._tracked.open)
        self._undelivered = sync.close(self._tracked.patience_seconds, self.stop)
        return TrialsResult(histories=self.histories, undelivered=self._undelivered, stop_reason=self.stop.reason)

    def _decide(self, trials: TrialsResult) -> SearchOutcome:
        if early := outcome_of_unfinished(trials, planned=self.planned, resume=self.resume_command):
            return early
        histories = {
            history.trial_id: history for history in with_complete_checkpoints(self.histories.values(), self.on_message)
        }
        leader = ranked(histories.values())[0]
        if leader.best is None or leader.state is TrialState.FAILED:
            return outcome_of_no_success(self.histories.values(), self.resume_command)
        finalists = compare_branches(self.prepared, histories)
        return replace(self._conclude(trials, choose(histories, leader, finalists, self.prepared)), finalists=finalists)

    def _conclude(self, trials: TrialsResult, best: TrialHistory) -> SearchOutcome:
        assert best.best is not None
        if trials.undelivered:
            return self._not_registered(
                Outcome.TRACKING_AWAY,
                f"The search is done, but MLflow is away: {trials.undelivered} records wait in {self.prepared.folder}."
                f" To fill MLflow only: --sync {self.prepared.search_id}. To go on when it is back",
                best,
            )
        if not self.prepared.register:
            metric = best.best.metric
            scored = f"{metric.name} {best.best.scores[metric.name]:.4f}, e" if metric.name in best.best.scores else "E"
            message = f"{scored}val loss {best.best.eval_loss:.4f}: {best.best.checkpoint}"
            return SearchOutcome(outcome=Outcome.FINISHED, message=message, best=best)
        if self.stop.reason is not None:
            message = f"Interrupted before the best trial was registered. Go on with: {self.resume_command}"
            return SearchOutcome(outcome=outcome_of_stop(self.stop.reason), message=message, best=best)
        return self.register(best)

    def _lose(self, reason: str) -> None:
        self._taken_over = reason
        self.stop.request(reason)

    def _check_lock(self) -> None:
        """Raises TakenOverError if another driver runs the search: its journal, runs and registry are that one's now."""
        if self._taken_over is not None:
            raise TakenOverError(f"{self._taken_over}: the search goes on there, and this driver has ended")

    def _not_registered(self, outcome: Outcome, why: str, best: TrialHistory) -> SearchOutcome:
        return SearchOutcome(outcome=outcome, message=f"{why}: {self.resume_command}", best=best)

    def _selection(self, best: TrialHistory) -> Selection | None:
        """What the best trial was chosen from; None if the gate has conversations of its own, which chose nothing."""
        prepared, histories = self.prepared, self.histories.values()
        metric, generate = prepared.experiment.search.metric, prepared.experiment.generation
        by_probes = metric.of_replies and generate is not None and generate.source == "probes"
        if prepared.dataset.verdict is not None and not by_probes:
            return None
        if not metric.of_replies:
            store = prepared.dataset.eval
            weights = store.target_bytes if prepared.by_bytes else store.num_targets
            return read_selection(prepared.folder, histories, weights.tolist(), prepared.metric.name)
        assert best.best is not None
        own = EvaluationRecord.read(prepared.folder, best.trial_id, best.best.step)
        said = own.metrics[metric.name].weights if own is not None and metric.name in own.metrics else ()
        return read_selection(prepared.folder, histories, said, metric.name)

    def _executor(self, best: TrialHistory) -> Executor:
        """A driver may run on a small machine without a GPU: what was trained on a GPU is verified on one.

        Here the process that verifies begins to import while the version is made.
        """
        workers = self.prepared.experiment.resources.of(best.started.spec.method)
        if workers.gpus_per_worker:
            return partial(self._clocked, partial(run_on_worker, workers))
        begin_ahead()
        return partial(self._clocked, run_locally)

    def _clocked(self, executor: Executor, work: Callable[[], VerificationReport]) -> VerificationReport:
        """Counts what the proof takes, for the search's cost: also one that fails."""
        began = time.monotonic()
        try:
            return executor(work)
        finally:
            self.inbox.proof_seconds += time.monotonic() - began

    def _show_links(self, links: Mapping[str, str]) -> None:
        self.inbox.show(dict(links))
        self.on_message(
            ", ".join([f"search {self.prepared.search_id}", *(f"{name} {at}" for name, at in links.items())])
        )
