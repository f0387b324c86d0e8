"""What a user writes in an experiment file, as frozen types. Every field has its unit in its name or its docstring.

An `ExperimentSpec` is one question: one model, one data set, one space of trials. A `TrialSpec` is one point of that
space: everything that decides what one trial trains, and nothing else, so two equal TrialSpecs over the same data end
with equal weights.
"""

from __future__ import annotations

import itertools
import os
import re
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from components.experiment.field_types import is_numeric
from components.storage.base import Folder
from components.storage.open import folder_at
from components.storage.uri import check_uri

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Share = Annotated[float, Field(gt=0.0, lt=1.0)]
STORAGE = "TURNWISE_STORAGE"  # set on a cluster's head, it is where every job keeps its searches
Dtype = Literal["fp32", "bf16"]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]
PREPARED = "prepared"  # under the storage's path, beside the folders of experiments
CHALLENGER = "challenger"  # the alias of the newest candidate that did not pass the gate
_VERSION_ALIAS = re.compile(r"v\d+", re.IGNORECASE)
_MOST_EXPERIMENT_LETTERS = 250  # MLflow's column in a database holds 256
_LABEL = r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"  # as in Kubernetes, so in Ray
_LABEL_KEY = re.compile(rf"([A-Za-z0-9.-]+/)?{_LABEL}")
_LABEL_SELECTOR = re.compile(rf"!?({_LABEL}|in\({_LABEL}(, ?{_LABEL})*\))")


