"""Work on a node with the resources of a worker: the driver's own machine may be small and without a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import ray
from ray.exceptions import OutOfMemoryError, RayTaskError, WorkerCrashedError

from components.experiment.spec import WorkersSpec

T = TypeVar("T")
MAX_RETRIES = 3  # a spot machine may be taken at any time; the work then begins again on another one


def run_on_worker(workers: WorkersSpec, work: Callable[[], T]) -> T:
    """Runs `work` in a process on a node with the resources of one worker, and returns its result. Ray must be connected.

    Waits until the cluster has such a node, and starts one if it can. Raises what `work` raises, and RuntimeError if its
    process was killed MAX_RETRIES + 1 times.
    """
    task = ray.remote(_call).options(
        num_cpus=workers.cpus_per_worker,
        num_gpus=workers.gpus_per_worker,
        label_selector=workers.node_labels,
        max_retries=MAX_RETRIES,
    )
    try:
        result: T = ray.get(task.remote(work))
    except RayTaskError as error:
        raise error.cause from None  # Ray's own is a page of traceback
    except OutOfMemoryError:
        raise RuntimeError(
            "Ray ended the work because the machine's memory was nearly full; let it run on a larger one"
        ) from None
    except WorkerCrashedError:
        raise RuntimeError(
            f"its process was killed {MAX_RETRIES + 1} times, as the kernel does when memory runs out"
        ) from None
    return result


def _call(work: Callable[[], T]) -> T:
    return work()
