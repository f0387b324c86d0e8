"""The one door to Ray's private parts: no other file of components/ or workflows/ uses a private name of Ray.

`core` reads what the cluster knows, `tune` moves trials in Tune's loop, `tune_loop` ends it, `train` puts Train workers
into Tune's placement group, `late_torch` joins these to a process group. Each entry names the public way and why it is
not enough, Ray's issue if there is one, and the test that fails when a new Ray moves what the entry uses.
tests/unit/test_house.py holds this rule.
"""

from __future__ import annotations

import ray

TESTED = "2.60"  # the minor version that every entry was read and tested against


def version_warning(version: str = ray.__version__) -> str | None:
    """Returns a sentence for users if this Ray is of another minor version than the tested one."""
    major, minor, *_ = version.split(".")
    if f"{major}.{minor}" == TESTED:
        return None
    return (
        f"Ray {version} is installed, and Turnwise is tested with Ray {TESTED}: it relies on private parts of Ray, which may"
        f" have moved (components/cluster/ray_internals); install ray=={TESTED}.*, or run"
        " tests/unit/test_ray_internals.py and tests/ray first"
    )
