"""Real processes of one torch process group, each of them bounded in time."""

import os
import pickle
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing


def run_together(
    work: Callable[..., Any],
    *arguments: Any,
    folder: Path,
    count: int = 2,
    group_timeout: float = 60.0,
    seconds: float = 120.0,
) -> list[Any]:
    """work(rank, *arguments) in `count` gloo processes. What each returned; None for one that was killed.

    Args:
        group_timeout: of the default process group, in seconds.
        seconds: after so many, those that still run are killed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=_run, args=(rank, count, work, arguments, folder, group_timeout))
        for rank in range(count)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(seconds)
    for process in processes:
        if process.is_alive():
            process.kill()
            process.join()
    results = [folder / f"result_{rank}" for rank in range(count)]
    return [pickle.loads(result.read_bytes()) if result.exists() else None for result in results]


def _run(rank, count, work, arguments, folder, group_timeout):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=count,
        timeout=timedelta(seconds=group_timeout),
    )
    result = work(rank, *arguments)
    (folder / f"result_{rank}").write_bytes(pickle.dumps(result))
    # A peer may be gone, so the group is not taken down; and what torch does at an exit is not waited for.
    os._exit(0)
