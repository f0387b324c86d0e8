"""The search's command board as an actor that Ray starts again when it has died: slots and workers notice a short wait."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from components.cluster.slots.command_board import CommandBoard
from components.cluster.slots.hang_watch import HangRule
from components.cluster.slots.known_trials import KnownTrials
from components.records.events import replay
from components.records.journal import Journal
from components.storage.folder import Folder

MAX_CALLS = 10_000  # that wait at once: a few of every slot and every worker


class RestartableBoard(CommandBoard):
    """Started again, it takes from the journal what people have asked for since; what was under way is asked for again."""

    def __init__(self, known: KnownTrials, search: Folder, hangs: HangRule) -> None:
        replaces = ray.get_runtime_context().was_current_actor_reconstructed
        if replaces:
            known = known.updated(KnownTrials.of(replay(Journal(search).read())))
        super().__init__(known, replaces=replaces, hangs=hangs)


@contextlib.contextmanager
def running_board(known: KnownTrials, search: Folder, hangs: HangRule) -> Iterator[Any]:
    """Inside, the actor runs. It is on the driver's own node, so that it lives as long: others may be spot instances.

    Ray keeps an actor that may restart, also when nobody refers to it any more.
    """
    driver_node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    board = ray.remote(RestartableBoard).options(
        num_cpus=0, max_concurrency=MAX_CALLS, scheduling_strategy=driver_node, max_restarts=-1, max_task_retries=-1
    )
    actor = board.remote(known, search, hangs)
    try:
        yield actor
    finally:
        ray.kill(actor)
