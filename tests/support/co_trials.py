"""Trials of a session that are trained together on its base, and the same trials alone."""

from components.experiment.base_precisions import base_variant
from components.experiment.spec import BatchSpec, BudgetSpec, LoraMethod, OptimizerSpec, ScheduleSpec
from components.models.shared_base import SharedBase
from components.records.events import Progress
from components.training.co_training import CoTraining
from components.training.signals import NO_SIGNALS
from components.training.trainer import Trainer
from tests.support.sessions import LORA


def lora(rank, *, rows, at_once=8, dropout=0.0, learning_rate=1e-2, seed=0, epochs=1.5, **others):
    """Another number of epochs and rows makes another number of steps."""
    return LORA.model_copy(
        update={
            "method": LoraMethod(rank=rank, alpha=2.0 * rank + seed, dropout=dropout, **others),
            "optimizer": OptimizerSpec(learning_rate=learning_rate, weight_decay=0.01 * seed),
            "schedule": ScheduleSpec(name=("cosine", "linear", "constant")[seed % 3]),
            "batch": BatchSpec(rows_per_step=rows, rows_per_micro_batch=at_once, packing=seed != 3),
            "budget": BudgetSpec(epochs=epochs, evaluations=2),
            "seed": seed,
        }
    )


FOUR = [
    lora(4, rows=4, dropout=0.1, seed=0),
    lora(2, rows=2, learning_rate=3e-3, seed=1),
    lora(8, rows=8, at_once=3, dropout=0.5, seed=2, epochs=2.5),
    lora(1, rows=6, at_once=2, seed=3, target_modules=("q_proj", "up_proj")),
]
WILD = lora(3, rows=3, learning_rate=1e30, seed=5)


def after(steps):
    """A signal that is set after so many steps."""
    return iter([*[False] * (steps - 1), *[True] * 1000]).__next__


def group_of(of, spec):
    """An empty group on the base that trials of this kind have."""
    return CoTraining(SharedBase(of.warm.load(base_variant(of.model, spec))))


def joined(of, group, spec):
    return of._joined(group, spec, None, None)


def weights_in(group, trainer):
    with group.alone(trainer.model):
        return {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}


def next_reports(group, signals=None):
    """What the members say that have something to say first, all of whom are trained until then."""
    for trainer in group.members:
        if trainer not in group.within:
            group.begin(trainer, (signals or {}).get(trainer, NO_SIGNALS))
    said: dict[Trainer, Progress | None] = {}
    while not said:
        said = group.step()
    return said


def reports_together(group, trainers):
    """All reports of all members, each of whom leaves when it is done."""
    found: dict[Trainer, list[Progress]] = {trainer: [] for trainer in trainers}
    while group.members:
        for trainer, progress in next_reports(group).items():
            found[trainer].append(progress)
            if progress.done:
                group.leave(trainer)
    return [found[trainer] for trainer in trainers]
