"""The Ray cluster a search runs on: the one it is submitted to, else one of its own on this machine."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Iterator

import ray

from components.cluster.private_session import private_session
from components.cluster.ray_internals import version_warning
from components.cluster.ray_internals.core import ended_processes, sigterm_left_alone, submission_id
from components.errors import InputError

LOCAL = "local"
MAX_PENDING_TRIALS, CLEANUP_SECONDS = "TUNE_MAX_PENDING_TRIALS_PG", "TUNE_FORCE_TRIAL_CLEANUP_S"
A_MONTH = 30 * 24 * 3600
NONE = "none"  # a cluster may run without a dashboard
WITHOUT_THESE_NO_CLUSTER = ("raylet", "gcs_server")
LOOK_SECONDS = 1.0

logger = logging.getLogger(__name__)


def check_not_connected() -> None:
    """Raises InputError if this process is connected to Ray: a search connects itself, and a process runs one at a time."""
    if ray.is_initialized():
        raise InputError(
            "this process is connected to Ray already: wait for its search to end, or call ray.shutdown() before a search"
            " (RAY_ADDRESS says which cluster it takes)"
        )


@contextlib.contextmanager
def connected(address: str | None = None, num_cpus: int | None = None) -> Iterator[str]:
    """Connects to the cluster of the address, else of RAY_ADDRESS (which jobs have); else starts one and ends it after.

    num_cpus is how much of this machine a cluster of its own takes; by default all. Yields the dashboard's address. Logs a
    warning where Ray is not the version whose private parts are known.
    """
    check_not_connected()
    if warning := version_warning():
        logger.warning(warning)
    # Set before any worker imports Ray; components/cluster/README.md explains each.
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # the journal is the record, not result.json
    os.environ.setdefault(
        "TUNE_GLOBAL_CHECKPOINT_S", "1e9"
    )  # nobody reads Tune's state: a search goes on from its journal
    os.environ.setdefault("TUNE_PRINT_ALL_TRIAL_ERRORS", "0")  # the driver says in a sentence what became of the trial
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # only the old output can be silenced
    os.environ.setdefault("RAY_worker_maximum_startup_concurrency", "16")  # slots and boards need no core; no warning
    address = address or os.environ.get("RAY_ADDRESS") or LOCAL
    if address == LOCAL:  # its control store never comes back; by default Ray waits a minute for it
        os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", "10")
    private = private_session() if address == LOCAL else contextlib.nullcontext()
    watched = _naming_what_has_ended() if address == LOCAL else contextlib.nullcontext()
    with private as folder, sigterm_left_alone():
        cluster = ray.init(
            address=address,
            num_cpus=num_cpus if address == LOCAL else None,
            log_to_driver=False,
            logging_level=logging.ERROR,
            configure_logging=True,
            _temp_dir=folder,
        )
    try:
        with watched:
            yield f"http://{cluster.dashboard_url}" if cluster.dashboard_url else NONE
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _naming_what_has_ended() -> Iterator[None]:
    """Ray ends this process when the cluster that it has started is gone, a minute later and without a word."""
    over = threading.Event()

    def look() -> None:
        while not over.wait(LOOK_SECONDS):
            if ended := [name for name in ended_processes() if name in WITHOUT_THESE_NO_CLUSTER]:
                logger.error(
                    "Ray's %s on this machine has ended: killed, or out of memory. This search ends within two minutes; the"
                    " same command goes on where the journal ends",
                    " and ".join(ended),
                )
                return

    thread = threading.Thread(target=look, name="cluster-watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextlib.contextmanager
def tune_limits(*, pending: int, slots_wait: bool) -> Iterator[None]:
    """Sets Tune's limits inside the block, unless the user's environment says others.

    Tune reads them from the environment only, when its loop begins.

    Args:
        pending: how many trials wait for a slot.
        slots_wait: a slot that has no trial any more may wait for others before it ends: Tune is not to kill it meanwhile.
    """
    limits = {MAX_PENDING_TRIALS: str(pending)} | ({CLEANUP_SECONDS: str(A_MONTH)} if slots_wait else {})
    added = {name: value for name, value in limits.items() if not os.environ.get(name)}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name)


def workers_are_here() -> bool:
    """Whether a search that began now would run only on this machine, and in this Python."""
    return (os.environ.get("RAY_ADDRESS") or LOCAL) == LOCAL


def this_job(dashboard: str) -> dict[str, str]:
    """Returns where Ray shows this driver: job, page, and the submission if `ray job submit` started it."""
    job, submission = ray.get_runtime_context().get_job_id(), submission_id()
    facts = {"ray.job_id": job, "ray.submission_id": submission} if submission else {"ray.job_id": job}
    return facts if dashboard == NONE else {**facts, "ray.dashboard": f"{dashboard}/#/jobs/{submission or job}"}


def this_node() -> str:
    """Returns IP address and id of the node this process runs on, as Ray's dashboard lists it."""
    return f"{ray.util.get_node_ip_address()} {ray.get_runtime_context().get_node_id()}"
