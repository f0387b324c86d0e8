"""Which trial is registered: the best one, or by `search.confirm` and `registry.prefer` one that is as good and cheaper."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial

from components.conversations.target_bytes import BITS_PER_BYTE
from components.experiment.spec import EVAL_LOSS
from components.planning.meta_model import meta_attention, meta_model
from components.records.evaluation_record import ConversationScores, EvaluationRecord
from components.records.events import TrialHistory
from components.records.finalists import repeats_of
from components.records.on_message import OnMessage
from components.reports.finalists import FinalistsVerdict, compare_finalists
from components.search.prepare_search import PreparedSearch
from components.statistics.paired_bootstrap import BITS, NATS
from components.storage.open_folder import folder_at


def compare_branches(prepared: PreparedSearch, histories: Mapping[str, TrialHistory]) -> FinalistsVerdict | None:
    """Compares the best of each branch on the held-out conversations that trials are evaluated on."""
    experiment = prepared.experiment

    def read_scores(history: TrialHistory) -> ConversationScores | None:
        assert history.best is not None
        record = EvaluationRecord.read(prepared.folder, history.trial_id, history.best.step)
        return record.metrics.get(history.best.metric.name) if record is not None else None

    metric = next((history.best.metric.name for history in histories.values() if history.best is not None), EVAL_LOSS)
    return compare_finalists(
        histories,
        experiment.search.confirm,
        prefer=experiment.registry.prefer,
        confidence=experiment.registry.confidence,
        unit={EVAL_LOSS: NATS, BITS_PER_BYTE: BITS}.get(metric, f"of {metric}"),
        weights="weights to serve" if prepared.by_bytes else "trained weights",
        read_scores=read_scores,
        trained_weights=partial(_trained_weights, prepared),
    )


def choose(
    histories: Mapping[str, TrialHistory],
    leader: TrialHistory,
    finalists: FinalistsVerdict | None,
    prepared: PreparedSearch,
) -> TrialHistory:
    """Returns the trial to register. `leader` has the best checkpoint of all.

    Where finalists were repeated, or the cheapest is preferred, that is the best run of the configuration that was chosen.
    A leader that people gave other terms (a longer budget, another's weights) was not compared and stays the choice of
    `prefer: quality`.
    """
    search, registry = prepared.experiment.search, prepared.experiment.registry
    if finalists is None or (registry.prefer == "quality" and (search.confirm is None or not leader.on_equal_terms)):
        return leader
    drawn = histories[finalists.chosen]
    runs = [drawn, *repeats_of(histories, drawn)]
    return min(runs, key=lambda run: run.best.objective if run.best else float("inf"))


def _trained_weights(prepared: PreparedSearch, history: TrialHistory) -> int:
    """How many numbers the trial's method trains: what is stored and served beside a base that all share.

    In a search over several bases they share none: then the base's count, too.
    """
    base = prepared.opened.of_branch(history.started.branch)
    spec = history.started.spec
    model = meta_model(base.config, spec.method, dtype="fp32", attention=meta_attention("eager", base.config))
    return sum(weight.numel() for weight in model.parameters() if weight.requires_grad or prepared.by_bytes)


def with_complete_checkpoints(trials: Iterable[TrialHistory], on_message: OnMessage) -> Iterator[TrialHistory]:
    """A kill may have come before a trial's last checkpoint had reached a remote storage: its report then has none."""
    for history in trials:
        while history.best is not None and not folder_at(str(history.best.checkpoint)).is_complete():
            on_message(
                f"trial {history.started.number}: {history.best.checkpoint} is not there; its next best one counts"
            )
            reports = (
                report.model_copy(update={"checkpoint": None}) if report is history.best else report
                for report in history.reports
            )
            history = history.model_copy(update={"reports": tuple(reports)})
        yield history
