"""A search and its faults: it runs once without them and once with them, and is accounted for."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from unittest import mock

import yaml

from experiments.benchmarks.chaos_kit.account import Account, account_of
from experiments.benchmarks.chaos_kit.disturbed_search import Disturbed, DisturbedSearch
from experiments.benchmarks.chaos_kit.faults import Fault, Faults
from tests.support.servers import MlflowServer, S3Server, Server
from tests.support.toy_search import toy_search_folder

AnyServer = TypeVar("AnyServer", bound=Server)

SEARCH = """
name: {name}
tracking: {{uri: "{uri}"}}
trial: {{budget: {{epochs: {epochs}, evaluations: {evaluations}}}}}
search: {{trials: {trials}, sampler: {sampler}}}
registry: {{name: {name}}}
"""


@dataclass(frozen=True, kw_only=True)
class Plan:
    faults: Sequence[Fault]
    seed: int  # of moments, outages and victims
    trials: int
    epochs: float
    evaluations: int
    seconds: float  # each of the two searches may take
    settles: float = 10.0  # seconds: what a fault ends may go on as long: a node's workers, when its raylet has gone
    sampler: str = "random"
    small_disk: Path | None = None  # a file system of its own for the disturbed search, which may be filled
    object_store: bool = False  # the storage of both searches lies on a real S3 server

    def search_folder(self, place: Path, name: str, uri: str, storage: str | None) -> Path:
        """Makes the folder of a search; its experiment file is toy.yaml. `storage`: by default in this folder."""
        place.mkdir(parents=True)
        text = SEARCH.format(
            name=name,
            uri=uri,
            epochs=self.epochs,
            evaluations=self.evaluations,
            trials=self.trials,
            sampler=self.sampler,
        )
        folder = toy_search_folder(place, text, absolute=True)
        if storage is not None:
            experiment = yaml.safe_load((folder / "toy.yaml").read_text(encoding="utf-8"))
            experiment["storage"] = {"path": f"{storage}/{name}"}
            (folder / "toy.yaml").write_text(yaml.safe_dump(experiment, sort_keys=False), encoding="utf-8")
        return folder


def drawn(seed: int, count: int, kinds: Sequence[Fault]) -> list[Fault]:
    """Returns so many faults of these kinds, as evenly as can be, in random order; the last ones are those of the end."""
    during = [kind for kind in kinds if kind is not Fault.DRIVER_AT_END]
    at_end = 0 if len(during) == len(kinds) else max(1, count // 15) if during else count
    faults = [during[number % len(during)] for number in range(count - at_end)]
    random.Random(seed).shuffle(faults)
    return faults + [Fault.DRIVER_AT_END] * at_end


def account_for(plan: Plan, place: Path) -> tuple[Disturbed, Account]:
    """Runs the search without faults, then with them, against one real MLflow server in `place`."""
    with contextlib.ExitStack() as servers:
        tracking = servers.enter_context(_running(MlflowServer(_new(place / "mlflow"))))
        store = servers.enter_context(_running(S3Server(_new(place / "s3")))) if plan.object_store else None
        if store is not None:
            servers.enter_context(mock.patch.dict(os.environ, store.client_environment()))

        def run(name: str, where: Path, faults: Sequence[Fault]) -> Disturbed:
            storage = None if store is None else f"s3://{store.bucket}"
            folder = plan.search_folder(where / name, name, tracking.uri, storage)
            means = Faults(plan.seed, tracking, plan.small_disk, store)
            search = DisturbedSearch(folder, "toy", means, seed=plan.seed, seconds=plan.seconds, settles=plan.settles)
            return search.run(faults)

        undisturbed = run("undisturbed", place, ())
        disturbed = run("disturbed", plan.small_disk or place, plan.faults)
        return disturbed, account_of(disturbed, undisturbed, tracking.uri)


def _new(folder: Path) -> Path:
    folder.mkdir()
    return folder


@contextlib.contextmanager
def _running(server: AnyServer) -> Iterator[AnyServer]:
    server.start()
    try:
        yield server
    finally:
        server.kill()
