"""The product's memory plan of a deep model, from dry runs of a few of its layers: a dry run of all takes many seconds."""

from __future__ import annotations

import copy

from transformers import PreTrainedConfig

from components.experiment.spec import ModelSpec, TrialSpec
from components.planning.dry_run import MicroBatch, dry_run_step
from components.planning.memory import MemoryPlan, WorkerGroup, memory_plan

FEW, MORE = 2, 4  # layers: each part of the plan is drawn on from these two, in a straight line


def sampled_plan(
    config: PreTrainedConfig,
    model: ModelSpec,
    spec: TrialSpec,
    batch: MicroBatch,
    *,
    evaluated: MicroBatch,
    on_gpu: bool,
) -> MemoryPlan:
    """The plan of one worker. With MORE layers or less it is the product's own."""

    def plan(layers: int) -> MemoryPlan:
        sampled = copy.deepcopy(config)
        sampled.num_hidden_layers = layers
        dry_run = dry_run_step(sampled, model, spec, batch, evaluated=evaluated)
        return memory_plan(dry_run, spec, WorkerGroup(on_gpu=on_gpu))

    if config.num_hidden_layers <= MORE:
        return plan(config.num_hidden_layers)
    few, more = plan(FEW), plan(MORE)
    further = (config.num_hidden_layers - MORE) / (MORE - FEW)
    parts = {name: round(more.parts[name] + further * (more.parts[name] - few.parts[name])) for name in more.parts}
    return MemoryPlan(device=more.device, fullest_in=more.fullest_in, parts=parts)
