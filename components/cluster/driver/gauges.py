"""Running trials among Ray's own metrics, so that its dashboard and Prometheus show them beside processors and memory."""

from __future__ import annotations

import math
import time

from ray.util.metrics import Gauge

from components.records.events import TrialEnded, TrialEvent, TrialProgressed, TrialStarted

# Ray drops a gauge that was not set for two of its report intervals (10 seconds each), and reports of a trial are rarer.
REFRESH_SECONDS = 5.0


class TrialGauges:
    """Set in the driver, and exported by its node like all of Ray's metrics. Ray puts `ray_` before their names."""

    def __init__(self, search_id: str) -> None:
        self.search_id = search_id
        self._gauges = {
            name: Gauge(f"turnwise_trial_{name}", description=description, tag_keys=("search", "trial", "branch"))
            for name, description in (
                ("eval_loss", "Nats per target token over the whole eval split."),
                ("train_loss", "Nats per target token since the report before."),
                ("tokens_per_second", "Padding excluded, over all workers."),
                ("target_tokens", "Target tokens trained on so far."),
            )
        }
        self._values: dict[str, tuple[dict[str, str], dict[str, float]]] = {}  # tags and values, by trial id
        self._next_refresh = 0.0

    def show(self, record: TrialEvent, trial: TrialStarted) -> None:
        """What happened to a trial. One that has ended leaves the metrics."""
        if isinstance(record, TrialEnded):
            self._values.pop(trial.trial_id, None)
        if not isinstance(record, TrialProgressed):
            return
        progress = record.progress
        values = {
            "eval_loss": progress.eval_loss,
            "train_loss": progress.train_loss,
            "tokens_per_second": progress.tokens_per_second,
            "target_tokens": progress.target_tokens,
        }
        tags = {"search": self.search_id, "trial": str(trial.number), "branch": trial.branch}
        self._values[trial.trial_id] = tags, {name: value for name, value in values.items() if math.isfinite(value)}
        self._next_refresh = 0.0

    def refresh(self) -> None:
        """Called again and again; most calls do nothing."""
        if time.monotonic() < self._next_refresh:
            return
        self._next_refresh = time.monotonic() + REFRESH_SECONDS
        for tags, values in self._values.values():
            for name, value in values.items():
                self._gauges[name].set(value, tags)
