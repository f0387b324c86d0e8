"""Each private part of Ray that needs no cluster: a Ray that has moved one fails here, by its name."""

import dataclasses
import importlib
import inspect
import json
from types import SimpleNamespace

import pytest
from ray.autoscaler._private.kuberay.node_provider import KubernetesHttpApiClient
from ray.train.backend import Backend, BackendConfig
from ray.train.torch import config
from ray.train.v2._internal.execution.context import TrainContext, get_train_context
from ray.train.v2._internal.execution.controller.controller import TrainController
from ray.train.v2._internal.execution.preemption import PreemptionContext
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
from ray.train.v2._internal.execution.worker_group import WorkerGroup
from ray.train.v2._internal.execution.worker_group.placement_group_handle import DefaultPlacementGroupHandle
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.tune import PlacementGroupFactory
from ray.tune.execution.class_cache import _ActorClassCache
from ray.tune.experiment import Experiment, Trial
from ray.tune.search import Searcher
from ray.tune.search.search_generator import SearchGenerator

from components.cluster.ray_internals import TESTED, version_warning
from components.cluster.ray_internals.core import autoscaler_options, submission_id
from components.cluster.ray_internals.late_torch import GROUP_SECONDS, LateTorch
from components.cluster.ray_internals.train import preemption_notice
from components.cluster.ray_internals.tune import KEYS, create_trial, is_new, is_queued, keep_keys_here, requeue
from tests.support.tune_controller import Untrained, make_controller, make_trial

NARROW, WIDE = PlacementGroupFactory([{"CPU": 1}]), PlacementGroupFactory([{"CPU": 2}])


def test_the_ray_that_is_installed_is_the_one_that_was_tested():
    assert version_warning() is None
    assert version_warning(f"{TESTED}.7") is None


def test_another_ray_is_warned_of_with_what_to_do():
    assert "Ray 3.1.0 is installed" in version_warning("3.1.0")
    assert f"install ray=={TESTED}.*" in version_warning("3.1.0")


@pytest.fixture
def controller(tmp_path):
    return make_controller(tmp_path)


@pytest.fixture
def trial(controller):
    trial = make_trial(controller, {}, NARROW)
    controller.add_trial(trial)
    return trial


def test_a_trial_is_queued_until_its_slot_has_a_place(controller, trial):
    assert is_queued(controller, trial)
    controller._maybe_add_actors()
    assert controller._trial_to_actor[trial] in controller._actor_manager.pending_actors
    assert is_queued(controller._wrapped(), trial)
    controller._actor_manager._resource_manager.ready.append(NARROW)
    assert not is_queued(controller, trial)


def test_a_trial_to_which_a_slot_is_handed_over_is_not_queued(controller, trial):
    controller._resetting_trials.add(trial)
    assert not is_queued(controller, trial)


def test_a_requeued_trial_waits_for_its_new_placement_and_its_slot_ends(controller, trial):
    controller._maybe_add_actors()
    slot = controller._trial_to_actor[trial]
    assert trial in controller._staged_trials
    requeue(controller._wrapped(), trial, WIDE)
    assert slot not in controller._actor_manager.pending_actors
    assert (controller._trial_to_actor, controller._actor_to_trial, controller._staged_trials) == ({}, {}, set())
    assert trial.status == Trial.PENDING
    assert trial.placement_group_factory == WIDE
    waiting = {placement: trials for placement, trials in controller._resources_to_pending_trials.items() if trials}
    assert waiting == {WIDE: {trial}}
    controller._maybe_add_actors()
    assert controller._actor_manager._resource_manager.requested == [WIDE]


def test_a_requeued_trial_that_runs_is_taken_from_its_slot(controller, trial):
    controller._maybe_add_actors()
    controller._unstage_trial_with_resources(trial)
    controller._set_trial_status(trial, Trial.RUNNING)
    requeue(controller, trial, NARROW)
    assert (controller._running_trials, controller._pending_trials) == (set(), {trial})
    assert is_queued(controller, trial)


def test_a_trial_that_comes_back_after_a_failure_is_not_new(controller, monkeypatch):
    seen = []
    monkeypatch.setattr(
        controller.scheduler_alg, "on_trial_add", lambda wrapped, trial: seen.append(is_new(wrapped, trial))
    )
    trial = make_trial(controller, {}, NARROW)
    controller.add_trial(trial)
    controller._set_trial_status(trial, Trial.RUNNING)
    controller._requeue_trial(trial)
    assert seen == [True, False]


def test_a_trial_that_is_made_by_hand_is_like_those_of_the_search(tmp_path):
    class Three(Searcher):
        def suggest(self, trial_id):
            return {"x": 3}

    search = SearchGenerator(Three())
    tune_experiment = Experiment("tune", run=Untrained, num_samples=1, storage_path=str(tmp_path), config={"x": 1})
    search.add_configurations([tune_experiment])
    made = create_trial(tune_experiment, {"x": 2}, trial_id="clone", tag="7")
    drawn = search.next_trial()
    assert (made.trial_id, made.config, made.experiment_tag) == ("clone", {"x": 2}, "7")
    assert made.trainable_name == drawn.trainable_name
    assert made.storage.experiment_fs_path == drawn.storage.experiment_fs_path


