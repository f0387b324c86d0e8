"""The versions of the libraries of this Python, of which some are optional."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

LIBRARIES = ("torch", "transformers", "peft", "ray", "mlflow", "bitsandbytes", "optuna")


def installed_version(name: str) -> str | None:
    """Returns the version of a distribution, None if there is none, or none that says so."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def library_versions() -> dict[str, str]:
    """Returns the version of Python and of each of LIBRARIES that is installed."""
    found = {name: installed_version(name) for name in LIBRARIES} | {"python": platform.python_version()}
    return {name: version for name, version in found.items() if version is not None}
