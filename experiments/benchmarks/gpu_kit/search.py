"""A whole search on one card: experiments/gpu_smoke.yaml by tune.py, with a worker killed on the way, and what it leaves.

Two LoRA trials share the card, a full one has it alone; without a GPU the cores are what they share. Everything that is
checked is seen from outside: in the journal, in MLflow, in the list of processes and in the card's memory.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path

import torch

from components.experiment.load_experiment import load_experiment
from components.models.chatglm.tiny_model import make_tiny
from experiments.benchmarks.gpu_kit import search_checks
from experiments.benchmarks.gpu_kit.cases import Case, run_cases
from experiments.benchmarks.gpu_kit.checks import Check, failed, skipped
from experiments.benchmarks.gpu_kit.meters import used_on_card
from experiments.benchmarks.gpu_kit.part_process import line_of
from experiments.benchmarks.gpu_kit.search_checks import Tracked
from experiments.benchmarks.gpu_kit.search_recording import GRACE_SECONDS, ROOT, Recording, record
from experiments.benchmarks.gpu_kit.settings import Settings

FILE = ROOT / "experiments" / "gpu_smoke.yaml"
# Three LoRA trials and two full ones, each of ten seconds: an H200 does a step of this model in 35 ms while two trials share
# it, and most of a trial is still to come when its worker is killed.
ON_GPU = ("search.trials=5", "trial.budget.epochs=10")
# With more than one thread, models as small as these are slow on a busy machine; one and a half cores are one thread. With
# the learning rates of the large model the small one would end by answering with nothing, and is no champion then.
ON_CPU = (
    "search.trials=4", "trial.budget.epochs=8", "trial.precision=fp32",
    "search.space.full.optimizer.learning_rate={log_uniform: [3.0e-3, 1.0e-2]}",
    "resources.lora.gpus_per_worker=0", "resources.full.gpus_per_worker=0", "resources.full.cpus_per_worker=1.5",
)  # fmt: skip
NEEDED_SECONDS = 45.0  # less is no use: processes, imports and models alone take so long
SYSTEM_METRICS_SECONDS = 1  # MLflow's own 10 are long beside this search


def run(settings: Settings) -> Iterator[Check]:
    asked = "tune.py experiments/gpu_smoke.yaml"
    if missing := [name for name in ("ray", "mlflow") if find_spec(name) is None]:
        yield skipped(asked, f"not installed: {', '.join(missing)}")
        return
    if settings.seconds_left() < NEEDED_SECONDS:
        yield skipped(asked, "no time left")
        return
    from experiments.benchmarks.gpu_kit import search_plans  # it imports the programs

    search = SmokeSearch(settings)
    search.make_model()
    with ThreadPoolExecutor(1) as beside:
        running = beside.submit(search.record)
        yield from run_cases(search_plans.every_file(settings), settings)
        try:
            recording = running.result()
        except Exception as error:  # noqa: BLE001 - the plans' checks stand all the same
            yield failed(asked, line_of(error))
            return
    yield from run_cases(cases_of(search, recording), settings)
    if settings.on_gpu:
        price = partial(search_plans.price_of_card, settings, FILE, search.model, torch.cuda.get_device_name())
        yield from run_cases([(search_plans.PRICE, price, search_plans.PLAN_SECONDS)], settings)


def cases_of(search: SmokeSearch, recording: Recording) -> Iterator[Case]:
    tracked, shares = cache(partial(search.tracked, recording)), search.shares()
    checks: dict[str, Callable[[], Check]] = {
        "the champion": lambda: search_checks.ended_with_a_champion(recording, tracked()),
        "shares": partial(search_checks.shares_honoured, recording, shares),
        "the device": partial(search_checks.ran_on, recording, search.device()),
        "warm slots": partial(search_checks.slots_stay_warm, recording),
        "a killed worker": partial(search_checks.killed_worker_is_replaced, recording),
        "the card's memory": partial(search_checks.memory_comes_back, recording),
        "worker-seconds": partial(search_checks.worker_seconds_are_paid_time, recording, shares),
        "the machine's metrics": lambda: search_checks.system_metrics_logged(tracked()),
        "the card's metrics": lambda: card_metrics(search.settings, tracked()),
    }
    for name, check in checks.items():
        yield name, partial(_alone, check), 0.0


def _alone(check: Callable[[], Check]) -> list[Check]:
    return [check()]


def card_metrics(settings: Settings, tracked: Tracked) -> Check:
    if not settings.on_gpu:
        return skipped("the card's metrics in MLflow", "no GPU")
    if find_spec("pynvml") is None:
        return skipped("the card's metrics in MLflow", "nvidia-ml-py is not installed, with which MLflow reads them")
    return search_checks.gpu_metrics_logged(tracked)


@dataclass(frozen=True, slots=True)
class SmokeSearch:
    """The smoke search as this machine can run it, with all its files in the part's own folder."""

    settings: Settings

    @property
    def model(self) -> Path:
        return self.settings.scratch / "model"

    @property
    def storage(self) -> Path:
        return self.settings.scratch / "runs"

    @property
    def tracking_uri(self) -> str:
        return f"sqlite:///{self.settings.scratch / 'mlflow.db'}"

    @property
    def changes(self) -> list[str]:
        files = [f"model.path={self.model}", f"storage.path={self.storage}", f"tracking.uri={self.tracking_uri}"]
        return [*files, *(ON_GPU if self.settings.on_gpu else ON_CPU)]

    def make_model(self) -> None:
        large = self.settings.on_gpu and not self.settings.tiny
        make_tiny(self.model, hidden_size=512 if large else 64, layers=8 if large else 2)

    def record(self) -> Recording:
        """Runs it; for a thread of its own."""
        changes = [word for change in self.changes for word in ("--set", change)]
        # Ray's sockets have paths of 107 characters at most, so its folder is not in the part's.
        with tempfile.TemporaryDirectory(prefix="tw-", dir="/tmp", ignore_cleanup_errors=True) as ray_folder:
            return record(
                [sys.executable, str(ROOT / "workflows" / "tune.py"), str(FILE), "--json", *changes],
                storage=self.storage,
                environment=self._environment(ray_folder),
                logs=self.settings.scratch,
                seconds=self.settings.seconds_left() - 3 * GRACE_SECONDS,
                used_bytes=used_on_card if self.settings.on_gpu else None,
            )

    def _environment(self, ray_folder: str) -> dict[str, str]:
        return {
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
            "RAY_ADDRESS": "",  # a cluster of its own, whichever this machine has
            "RAY_TMPDIR": ray_folder,
            "TURNWISE_CACHE": str(self.settings.scratch / "cache"),
            "MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL": str(SYSTEM_METRICS_SECONDS),
            "CUDA_VISIBLE_DEVICES": self._card(),
        }

    def _card(self) -> str:
        """The one that the search sees, by number or name."""
        return os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0] if self.settings.on_gpu else ""

    def device(self) -> str:
        """As a trial's worker must say it."""
        if not self.settings.on_gpu:
            return "cpu"
        return f"{torch.cuda.get_device_name()} (CUDA_VISIBLE_DEVICES={self._card()})"

    def shares(self) -> dict[str, float]:
        """By branch: what a worker reserves of the one GPU or, without one, of the cores."""
        resources, cores = load_experiment(FILE, self.changes).resources, os.cpu_count() or 1
        return {
            name: workers.gpus_per_worker if self.settings.on_gpu else workers.cpus_per_worker / cores
            for name, workers in (("lora", resources.lora), ("full", resources.full))
        }

    def tracked(self, recording: Recording) -> Tracked:
        from mlflow.exceptions import MlflowException

        from components.tracking.mlflow_access import open_store

        if recording.summary is None:
            return Tracked(champion=None, system_metrics={})
        experiment, client = load_experiment(FILE, self.changes), open_store(self.tracking_uri)
        try:
            champion = client.get_model_version_by_alias(experiment.registered_model, "champion").version
        except MlflowException:
            champion = None
        run_id = recording.summary["run_id"]
        metrics = {
            name: max(point.value for point in client.get_metric_history(run_id, name))
            for name in client.get_run(run_id).data.metrics
        }
        return Tracked(champion=None if champion is None else str(champion), system_metrics=metrics)
