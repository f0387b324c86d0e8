"""Describes what each branch of a search trains, found on a model without weights before anything starts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from transformers import PreTrainedConfig

from components.experiment.experiment_errors import ExperimentError, Problem
from components.experiment.space import Branch, branches_of, corner_trials
from components.experiment.spec import ExperimentSpec, FullMethod, LoraMethod
from components.models.adapters import attach_lora
from components.models.meta_tensors import empty_model
from components.models.modality_towers import unreached_towers
from components.models.target_modules import describe_adapters, describe_left_out


def describe_branch_training(experiment: ExperimentSpec, config: PreTrainedConfig) -> Mapping[str, str]:
    """Describes for each branch what its trials train or adapt, for every choice of target_modules.

    Raises ExperimentError with all names in target_modules that are not modules, and all methods that cannot be trained.
    """
    problems: dict[str, Problem] = {}
    found: dict[str, str] = {}
    for branch in branches_of(experiment).values():
        sentences: dict[str, None] = {}
        for method in _methods(experiment, branch):
            try:
                sentences[_sentence(config, method)] = None
            except ValueError as error:
                problem = Problem(location=f"search.space.{branch.name}", text=str(error))
                problems[str(problem)] = problem
        found[branch.name] = " | ".join(sentences)
    if problems:
        raise ExperimentError(list(problems.values()))
    return found


def _methods(experiment: ExperimentSpec, branch: Branch) -> Iterator[LoraMethod | FullMethod]:
    """Yields one method for each way of adapting the model; ranks and learning rates make no difference."""
    known = set()
    for trial in corner_trials(experiment, branch):
        method = trial.method
        kind: tuple[object, ...] = (method.kind,)
        if isinstance(method, LoraMethod):
            kind = (method.target_modules, method.dora, method.dropout > 0, method.quantize)
        if kind not in known:
            known.add(kind)
            yield method


def _sentence(config: PreTrainedConfig, method: LoraMethod | FullMethod) -> str:
    base = empty_model(config, dtype=torch.float32, attention="eager")
    towers = unreached_towers(base)
    aside = f" (nothing of {', '.join(towers)}, which no text reaches)" if towers else ""
    if isinstance(method, FullMethod):
        return f"trains every weight{aside}"
    left_out = describe_left_out(base, method)
    without = f", without {left_out}" if left_out else ""
    with torch.device("meta"):
        return f"adapts {describe_adapters(attach_lora(base, method))}{without}{aside}"
