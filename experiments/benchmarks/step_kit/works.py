"""What is measured: a method, and the rows of each of its steps."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from transformers import AutoConfig

from components.conversations.load_format import load_format_of
from components.data.prepare import PreparedDataset, prepare
from components.data.sampler import PackedRow, Position, StepSampler, micro_batches
from components.experiment.load_experiment import load_experiment
from components.experiment.spec import BatchSpec, Dtype, FullMethod, LoraMethod, ModelSpec, ScheduleSpec, TrialSpec
from components.models.base.context import context_of
from components.models.base.load_base import resolve_model
from components.planning.meta_model import meta_model
from components.storage.open_folder import folder_at
from experiments.benchmarks.gpu_kit.rows import random_dataset
from experiments.benchmarks.gpu_kit.speed_bench import METHODS, RANK, STANDS_STILL
from experiments.benchmarks.gpu_kit.speed_peak import model_flops
from experiments.benchmarks.gpu_kit.speed_rows import Rows
from experiments.benchmarks.gpu_kit.trials import trial_spec

ROOT = Path(__file__).resolve().parents[3]
QUICKSTART, LONG = "the quickstart's rows", "1,024-token rows"
MODEL = "smollm2-135m-instruct"
LONG_ROWS = Rows(name=LONG, shortest=25, longest=384, max_tokens=1024, packing=True, per_pass=1)
SEED = 0
METHODS_IN_WORDS = {"lora": f"LoRA of rank {RANK} in all linear layers", "full": "Full fine-tuning"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One training, up to its data.

    `steps` are places in the sampler's plan: those of whole steps, as many as a contestant makes at most.
    `steps_per_block` are made before the next contestant's turn.
    """

    name: str
    model: str
    method: str
    prepared: Path
    batch: BatchSpec
    max_tokens: int
    pad_token_id: int
    steps: tuple[Position, ...]
    steps_per_block: int
    precision: Dtype = "bf16"

    @property
    def spec(self) -> TrialSpec:
        return trial_spec(
            METHODS[self.method],
            rows=self.batch.rows_per_step,
            micro_rows=self.batch.rows_per_micro_batch,
            packing=True,
            optimizer=STANDS_STILL,
            schedule=ScheduleSpec(name="constant", warmup_fraction=0.0),
            seed=SEED,
            precision=self.precision,
        )

    @property
    def method_spec(self) -> LoraMethod | FullMethod:
        return METHODS[self.method]

    @property
    def base(self) -> ModelSpec:
        return ModelSpec(path=self.model).for_trial(self.spec)

    @property
    def micro_batches_per_step(self) -> int:
        return -(-self.batch.rows_per_step // self.batch.rows_per_micro_batch)

    def dataset(self) -> PreparedDataset:
        return PreparedDataset.open(folder_at(self.prepared))

    def micro_batches(self, dataset: PreparedDataset) -> list[list[list[PackedRow]]]:
        """The rows of each micro-batch of each step, as the product's sampler has them."""
        sampler = StepSampler(dataset.train.lengths, self.batch, max_tokens=self.max_tokens, seed=SEED)
        steps = [sampler.plan(place.epoch)[place.step] for place in self.steps]
        most = self.batch.rows_per_micro_batch
        return [micro_batches(rows, worker_rank=0, worker_count=1, rows_per_micro_batch=most) for rows in steps]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSize:
    """Of one step: tokens without padding, targets, and the operations that it cannot do without."""

    tokens: int
    targets: int
    flops: float


def works(
    names: tuple[str, ...], folder: Path, *, steps: int, model: str = MODEL, precision: Dtype = "bf16"
) -> list[Work]:
    """Prepares the data of these works in a folder."""
    return [replace(_KINDS[name](name, folder, steps, model), precision=precision) for name in names]


def sizes(work: Work) -> list[StepSize]:
    dataset = work.dataset()
    config = AutoConfig.from_pretrained(resolve_model(work.base), trust_remote_code=False)
    model = meta_model(config, work.method_spec, dtype=work.base.dtype, attention="sdpa")
    found = []
    for step in work.micro_batches(dataset):
        conversations = [index for rows in step for row in rows for index in row]
        lengths = [int(dataset.train.lengths[index]) for index in conversations]
        # The first token of a conversation is predicted by nothing.
        targets = sum(int((dataset.train[index][1][1:] > 0).sum()) for index in conversations)
        flops = model_flops(model, config, lengths, targets=targets)
        found.append(StepSize(tokens=sum(lengths), targets=targets, flops=flops))
    return found


def _quickstart(name: str, folder: Path, steps: int, model: str) -> Work:
    experiment = load_experiment(ROOT / "experiments" / "quickstart.yaml")
    directory = resolve_model(ModelSpec(path=model))
    dataset = prepare(
        experiment.data.model_copy(update={"train": str(ROOT / str(experiment.data.train))}),
        model_path=directory,
        chat_format=experiment.format_spec,
        storage=folder_at(folder),
        context=context_of(directory),
    )
    batch = experiment.trial.batch.model_copy(update={"packing": True})
    return _work(
        name,
        model,
        dataset,
        batch,
        max_tokens=experiment.data.max_tokens,
        pad_token_id=load_format_of(directory, experiment.format_spec).pad_token_id,
        steps=steps,
        steps_per_block=3,
    )


def _long(name: str, folder: Path, steps: int, model: str) -> Work:
    config = AutoConfig.from_pretrained(resolve_model(ModelSpec(path=model)), trust_remote_code=False)
    dataset = LONG_ROWS.dataset(folder / name, config.vocab_size, steps)
    batch, most = LONG_ROWS.batch, LONG_ROWS.max_tokens
    return _work(name, model, dataset, batch, max_tokens=most, pad_token_id=0, steps=steps, steps_per_block=1)


def short_random(name: str, folder: Path, steps: int, model: str) -> Work:
    """Rows of a few tokens, for tests."""
    config = AutoConfig.from_pretrained(model, trust_remote_code=False)
    lengths = [9, 17, 12, 23, 5, 14, 20, 11] * steps
    dataset = random_dataset(folder / name, config.vocab_size, train=lengths, evaluate=[9])
    batch = BatchSpec(rows_per_step=4, rows_per_micro_batch=2, packing=True)
    return _work(name, model, dataset, batch, max_tokens=32, pad_token_id=0, steps=steps, steps_per_block=1)


def _work(
    name: str,
    model: str,
    dataset: PreparedDataset,
    batch: BatchSpec,
    *,
    max_tokens: int,
    pad_token_id: int,
    steps: int,
    steps_per_block: int,
) -> Work:
    return Work(
        name=name,
        model=model,
        method="LoRA" if name.startswith("lora") else "full",
        prepared=Path(str(dataset.directory)),
        batch=batch,
        max_tokens=max_tokens,
        pad_token_id=pad_token_id,
        steps=_whole_steps(dataset, batch, max_tokens, steps),
        steps_per_block=steps_per_block,
    )


def _whole_steps(dataset: PreparedDataset, batch: BatchSpec, max_tokens: int, count: int) -> tuple[Position, ...]:
    """An epoch's last step may have fewer rows, which the peers would fill up with those of the next one."""
    sampler = StepSampler(dataset.train.lengths, batch, max_tokens=max_tokens, seed=SEED)
    found: list[Position] = []
    epoch = 0
    while len(found) < count:
        plan = sampler.plan(epoch)
        found += [
            Position(epoch=epoch, step=step) for step, rows in enumerate(plan) if len(rows) == batch.rows_per_step
        ]
        epoch += 1
    return tuple(found[:count])


_KINDS = {
    "lora-quickstart": _quickstart,
    "full-quickstart": _quickstart,
    "lora-1024": _long,
    "full-1024": _long,
}
WORKS = tuple(_KINDS)


def works_in_words(name: str, precision: Dtype) -> str:
    method, _, rows = name.partition("-")
    kinds = {"quickstart": QUICKSTART, "1024": LONG}
    return f"{METHODS_IN_WORDS.get(method, method)}, {kinds.get(rows, rows)}, in {precision}"