class Spec(BaseModel):
    """Frozen, and an unknown key is an error (components/experiment/errors.py names the nearest valid one).

    Numbers are finite, and `true` is none.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _true_is_no_number(cls, values: Any) -> Any:
        """pydantic takes `true` for 1. As text it is refused, in its place and with all other problems."""
        if not isinstance(values, dict):
            return values
        numeric = {name for name, field in cls.model_fields.items() if is_numeric(field.annotation)}
        return {name: _booleans_as_text(value) if name in numeric else value for name, value in values.items()}


def _booleans_as_text(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(map(_booleans_as_text, value))
    return str(value).lower() if isinstance(value, bool) else value


def _check_places(**fields: str | tuple[str, ...] | None) -> None:
    """Raises ValueError for what can be no place. (A field's own validator would have pydantic show the value: a secret.)"""
    for field, value in fields.items():
        for place in (value,) if isinstance(value, str) else value or ():
            try:
                check_uri(place)
            except ValueError as error:
                raise ValueError(f"{field}: {error}") from None


def _free_folder(name: str) -> str:
    if name == PREPARED:
        raise ValueError("that folder of the storage is for prepared data; choose another name")
    return name


def _free_alias(alias: str) -> str:
    """What MLflow refuses only when an alias is set, after the search; or answers with a version that nobody chose."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", alias):
        raise ValueError('an alias has letters, digits, "_" and "-" only, and begins with a letter or digit')
    if alias.lower() == "latest":
        raise ValueError(
            "a registry answers this alias with its newest version, whatever passed the gate; choose another one"
        )
    if _VERSION_ALIAS.fullmatch(alias):
        raise ValueError("in a registry v and a number is a version; choose another alias")
    if alias.lower() == CHALLENGER:
        raise ValueError("this alias is for the candidate that did not pass the gate; choose another one")
    return alias


def _mlflow_experiment(name: str) -> str:
    if not name.strip() or not name.isprintable():
        raise ValueError("an MLflow experiment needs a name of visible characters")
    return name


def _with_tag(values: Any, field: str, tag: str, default: str) -> Any:
    """`values` with the tag of a tagged union filled in, so that `--set trial.method.rank=8` needs no `kind: lora`."""
    if isinstance(values, dict) and isinstance(values.get(field), dict) and tag not in values[field]:
        return {**values, field: {tag: default, **values[field]}}
    return values


class ModelSpec(Spec):
    """The base model every trial starts from."""

    path: str = Field(
        description="A directory, a Hugging Face hub id, `smollm2-135m-instruct` (fetched once), or an s3:// or gs:// URI."
    )
    revision: str | None = Field(None, description="Branch, tag or commit of a hub id.")
    dtype: Literal["auto"] | Dtype = Field(
        "auto",
        description="What the base's weights are kept in. `auto`: fp32 for full fine-tuning; for LoRA bf16, or fp32 where"
        " the trial's precision is fp32. A trial may have a dtype of its own.",
    )
    attention: Literal["sdpa", "eager", "flash_attention_2"] = Field(
        "sdpa", description="flash_attention_2 needs GPUs, precision bf16 and the package flash-attn in every worker."
    )

    @model_validator(mode="after")
    def _is_a_place(self) -> Self:
        _check_places(path=self.path)
        return self

    def dtype_of(self, trial: TrialSpec) -> Dtype:
        """What the base's weights are kept in while this trial trains.

        LoRA leaves them as they are, and where matrices are multiplied in bf16, bf16 weights are all that is used of them:
        float32 would take twice the memory. The adapters are float32 in any case. Full fine-tuning adds small updates to
        the weights, and bf16 rounds most of them away.
        """
        wanted = trial.dtype or self.dtype
        if wanted != "auto":
            return wanted
        return "bf16" if isinstance(trial.method, LoraMethod) and trial.precision == "bf16" else "fp32"

    def for_trial(self, trial: TrialSpec) -> Self:
        """This model with the dtype that the trial has it in, never `auto`."""
        return self.model_copy(update={"dtype": self.dtype_of(trial)})

    def check_trial(self, trial: TrialSpec, workers: WorkersSpec) -> None:
        """Raises ValueError if this model cannot be computed with as the trial says."""
        if trial.precision == "fp32" and self.dtype_of(trial) == "bf16":
            raise ValueError(
                "precision=fp32 with dtype=bf16: what is computed with bf16 weights is computed in bf16; set precision: bf16,"
                " or dtype: fp32"
            )
        if self.attention == "flash_attention_2" and trial.precision == "fp32":
            raise ValueError(
                "precision=fp32 with model.attention=flash_attention_2: it computes in 16 bits only; set precision: bf16, or"
                " model.attention: sdpa"
            )
        if self.attention == "flash_attention_2" and not workers.gpus_per_worker:
            raise ValueError(
                f"model.attention=flash_attention_2 computes on GPUs only, and resources.{trial.method.kind} has none; set"
                f" resources.{trial.method.kind}.gpus_per_worker, or model.attention: sdpa"
            )


class DataSpec(Spec):
    """Conversations in, and the rules for those that do not fit."""

    train: str | tuple[str, ...] = Field(
        description="File or URI, list of them, glob, or `hf:DATASET[:SPLIT][@REVISION]`."
    )
    eval: str | tuple[str, ...] | None = Field(
        None, description="Held-out conversations; without it `eval_fraction` is split off."
    )
    eval_fraction: Share = Field(
        0.1,
        description="Share held out where `eval` is not given, by a hash of a conversation's words or of its `group`.",
    )
    split_seed: NonNegativeInt = Field(0, description="Part of that hash: another seed is another split.")
    format: Literal["auto", "messages", "sharegpt", "alpaca", "pairs", "nested"] = "auto"
    on_bad_row: Literal["fail", "drop"] = "fail"
    unknown_keys: Literal["fail", "ignore"] = Field(
        "fail",
        description="A key that nothing reads and that might change what is trained makes its record a bad one, or is"
        " counted and left out. Keys of a whole record that change no token (`id`, `source`) are only counted.",
    )
    max_tokens: PositiveInt = Field(1024, ge=8, description="Longest row, in tokens; packed rows are filled up to it.")
    too_long: Literal["truncate", "drop", "fail"] = Field(
        "truncate", description="`truncate` cuts at the end of an assistant turn, so that its stop token stays."
    )

    @model_validator(mode="after")
    def _are_places(self) -> Self:
        _check_places(train=self.train, eval=self.eval)
        return self


class LoraMethod(Spec):
    """Low-rank adapters on a frozen base. With `quantize` the base is kept in 4 or 8 bits: QLoRA."""

    kind: Literal["lora"] = "lora"
    rank: PositiveInt = 16
    alpha: PositiveFloat = 32.0
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    target_modules: Literal["all-linear"] | Annotated[tuple[str, ...], Field(min_length=1)] = Field(
        "all-linear", description="`all-linear` is every linear layer but the head."
    )
    rslora: bool = Field(False, description="Scale by alpha / sqrt(rank) instead of alpha / rank.")
    dora: bool = Field(False, description="Learn each weight's magnitude beside its direction.")
    quantize: Literal["nf4", "int8"] | None = None


class FullMethod(Spec):
    """Every weight is trained."""

    kind: Literal["full"] = "full"


Method = Annotated[LoraMethod | FullMethod, Field(discriminator="kind")]


class OptimizerSpec(Spec):
    name: Literal["adamw", "paged_adamw_8bit"] = Field("adamw", description="The 8-bit one needs CUDA.")
    learning_rate: PositiveFloat = 2.0e-4
    betas: tuple[Share, Share] = (0.9, 0.999)
    epsilon: PositiveFloat = 1.0e-8
    weight_decay: NonNegativeFloat = 0.0
    max_grad_norm: PositiveFloat = 1.0


class ScheduleSpec(Spec):
    """Learning rate as a function of the share of the budget spent, so trials with other batch sizes decay alike."""

    name: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_fraction: Fraction = Field(0.05, description="Share of the budget spent warming up from zero.")
    final_fraction: Fraction = Field(0.1, description="Learning rate at the end, as a share of its peak.")


class BatchSpec(Spec):
    rows_per_step: PositiveInt = Field(8, description="Rows in one optimizer step, over all workers and micro-batches.")
    rows_per_micro_batch: PositiveInt = Field(
        8, description="At most this many rows in one forward pass of one worker."
    )
    packing: bool = Field(True, description="Fill a row with several conversations that cannot see each other.")

    def check_workers(self, num_workers: int) -> None:
        """Raises ValueError if a step has too few rows for every worker to get one."""
        if self.rows_per_step < num_workers:
            raise ValueError(
                f"batch.rows_per_step={self.rows_per_step} leaves workers idle: give each of the {num_workers} workers a row,"
                " or the method fewer workers"
            )


class BudgetSpec(Spec):
    """How long a trial may train. All trials of a search share it, and schedulers compare at equal target tokens."""

    target_tokens: PositiveInt | None = Field(None, description="Tokens scored, over all epochs.")
    epochs: PositiveFloat | None = Field(None, description="Passes over the training conversations.")
    evaluations: PositiveInt = Field(
        4, description="Evaluations with a checkpoint, evenly over the budget; the last ends it."
    )

    @model_validator(mode="after")
    def _one_measure(self) -> Self:
        if (self.target_tokens is None) == (self.epochs is None):
            raise ValueError("give exactly one of target_tokens and epochs")
        return self

    def in_target_tokens(self, targets_per_epoch: int) -> int:
        """The budget in target tokens, given how many targets one pass over the training data holds."""
        if self.target_tokens is not None:
            return self.target_tokens
        assert self.epochs is not None
        return max(1, round(self.epochs * targets_per_epoch))


class TrialSpec(Spec):
    """One configuration: all that decides what a trial trains. The space of a search varies these fields."""

    method: Method = LoraMethod()
    optimizer: OptimizerSpec = OptimizerSpec()
    schedule: ScheduleSpec = ScheduleSpec()
    batch: BatchSpec = BatchSpec()
    budget: BudgetSpec = BudgetSpec(epochs=3.0)
    precision: Literal["fp32", "bf16"] = Field("bf16", description="Of the forward and backward pass (autocast).")
    dtype: Literal["auto"] | Dtype | None = Field(
        None, description="What the base's weights are kept in for this trial; by default what model.dtype says."
    )
    gradient_checkpointing: bool = Field(False, description="Recompute activations instead of keeping them.")
    seed: NonNegativeInt = 0

    @model_validator(mode="before")
    @classmethod
    def _lora_unless_said(cls, values: Any) -> Any:
        return _with_tag(values, "method", "kind", "lora")


class WorkersSpec(Spec):
    """What one trial of a method occupies while it runs."""

    workers: PositiveInt | tuple[PositiveInt, PositiveInt] = Field(
        1,
        description="How many train a trial together; [min, max]: as many as there is room for, changing as it changes.",
    )
    cpus_per_worker: PositiveFloat = 1.0
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
    def _as_ray_reads_them(cls, node_labels: dict[str, str]) -> dict[str, str]:
        for key, value in node_labels.items():
            if not _LABEL_KEY.fullmatch(key) or not _LABEL_SELECTOR.fullmatch(value):
                raise ValueError(
                    f'"{key}: {value}" is no label: want letters, digits, ".", "_" and "-", the value also as !value or'
                    " in(one, another)"
                )
        return node_labels

    @model_validator(mode="after")
    def _one_gpu_a_worker(self) -> Self:
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
    def _offload_what_is_sharded(self) -> Self:
        if self.cpu_offload and self.parallel != "fsdp":
            raise ValueError("cpu_offload: true goes with parallel: fsdp; set that, or leave cpu_offload out")
        return self

    def check_trial(self, trial: TrialSpec) -> None:
        """Raises ValueError if these workers cannot train it."""
        trial.batch.check_workers(self.max_workers)
        if self.parallel == "fsdp" and trial.optimizer.name == "paged_adamw_8bit":
            raise ValueError(
                "optimizer.name=paged_adamw_8bit cannot keep its state for shares of a weight, as parallel: fsdp has them;"
                " use adamw, and where memory is short more workers or cpu_offload: true"
            )

    def __hash__(self) -> int:
        return hash(self.model_dump_json())  # a dict has no hash of its own

    @model_validator(mode="after")
    def _min_before_max(self) -> Self:
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


class ResourcesSpec(Spec):
    """Per method, because full fine-tuning needs several times the memory of LoRA."""

    lora: WorkersSpec = WorkersSpec()
    full: WorkersSpec = WorkersSpec()

    @model_validator(mode="after")
    def _shard_full_only(self) -> Self:
        if self.lora.parallel == "fsdp":
            raise ValueError(
                "lora.parallel=fsdp: only full fine-tuning is sharded; leave it ddp, and where the base model is too large"
                " for a GPU, set method.quantize: nf4"
            )
        return self

    def of(self, method: LoraMethod | FullMethod) -> WorkersSpec:
        return self.lora if isinstance(method, LoraMethod) else self.full


class AshaSpec(Spec):
    """Asynchronous successive halving. Rungs stand at first_rung x reduction_factor^k, in target tokens."""

    name: Literal["asha"] = "asha"
    first_rung_target_tokens: PositiveInt | None = Field(None, description="By default the budget's first evaluation.")
    reduction_factor: Annotated[int, Field(ge=2)] = Field(2, description="One in this many trials passes each rung.")
    brackets: Literal["per_branch", "shared"] = Field(
        "per_branch", description="`per_branch`: a trial competes with trials of its own branch; `shared`: with all."
    )

    def rungs(self, budget: int, evaluations: int) -> tuple[int, ...]:
        """In target tokens, ascending, below the budget of a trial, which is in target tokens, too."""
        first = self.first_rung_target_tokens or max(1, budget // evaluations)
        milestones = (first * self.reduction_factor**k for k in itertools.count())
        return tuple(itertools.takewhile(lambda milestone: milestone < budget, milestones))


class NoSchedulerSpec(Spec):
    """Every trial spends its whole budget."""

    name: Literal["none"] = "none"


Scheduler = Annotated[AshaSpec | NoSchedulerSpec, Field(discriminator="name")]


class SearchSpec(Spec):
    """The space and how it is walked. `space` has one branch per method variant; components/experiment/space.py reads it."""

    space: dict[Name, dict[str, Any]] = Field(
        min_length=1,
        description="Branches. A branch looks like `trial:`, with a domain in the place of each value that varies.",
    )
    sampler: Literal["random", "grid", "tpe"] = Field("random", description="`tpe` is Optuna's.")
    scheduler: Scheduler = AshaSpec()
    trials: PositiveInt | None = Field(
        None, description="Trials in all, shared evenly by the branches. By default all points of a grid, else 8."
    )
    max_concurrent_trials: PositiveInt | None = Field(None, description="By default as many as the cluster holds.")
    max_failures: NonNegativeInt = Field(2, description="Times a trial is restarted after its slot died.")
    seed: NonNegativeInt = 0

    @model_validator(mode="before")
    @classmethod
    def _asha_unless_said(cls, values: Any) -> Any:
        return _with_tag(values, "scheduler", "name", "asha")


class StorageSpec(Spec):
    path: str = Field(
        default_factory=lambda: os.environ.get(STORAGE, "runs"),
        description="Prepared data, journal and checkpoints: a folder (on a cluster one that all nodes see),"
        f" s3://BUCKET/PREFIX or gs://BUCKET/PREFIX. By default {STORAGE} of the environment, else `runs`.",
    )

    @model_validator(mode="after")
    def _is_a_place(self) -> Self:
        _check_places(path=self.path)
        return self


class TrackingSpec(Spec):
    uri: str | None = Field(
        None, description="MLflow server; by default MLFLOW_TRACKING_URI, else sqlite:///mlflow.db here."
    )
    experiment: (
        Annotated[str, Field(max_length=_MOST_EXPERIMENT_LETTERS), AfterValidator(_mlflow_experiment)] | None
    ) = Field(None, description="MLflow experiment; by default this experiment's name.")


class RegistrySpec(Spec):
    """The gate before a registered model."""

    name: Name | None = Field(None, description="Registered model; by default turnwise-<experiment>.")
    alias: Annotated[str, Field(max_length=100), AfterValidator(_free_alias)] = Field(
        "champion", description=f"Points to the version that passed the gate; not latest, v1, v2 ... or {CHALLENGER}."
    )
    confidence: Share = Field(0.95, description="How sure to be that a candidate beats the incumbent and the base.")
    proof_minutes: PositiveFloat = Field(
        30.0,
        description="Longest time the candidate, its base model and the incumbent may each take to load, talk and be scored"
        " in a fresh process.",
    )
    probes: str | None = Field(
        None,
        description="JSONL of held-out questions, asked of base and champion side by side; `expect` names a wanted word.",
    )


class ExperimentSpec(Spec):
    """One question, as a file in experiments/."""

    name: Annotated[Name, AfterValidator(_free_folder)]
    model: ModelSpec
    data: DataSpec
    chat_format: str = Field(
        "auto", description="`auto` is ChatGLM3's own for its tokenizer, else the chat template, else ChatML."
    )
    trial: TrialSpec = TrialSpec()
    search: SearchSpec
    resources: ResourcesSpec = ResourcesSpec()
    storage: StorageSpec = Field(default_factory=StorageSpec)
    tracking: TrackingSpec = TrackingSpec()
    registry: RegistrySpec = RegistrySpec()

    @property
    def registered_model(self) -> str:
        return self.registry.name or f"turnwise-{self.name}"

    @property
    def mlflow_experiment(self) -> str:
        return self.tracking.experiment or self.name

    @property
    def folder(self) -> Folder:
        """The same from everywhere: a path is absolute, because Ray workers run elsewhere."""
        return folder_at(self.storage.path) / self.name
