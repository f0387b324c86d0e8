"""Running trials as Ray metrics, so that its dashboard and Prometheus show them beside processors and memory."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

from ray.util.metrics import Gauge

from components.records.events import TrialEnded, TrialEvent, TrialHistory, TrialProgressed

# Ray drops a gauge that was not set for two of its report intervals (10 seconds each), and reports of a trial are rarer.
REFRESH_SECONDS = 5.0


class TrialGauges:
    """Set in the driver, and exported by its node like all of Ray's metrics. Ray puts `ray_` before their names."""

    def __init__(self, search_id: str, histories: Mapping[str, TrialHistory]) -> None:
        self.search_id, self._histories = search_id, histories
        self._gauges = {
            name: Gauge(f"turnwise_trial_{name}", description=description, tag_keys=("search", "trial", "branch"))
            for name, description in (
                ("eval_loss", "Nats per target token over the whole eval split."),
                ("rung_loss", "Nats per target token over the sample by which the last rung was decided."),
                ("train_loss", "Nats per target token since the report before."),
                ("tokens_per_second", "Padding excluded, over all workers."),
                ("target_tokens", "Target tokens trained on so far."),
            )
        }
        self._scores = Gauge(
            "turnwise_trial_score",
            description="A score of what the model says, by its name.",
            tag_keys=("search", "trial", "branch", "score"),
        )
        # Tags, values and scores, by trial id.
        self._values: dict[str, tuple[dict[str, str], dict[str, float], dict[str, float]]] = {}
        self._next_refresh = 0.0

    def update(self, event: TrialEvent) -> None:
        """Takes a report's numbers; what it does not say stays. A trial that has ended leaves the metrics."""
        if isinstance(event, TrialEnded):
            self._values.pop(event.trial_id, None)
        if not isinstance(event, TrialProgressed):
            return
        progress, trial = event.progress, self._histories[event.trial_id].started
        values = {
            "eval_loss": progress.eval_loss,
            "train_loss": progress.train_loss,
            "tokens_per_second": progress.tokens_per_second,
            "target_tokens": progress.target_tokens,
        }
        tags = {"search": self.search_id, "trial": str(trial.number), "branch": trial.branch}
        if progress.rung is not None:
            values["rung_loss"] = progress.rung.eval_loss
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        _, known, scores = self._values.get(trial.trial_id, (tags, {}, {}))
        self._values[trial.trial_id] = tags, known | finite, scores | progress.scores
        self._next_refresh = 0.0

    def refresh(self) -> None:
        """Sets the gauges again if it is time. Called often; most calls do nothing."""
        if time.monotonic() < self._next_refresh:
            return
        self._next_refresh = time.monotonic() + REFRESH_SECONDS
        for tags, values, scores in self._values.values():
            for name, value in values.items():
                self._gauges[name].set(value, tags)
            for name, value in scores.items():
                self._scores.set(value, {**tags, "score": name})
