"""What a user writes in an experiment file, as frozen types: a file for each section, all of them imported from here.

Every field has its unit in its name or in its description.
"""

from components.experiment.spec.chat_format import ChatFormatSpec
from components.experiment.spec.data import DataSpec
from components.experiment.spec.evaluation import EvaluationSpec
from components.experiment.spec.experiment import ExperimentSpec
from components.experiment.spec.method import FullMethod, LoraMethod, Method
from components.experiment.spec.metric import MetricSpec
from components.experiment.spec.model import FLASH_ATTENTION, ModelSpec
from components.experiment.spec.registry import CHALLENGER, JudgeSpec, RegistrySpec, TrackingSpec
from components.experiment.spec.resources import ResourcesSpec, WorkersSpec
from components.experiment.spec.search import AshaSpec, NoSchedulerSpec, Scheduler, SearchSpec
from components.experiment.spec.section import Dtype, Fraction, Name, Share, Spec
from components.experiment.spec.storage import PREPARED, STORAGE, StorageSpec
from components.experiment.spec.trial import BatchSpec, BudgetSpec, OptimizerSpec, ScheduleSpec, TrialSpec

__all__ = [
    "CHALLENGER",
    "FLASH_ATTENTION",
    "PREPARED",
    "STORAGE",
    "AshaSpec",
    "BatchSpec",
    "BudgetSpec",
    "ChatFormatSpec",
    "DataSpec",
    "Dtype",
    "EvaluationSpec",
    "ExperimentSpec",
    "Fraction",
    "FullMethod",
    "JudgeSpec",
    "LoraMethod",
    "Method",
    "MetricSpec",
    "ModelSpec",
    "Name",
    "NoSchedulerSpec",
    "OptimizerSpec",
    "RegistrySpec",
    "ResourcesSpec",
    "ScheduleSpec",
    "Scheduler",
    "SearchSpec",
    "Share",
    "Spec",
    "StorageSpec",
    "TrackingSpec",
    "TrialSpec",
    "WorkersSpec",
]
