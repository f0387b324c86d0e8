"""The section `resources:`: the workers that a trial of each method occupies."""

from __future__ import annotations

import re
from typing import Literal, Self

from pydantic import Field, NonNegativeFloat, field_validator, model_validator

from components.experiment.spec.method import FullMethod, LoraMethod
from components.experiment.spec.section import Amount, Count, Spec
from components.experiment.spec.trial import TrialSpec

_LABEL = r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"  # as in Kubernetes, so in Ray
_LABEL_KEY = re.compile(rf"([A-Za-z0-9.-]+/)?{_LABEL}")
_LABEL_SELECTOR = re.compile(rf"!?({_LABEL}|in\({_LABEL}(, ?{_LABEL})*\))")


class WorkersSpec(Spec):
    """What one trial of a method occupies while it runs."""

    workers: Count | tuple[Count, Count] = Field(
        1,
        description="How many train a trial together; [min, max]: as many as there is room for, changing as it changes.",
    )
    cpus_per_worker: Amount = 1.0
    gpus_per_worker: NonNegativeFloat = Field(
        0.0, description="1 at most; less than 1 lets trials of one worker share a GPU."
    )
    parallel: Literal["ddp", "fsdp"] = Field(
        "ddp",
        description="`ddp`: each worker has the whole model. `fsdp`: each has its share of weights, gradients and optimizer"
        " state, and gets layer after layer together while it computes; for full fine-tuning of what no GPU holds.",
    )
    cpu_offload: bool = Field(
        False, description="fsdp: the shares wait in CPU memory, where the optimizer runs too; slower, and smaller."
    )
    placement: Literal["pack", "strict_pack", "spread"] = Field(
        "pack",
        description="`pack` takes as few nodes as it can; `strict_pack` waits for one node that holds all workers, which"
        " sharded training wants where nodes are joined slowly; `spread` takes as many nodes as it can.",
    )
    node_labels: dict[str, str] = Field(
        {},
        description="Labels that the nodes of these workers must have: a value, `!value`, or `in(one, another)`;"
        " e.g. `{ray.io/market-type: spot}`.",
    )

    @field_validator("node_labels")
    @classmethod
    def _check_node_labels(cls, node_labels: dict[str, str]) -> dict[str, str]:
        for key, value in node_labels.items():
            if not _LABEL_KEY.fullmatch(key) or not _LABEL_SELECTOR.fullmatch(value):
                raise ValueError(
                    f'"{key}: {value}" is no label: want letters, digits, ".", "_" and "-", the value also as !value or'
                    " in(one, another)"
                )
        return node_labels

    @model_validator(mode="after")
    def _check_gpus_per_worker(self) -> Self:
        if self.gpus_per_worker > 1:
            raise ValueError(
                f"gpus_per_worker={self.gpus_per_worker:g}: a worker uses one GPU; set gpus_per_worker: 1 and more workers"
            )
        if 0 < self.gpus_per_worker < 1 and self.max_workers > 1:
            raise ValueError(
                f"gpus_per_worker={self.gpus_per_worker:g} with workers={self.workers}: workers of one trial cannot share"
                " a GPU; set gpus_per_worker: 1, or workers: 1"
            )
        return self

    @model_validator(mode="after")
    def _check_cpu_offload(self) -> Self:
        if self.cpu_offload and self.parallel != "fsdp":
            raise ValueError("cpu_offload: true goes with parallel: fsdp; set that, or leave cpu_offload out")
        return self

    def check_trial(self, trial: TrialSpec) -> None:
        """Raises ValueError if these workers cannot train the trial."""
        trial.batch.check_workers(self.max_workers)
        if self.parallel == "fsdp" and trial.optimizer.name == "paged_adamw_8bit":
            raise ValueError(
                "optimizer.name=paged_adamw_8bit cannot keep its state for shares of a weight, as parallel: fsdp has them;"
                " use adamw, and where memory is short more workers or cpu_offload: true"
            )

    def __hash__(self) -> int:
        return hash(self.model_dump_json())  # a dict has no hash of its own

    @model_validator(mode="after")
    def _check_range_of_workers(self) -> Self:
        if self.min_workers > self.max_workers:
            raise ValueError(f"workers [{self.min_workers}, {self.max_workers}] must be [min, max]")
        return self

    @property
    def min_workers(self) -> int:
        return self.workers[0] if isinstance(self.workers, tuple) else self.workers

    @property
    def max_workers(self) -> int:
        return self.workers[1] if isinstance(self.workers, tuple) else self.workers

    @property
    def elastic(self) -> bool:
        return self.min_workers < self.max_workers

    @property
    def trials_at_once(self) -> int:
        """How many trials these workers train together."""
        return 1

    def shared_by(self, trials: int) -> WorkersSpec:
        """Returns the same workers where so many trials share them."""
        return SharedWorkersSpec(**self.model_dump(), trials=trials) if trials > 1 else self


class SharedWorkersSpec(WorkersSpec):
    """What trials occupy together while they run; nobody writes it (search.trials_per_slot)."""

    trials: Count

    __hash__ = WorkersSpec.__hash__

    @property
    def trials_at_once(self) -> int:
        return self.trials


class ResourcesSpec(Spec):
    """The workers of each method: full fine-tuning needs several times the memory of LoRA."""

    lora: WorkersSpec = WorkersSpec()
    full: WorkersSpec = WorkersSpec()

    @model_validator(mode="after")
    def _check_sharding(self) -> Self:
        if self.lora.parallel == "fsdp":
            raise ValueError(
                "lora.parallel=fsdp: only full fine-tuning is sharded; leave it ddp, and where the base model is too large"
                " for a GPU, set method.quantize: nf4"
            )
        return self

    def of(self, method: LoraMethod | FullMethod) -> WorkersSpec:
        return self.lora if isinstance(method, LoraMethod) else self.full
