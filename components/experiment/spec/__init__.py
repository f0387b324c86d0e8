"""What a user writes in an experiment file, as frozen types: a file for each section, all of them imported from here.

Every field has its unit in its name or in its description.
"""

from components.experiment.spec.chat_format import ChatFormatSpec
from components.experiment.spec.data import DataSpec
from components.experiment.spec.evaluation import EvaluationSpec, GenerateSpec
from components.experiment.spec.experiment import ExperimentSpec
from components.experiment.spec.method import NOT_BY_TOKENS, FullMethod, LoraMethod, Method, why_alone
from components.experiment.spec.metric import EVAL_LOSS, GENERAL_LOSS, SCORES_OF_REPLIES, MetricSpec
from components.experiment.spec.model import FLASH_ATTENTION, ModelSpec
from components.experiment.spec.objectives import GROW_WITH_THE_BUDGET, OTHER_METRICS
from components.experiment.spec.registry import (
    CHALLENGER,
    PREVIOUS,
    GateSpec,
    JudgeSpec,
    RegistrySpec,
    TrackingSpec,
)
from components.experiment.spec.resources import ResourcesSpec, WorkersSpec
from components.experiment.spec.schedulers import (
    AshaSpec,
    HyperbandSpec,
    MedianSpec,
    NoSchedulerSpec,
    PlateauSpec,
    Scheduler,
    written_in_tokens,
)
from components.experiment.spec.search import ConfirmSpec, SearchSpec
from components.experiment.spec.search_budget import SearchBudgetSpec
from components.experiment.spec.section import Dtype, Fraction, Name, Share, Spec
from components.experiment.spec.storage import PREPARED, STORAGE, StorageSpec
from components.experiment.spec.trial import BatchSpec, BudgetSpec, OptimizerSpec, ScheduleSpec, TrialSpec

__all__ = [
    "CHALLENGER",
    "EVAL_LOSS",
    "FLASH_ATTENTION",
    "GENERAL_LOSS",
    "GROW_WITH_THE_BUDGET",
    "NOT_BY_TOKENS",
    "OTHER_METRICS",
    "PREPARED",
    "PREVIOUS",
    "SCORES_OF_REPLIES",
    "STORAGE",
    "AshaSpec",
    "BatchSpec",
    "BudgetSpec",
    "ChatFormatSpec",
    "ConfirmSpec",
    "DataSpec",
    "Dtype",
    "EvaluationSpec",
    "ExperimentSpec",
    "Fraction",
    "FullMethod",
    "GateSpec",
    "GenerateSpec",
    "HyperbandSpec",
    "JudgeSpec",
    "LoraMethod",
    "MedianSpec",
    "Method",
    "MetricSpec",
    "ModelSpec",
    "Name",
    "NoSchedulerSpec",
    "OptimizerSpec",
    "PlateauSpec",
    "RegistrySpec",
    "ResourcesSpec",
    "ScheduleSpec",
    "Scheduler",
    "SearchBudgetSpec",
    "SearchSpec",
    "Share",
    "Spec",
    "StorageSpec",
    "TrackingSpec",
    "TrialSpec",
    "WorkersSpec",
    "why_alone",
    "written_in_tokens",
]
