"""Trials of a session that are trained together on its base, and the same trials alone."""

from components.experiment.base_precisions import base_variant
from components.models.attention_backend import attention_of
from components.models.base.reference import BaseReference
from components.models.shared_base import SharedBase
from components.records.events import Progress
from components.training.co_training import CoTraining
from components.training.data_parallel import set_gradient_checkpointing
from components.training.loss import ScoredModel
from components.training.trainer import Trainer


def group_of(of, spec):
    """An empty group on the base that trials of this kind have."""
    return CoTraining(SharedBase(of.warm.load(base_variant(of.model, spec))))


def trainer_of(of, group, spec):
    """A trial as a session starts it, on a model of the group's base. It has not joined yet."""
    model = group.base.add(spec.method, spec.seed)
    with group.base.alone(model):
        scored = ScoredModel(model, precision=spec.precision, attention=attention_of(model), device=of.workers.device)
        spec = of._with_packing(scored, spec)
        set_gradient_checkpointing(model, spec)
        base = BaseReference(
            model=of.model.for_trial(spec).model_copy(update={"attention": scored.attention}),
            digest=of.base.digest,
            chat_format=of.base.chat_format,
        )
        return Trainer(spec, scored, of.data, of.workers, base, of.rungs)


def joined(of, group, spec):
    trainer = trainer_of(of, group, spec)
    group.join(trainer)
    return trainer


def weights_in(group, trainer):
    with group.alone(trainer):
        return {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}


def reports_together(group, trainers):
    """All reports of all members, each of whom leaves when it is done."""
    found: dict[Trainer, list[Progress]] = {trainer: [] for trainer in trainers}
    while group.members:
        for trainer, progress in group.advance({}).items():
            found[trainer].append(progress)
            if progress.done:
                group.leave(trainer)
    return [found[trainer] for trainer in trainers]
