"""The Ray cluster a search runs on: the one it is submitted to, else one of its own on this machine."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
from collections.abc import Iterator

import ray
from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR

LOCAL = "local"
NONE = "none"  # a cluster may run without a dashboard
SUBMISSION = "job_submission_id"


@contextlib.contextmanager
def connected(address: str | None = None, num_cpus: int | None = None) -> Iterator[str]:
    """Inside, Ray is up: the cluster of the address, else of RAY_ADDRESS (which jobs have), else one of its own, ended after.

    num_cpus is how much of this machine a cluster of its own takes; by default all. Yields the dashboard's address.
    """
    # Set before Ray is imported by any worker; each one is explained in the README's chapter on Ray.
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # the journal is the record, not result.json
    os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")  # a trial that had ended reports nothing new
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # Ctrl-C is for components/cluster/driver/shutdown.py
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "1")  # what a killed driver may forget
    os.environ.setdefault("TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # only the old output can be told to be silent
    os.environ.setdefault("RAY_worker_maximum_startup_concurrency", "16")  # slots and boards need no core; no warning
    address = address or os.environ.get("RAY_ADDRESS") or LOCAL
    before = signal.getsignal(signal.SIGTERM)
    cluster = ray.init(
        address=address,
        num_cpus=num_cpus if address == LOCAL else None,
        log_to_driver=False,
        logging_level=logging.ERROR,
        configure_logging=True,
    )
    if callable(before):
        signal.signal(signal.SIGTERM, before)  # Ray has put an exit of its own there
    try:
        yield f"http://{cluster.dashboard_url}" if cluster.dashboard_url else NONE
    finally:
        ray.shutdown()


def workers_are_here() -> bool:
    """Whether a search that began now would run on this machine, and in this Python, alone."""
    return (os.environ.get("RAY_ADDRESS") or LOCAL) == LOCAL


def this_job(dashboard: str) -> dict[str, str]:
    """Where Ray shows this driver: job, page, and the submission if `ray job submit` started it."""
    job = ray.get_runtime_context().get_job_id()
    submission = json.loads(os.environ.get(RAY_JOB_CONFIG_JSON_ENV_VAR, "{}")).get("metadata", {}).get(SUBMISSION)
    facts = {"ray.job_id": job, "ray.submission_id": submission} if submission else {"ray.job_id": job}
    return facts if dashboard == NONE else {**facts, "ray.dashboard": f"{dashboard}/#/jobs/{submission or job}"}


def this_node() -> str:
    """IP address and id of the node this process runs on, as Ray's dashboard lists it."""
    return f"{ray.util.get_node_ip_address()} {ray.get_runtime_context().get_node_id()}"
