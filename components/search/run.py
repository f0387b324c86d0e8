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
from components.errors import InputError, TakenOverError, TrackingError, VerificationError
from components.experiment.space import num_trials
from components.records.driver_presence import DriverInbox
from components.records.evaluation_record import EvaluationRecord
from components.records.events import TrialHistory, TrialState
from components.records.histories import Subscriber, TrialHistories
from components.records.journal import Journal
from components.records.on_message import OnMessage, ignore_message
from components.records.outcome import Outcome
from components.records.search_cost import cost_of_search
from components.records.stop_flag import StopRequest
from components.registry.promotion import Executor, register_best, run_locally
from components.registry.verification_messages import VerificationReport
from components.reports.leaderboard import ranked
from components.search.branch_prices import branch_prices, priced_by
from components.search.choose_candidate import choose, compare_branches
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
from components.search.write_reports import log_inputs, summarize, write_reports
from components.statistics.selection import Selection
from components.storage.open_folder import folder_at
from components.storage.retry import StorageError
from components.storage.uri import without_secrets
from components.tracking.journal_sync import JournalSync
from components.tracking.mlflow_access import MLFLOW_ERRORS, open_store, reason_of
from components.tracking.mlflow_runs import MAX_CHARACTERS, SETTINGS_TAG, TRAINED_TAG, SearchRuns
from components.training.workers import UnfitWorkersError

MLFLOW_SECONDS = 60.0  # how long the end waits for what MLflow has not taken yet


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
    is not known, and TrackingError if MLflow is away.
    """
    with contextlib.closing(prepared.lock), connected() as dashboard:
        capacity = capacity_of_cluster()
        check_capacity(prepared.experiment, capacity)
        known = [trial.branch for trial in prepared.earlier]
        for remark in remarks(prepared.experiment, prepared.budget, capacity, known):
            on_message(remark)
        prices = branch_prices(prepared.experiment, capacity)
        prepared.begin()
        with DriverInbox(prepared.folder) as inbox:
            yield SearchRun(
                prepared, inbox, dashboard, on_message=on_message, stop=stop, command=command, prices=prices
            )


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
    ) -> None:
        """`prices`: dollars of a worker-hour, of the branches where it is known."""
        self.prices = dict(prices)
        self.prepared, self.inbox, self.on_message, self.command = prepared, inbox, on_message, command
        self.stop = stop or StopRequest()
        self._taken_over: str | None = None
        prepared.lock.when_lost(self._lose)
        self._journal = Journal(prepared.folder)
        self.histories = TrialHistories(self._journal.read())
        self._facts = this_job(dashboard)
        try:
            self._runs = self._connect_tracking()
            log_inputs(self._runs, prepared)
        except StorageError:
            raise  # it is an OSError, as the errors of MLflow's network are
        except MLFLOW_ERRORS as error:
            raise TrackingError(without_secrets(str(error))) from None
        except ImportError as error:  # MLflow imports what an artifact store needs, e.g. boto3 for S3, when it is used
            uri = without_secrets(prepared.uri)
            raise InputError(
                f"tracking.uri={uri}: MLflow keeps its artifacts where a package is needed: {error}; install it"
            ) from None
        self._show_links({"Ray dashboard": self._facts.get("ray.dashboard", dashboard), "MLflow": self._runs.link})

    @property
    def planned(self) -> int:
        """How many trials the search sets out with; clones are added to them."""
        return num_trials(self.prepared.experiment)

    @property
    def resume_command(self) -> str:
        return resume_command(self.command)

    def run_trials(self, on_event: Subscriber | None = None) -> TrialsResult:
        """Returns once every trial has ended, or the search was stopped. Called once."""
        sync = JournalSync(self._journal, self._connect_tracking)
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
            )
        except UnfitWorkersError as error:
            hopeless = str(error)
        finally:
            undelivered = sync.close(MLFLOW_SECONDS, self.stop)
        return TrialsResult(
            histories=self.histories,
            undelivered=undelivered,
            stop_reason=self.stop.reason,
            hopeless=hopeless,
            limit=limit,
        )

    def conclude(self, trials: TrialsResult) -> SearchResult:
        """Registers the best trial, if that was asked for and there is one, and reports."""
        return self.report(within_budget(self._decide(trials), trials, self.planned))

    def register(self, best: TrialHistory) -> SearchOutcome:
        """Packages the trial, verifies it, and sends it through the registry's gate."""
        self._check_lock()
        prepared = self.prepared
        self.on_message(f"trial {best.started.number} is the best: packaging it, and proving it in a fresh process ...")
        try:
            registry = register_best(
                self._runs,
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
        """Writes the reports, marks the search as finished unless it can go on, and tells others of the outcome."""
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
        summary = summarize(prepared, self.histories, outcome, run_id=self._runs.parent_id, cost=cost)
        page = write_reports(prepared, self._runs, summary, self.histories, self.command, self.on_message)
        self.inbox.close(outcome.outcome.value)
        return SearchResult(
            outcome=outcome.outcome,
            message=outcome.message,
            best=outcome.best,
            registry=outcome.registry,
            summary=summary,
            histories=dict(self.histories),
            budget=prepared.budget,
            report=page,
        )

    def _decide(self, trials: TrialsResult) -> SearchOutcome:
        if early := outcome_of_unfinished(trials, planned=self.planned, resume=self.resume_command):
            return early
        histories = {history.trial_id: history for history in self._with_complete_checkpoints()}
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
                " When it is back",
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

    def _with_complete_checkpoints(self) -> Iterator[TrialHistory]:
        """A kill may have come before a trial's last checkpoint had reached a remote storage: its report then has none."""
        for history in self.histories.values():
            while history.best is not None and not folder_at(str(history.best.checkpoint)).is_complete():
                self.on_message(
                    f"trial {history.started.number}: {history.best.checkpoint} is not there; its next best one counts"
                )
                reports = (
                    report.model_copy(update={"checkpoint": None}) if report is history.best else report
                    for report in history.reports
                )
                history = history.model_copy(update={"reports": tuple(reports)})
            yield history

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
        """A driver may run on a small machine without a GPU: what was trained on a GPU is verified on one."""
        workers = self.prepared.experiment.resources.of(best.started.spec.method)
        executor = partial(run_on_worker, workers) if workers.gpus_per_worker else run_locally
        return partial(self._clocked, executor)

    def _clocked(self, executor: Executor, work: Callable[[], VerificationReport]) -> VerificationReport:
        """Counts what the proof takes, for the search's cost: also one that fails."""
        began = time.monotonic()
        try:
            return executor(work)
        finally:
            self.inbox.proof_seconds += time.monotonic() - began

    def _connect_tracking(self) -> SearchRuns:
        prepared = self.prepared
        tags = {f"{TRAINED_TAG}.{branch}": text[:MAX_CHARACTERS] for branch, text in prepared.opened.trained.items()}
        tags[SETTINGS_TAG] = prepared.opened.settings[:MAX_CHARACTERS]
        facts = {**self._facts, **tags, **prepared.format_facts}
        client, uri = open_store(prepared.uri), prepared.uri
        return SearchRuns(client, uri, prepared.experiment, prepared.search_id, facts, metric=prepared.metric)

    def _show_links(self, links: Mapping[str, str]) -> None:
        self.inbox.show(dict(links))
        self.on_message(
            ", ".join([f"search {self.prepared.search_id}", *(f"{name} {at}" for name, at in links.items())])
        )
