"""Turnwise for Python, e.g. in a notebook: `import components as turnwise`. README's section about Python has an example.

Importing this costs nothing: a name is loaded from its module on its first use, and torch, Ray, transformers and MLflow
only by the functions that need them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from components.api import compare as compare
    from components.api import export as export
    from components.api import load_experiment as load_experiment
    from components.api import load_model as load_model
    from components.api import open_search as open_search
    from components.api import plan as plan
    from components.api import preview as preview
    from components.api import results as results
    from components.api import run as run
    from components.api import score as score
    from components.api import start as start
    from components.cluster.capacity.cluster_capacity import InsufficientCapacityError as InsufficientCapacityError
    from components.errors import InputError as InputError
    from components.errors import TrackingError as TrackingError
    from components.errors import TurnwiseError as TurnwiseError
    from components.errors import VerificationError as VerificationError
    from components.experiment.experiment_errors import ExperimentError as ExperimentError
    from components.records.stop_flag import StopRequest as StopRequest
    from components.search.find import NEWEST as NEWEST
    from components.search.send_command import NoReplyError as NoReplyError
    from components.storage.retry import StorageError as StorageError

FUNCTIONS = (
    "compare", "export", "load_experiment", "load_model", "open_search", "plan", "preview", "results", "run", "score",
    "start",
)  # fmt: skip
# Within this package, whatever its name is: a registered version has a copy of it under another name.
MODULE_OF = {
    **dict.fromkeys(FUNCTIONS, "api"),
    "ExperimentError": "experiment.experiment_errors",
    "InputError": "errors",
    "InsufficientCapacityError": "cluster.capacity.cluster_capacity",
    "NEWEST": "search.find",
    "NoReplyError": "search.send_command",
    "StopRequest": "records.stop_flag",
    "StorageError": "storage.retry",
    "TrackingError": "errors",
    "TurnwiseError": "errors",
    "VerificationError": "errors",
}
__all__ = sorted(MODULE_OF)


def __getattr__(name: str) -> object:
    if name not in MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return list(__all__)