def test_the_drivers_aws_keys_are_in_no_runtime_environment(monkeypatch):
    for name in KEYS:
        monkeypatch.setenv(name, "planted")
    keep_keys_here()
    given = _ActorClassCache().get(Untrained)._default_options["runtime_env"]["env_vars"]
    assert given.keys() & {"PL_DISABLE_FORK"}  # what Tune does hand on is looked for in the right place
    assert "planted" not in given.values()


def test_a_submitted_job_knows_its_submission(monkeypatch):
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    assert submission_id() is None
    # The name is Ray's: `ray job submit` sets it for the driver that it starts.
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"metadata": {"job_submission_id": "raysubmit_1"}}))
    assert submission_id() == "raysubmit_1"


def test_an_autoscaler_is_known_by_its_command_line():
    words = ["python", "-u", "/ray/autoscaler/v2/monitor.py", "--gcs-address=1.2.3.4:6379", "--autoscaling-config=a=b"]
    assert autoscaler_options(words) == {"gcs-address": "1.2.3.4:6379", "autoscaling-config": "a=b"}
    assert autoscaler_options(["python", "train.py", "--gcs-address=1.2.3.4:6379"]) is None


def test_the_client_of_kubernetes_is_where_it_was():
    assert list(inspect.signature(KubernetesHttpApiClient.__init__).parameters)[:2] == ["self", "namespace"]
    assert list(inspect.signature(KubernetesHttpApiClient.get).parameters) == ["self", "path"]


def test_the_notice_of_a_preemption_is_in_the_context_of_train(monkeypatch):
    assert "preemption_context" in {field.name for field in dataclasses.fields(TrainContext)}
    assert "preemption_info" in {field.name for field in dataclasses.fields(PreemptionContext)}
    context = SimpleNamespace(preemption_context=PreemptionContext())
    monkeypatch.setattr(get_train_context.__module__ + "._train_context", context)
    assert not preemption_notice()
    context.preemption_context.preemption_info = "soon"
    assert preemption_notice()


def test_the_parts_of_train_that_are_replaced_are_where_they_were():
    assert TrainController.worker_group_cls is WorkerGroup
    assert list(inspect.signature(WorkerGroup._create_placement_group).parameters) == [
        "self",
        "scaling_config",
        "worker_group_context",
    ]
    assert {"_create_default_callbacks", "_initialize_and_run_controller"} <= set(vars(DataParallelTrainer))
    assert hasattr(FixedScalingPolicy, "_maybe_send_resource_request")
    assert hasattr(FixedScalingPolicy, "after_controller_start")
    assert hasattr(DefaultPlacementGroupHandle, "shutdown")
    assert "scaling_policy=" in inspect.getsource(DataParallelTrainer.fit)


def test_what_workers_do_to_form_a_group_is_where_it_was():
    assert list(inspect.signature(config._setup_torch_process_group).parameters) == [
        "backend",
        "world_rank",
        "world_size",
        "init_method",
        "timeout_s",
    ]
    assert not inspect.signature(config._set_torch_distributed_env_vars).parameters
    assert "destroy_process_group" in inspect.signature(config._shutdown_torch).parameters
    assert {"backend_cls", "train_func_context", "framework"} <= set(vars(BackendConfig)) & set(
        vars(config.TorchConfig)
    )
    hooks = {"on_start", "on_shutdown", "on_training_start"}
    assert hooks <= set(vars(Backend))
    assert hooks == {name for name in vars(config._TorchBackend) if name.startswith("on_")}
    assert config.TorchConfig().timeout_s == GROUP_SECONDS
    assert config._TorchBackend.share_cuda_visible_devices is LateTorch().backend_cls.share_cuda_visible_devices is True


@pytest.mark.parametrize(
    "module",
    [
        "capacity.placement",
        "driver.callback",
        "scheduling.trial_generator",
        "scheduling.slot_scheduler",
        "scheduling.manual_stopper",
        "scheduling.journal_scheduler",
        "slots.trainable",
    ],
)
def test_no_class_outside_overrides_a_private_method_of_ray(module):
    classes = vars(importlib.import_module(f"components.cluster.{module}")).values()
    own = [each for each in classes if isinstance(each, type) and each.__module__ == f"components.cluster.{module}"]
    of_ray = [(each, base) for each in own for base in each.__mro__ if base.__module__.startswith("ray.")]
    assert of_ray
    for each, base in of_ray:
        methods = {name for name, value in vars(base).items() if callable(value) and not name.endswith("__")}
        private = {name for name in methods & vars(each).keys() if name.startswith("_")}
        assert not private, f"{each.__name__} overrides {private} of {base.__name__}"
