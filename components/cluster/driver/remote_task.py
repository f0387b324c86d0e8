"""Work on a machine of the cluster that has what a worker has: the driver's own may be a small one without a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import ray
from ray.exceptions import OutOfMemoryError, RayTaskError, WorkerCrashedError

from components.experiment.spec import WorkersSpec

Answer = TypeVar("Answer")
TIMES_LOST = 3  # spot machines go when they like, and the work begins anew on another


def run_on_worker(workers: WorkersSpec, work: Callable[[], Answer]) -> Answer:
    """What `work` answers, from a process on a machine with the resources of one worker. Ray must be up.

    Waits until the cluster has such a machine, and starts one if it can. Raises what `work` raises, and RuntimeError where
    its process was killed again and again.
    """
    task = ray.remote(_done).options(
        num_cpus=workers.cpus_per_worker,
        num_gpus=workers.gpus_per_worker,
        label_selector=workers.node_labels,
        max_retries=TIMES_LOST,
    )
    try:
        answer: Answer = ray.get(task.remote(work))
    except RayTaskError as error:
        raise error.cause from None  # Ray's own is a page of traceback
    except OutOfMemoryError:
        raise RuntimeError(
            "Ray ended the work because the machine's memory was nearly full; let it run on a larger one"
        ) from None
    except WorkerCrashedError:
        raise RuntimeError(
            f"its process was killed {TIMES_LOST + 1} times, as the kernel does when memory runs out"
        ) from None
    return answer


def _done(work: Callable[[], Answer]) -> Answer:
    return work()
