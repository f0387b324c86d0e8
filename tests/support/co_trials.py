"""Trials of a session that are trained together on its base, and the same trials alone."""

from components.experiment.base_precisions import base_variant
from components.models.shared_base import SharedBase
from components.records.events import Progress
from components.training.co_training import CoTraining
from components.training.signals import NO_SIGNALS
from components.training.trainer import Trainer


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
