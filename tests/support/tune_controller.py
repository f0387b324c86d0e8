"""Tune's controller without a cluster: it queues trials and starts none."""

import copy
import os
from types import SimpleNamespace
from unittest.mock import patch

from ray import tune
from ray.train._internal.storage import StorageContext
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial
from ray.tune.registry import register_trainable


class Untrained(tune.Trainable):  # type: ignore[misc]
    """Never started: Tune wants to know what it would run."""


class Resources(SimpleNamespace):
    """`ready`: the placements that have been made."""

    def __init__(self):
        super().__init__(ready=[], requested=[])

    def request_resources(self, resource_request):
        self.requested.append(resource_request)

    def cancel_resource_request(self, resource_request):
        self.requested.remove(resource_request)

    def has_resources_ready(self, resource_request):
        return resource_request in self.ready


def make_controller(folder, scheduler=None):
    folder.mkdir(exist_ok=True)
    storage = StorageContext(storage_path=str(folder), experiment_dir_name="tune")
    with patch.dict(os.environ, {"TUNE_MAX_PENDING_TRIALS_PG": "8"}):  # else Tune asks the cluster
        return TuneController(
            storage=storage, scheduler=scheduler, reuse_actors=True, resource_manager_factory=Resources
        )


def make_trial(controller, config, placement):
    register_trainable("untrained", Untrained)
    storage = copy.copy(controller._storage)
    trial = Trial("untrained", config=config, placement_group_factory=placement, storage=storage)
    trial.storage.trial_dir_name = trial.trial_id
    trial.init_local_path = lambda: None  # it would ask for the session folder of a cluster
    return trial
