"""Decides what an experiment leaves to the model and the machine: precision, attention, packing, and how trees are laid out.

The decision is made when a search is opened, and again when it is resumed or planned: everything after it has an experiment
that says what is done, and nothing is found out in a worker.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedConfig

from components.data.layout import Layout
from components.errors import InputError
from components.experiment.experiment_errors import ExperimentError, Problem
from components.experiment.precisions import AUTO, precisions, settled_value, with_precisions
from components.experiment.space import branches_of, corner_trials
from components.experiment.spec import FLASH_ATTENTION, Dtype, ExperimentSpec, LoraMethod, TrialSpec
from components.models.attention_backend import has_sdpa, is_usable, usable_attention
from components.models.precision import fast_on_cpu, fast_on_gpu
from components.models.shared_base import why_not_shared
from components.training.model_abilities import ModelAbilities, probe_model


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSettings:
    """`experiment` is the one that was asked for, without any `auto`. `sentence` says the decision to people.

    `precisions` is what `precision: auto` comes to, by branch.
    """

    experiment: ExperimentSpec
    precisions: Mapping[str, Dtype]
    layout: Layout
    sentence: str


def abilities_for(experiment: ExperimentSpec, config: PreTrainedConfig) -> ModelAbilities:
    """Tries the model with its attention; where that is `auto`, with sdpa if it has that, else with eager.

    Raises InputError if the model cannot be trained, and ExperimentError for all settings that it does not support.
    """
    model = experiment.model
    attention: str = model.attention
    if attention == "auto":
        attention = usable_attention("auto", config)
    elif attention == "sdpa" and not has_sdpa(config):
        text = f"a {config.model_type} has no sdpa; set model.attention: auto"
        raise ExperimentError([Problem(location="model.attention", text=text)])
    try:
        abilities = probe_model(config, attention, longest=experiment.data.max_tokens)
    except ValueError as error:
        raise InputError(f"model.path={model.path}: {error}") from None
    found = (*_problems(experiment, abilities, config.model_type), *_sharing_problems(experiment, config))
    problems = {str(problem): problem for problem in found}
    if problems:
        raise ExperimentError(list(problems.values()))
    return abilities


def settle(
    experiment: ExperimentSpec, config: PreTrainedConfig, abilities: ModelAbilities, *, has_trees: bool
) -> ModelSettings:
    """Makes the decision. `has_trees`: some conversations of the data are trees, which flash attention cannot see."""
    decided = precisions_here(experiment)
    written, experiment = experiment, with_precisions(experiment, decided)
    if experiment.model.attention == "auto" and not has_trees and _all_can_use_flash(experiment, abilities):
        abilities = probe_model(config, FLASH_ATTENTION, longest=experiment.data.max_tokens)
    settled = experiment.model_copy(
        update={
            "model": experiment.model.model_copy(update={"attention": abilities.attention}),
            "trial": _with_packing(experiment.trial, abilities.packs),
            "search": experiment.search.model_copy(
                update={"space": _space_with_packing(experiment.search.space, abilities.packs)}
            ),
        }
    )
    return ModelSettings(
        experiment=settled,
        precisions=decided,
        layout=abilities.layout,
        sentence=", ".join([_precision(written, settled), *_model_decisions(settled, abilities, has_trees)]),
    )


def precisions_here(experiment: ExperimentSpec) -> dict[str, Dtype]:
    """Returns what `precision: auto` comes to in each branch, as far as this machine can say (_all_can_use_flash)."""
    return precisions(experiment, on_cpu=fast_on_cpu(), on_gpu=fast_on_gpu())


def _problems(experiment: ExperimentSpec, abilities: ModelAbilities, kind: str) -> Iterator[Problem]:
    attention = abilities.attention
    if attention == FLASH_ATTENTION and not abilities.has_flash:
        yield Problem(location="model.attention", text=f"a {kind} has no {FLASH_ATTENTION}; set model.attention: auto")
    for name, trial in _trials(experiment):
        location = f"search.space.{name}"
        if trial.batch.packing is True and not abilities.packs:
            text = f"batch.packing: true, but in a {kind} {abilities.why_not_packed}; set batch.packing: auto"
            yield Problem(location=location, text=text)
        if trial.gradient_checkpointing and not abilities.checkpoints:
            text = f"a {kind} cannot recompute its activations; set gradient_checkpointing: false"
            yield Problem(location=location, text=text)
        if experiment.resources.of(trial.method).parallel == "fsdp" and not abilities.shards:
            text = f"a {kind} does not say what its layers are, so it cannot be sharded; set parallel: ddp"
            yield Problem(location=f"resources.{trial.method.kind}", text=text)


def _sharing_problems(experiment: ExperimentSpec, config: PreTrainedConfig) -> Iterator[Problem]:
    """Each way of adapting the model is tried once: ranks make no difference."""
    known: dict[str, str] = {}
    for name, trial in _trials(experiment):
        method, together = trial.method, experiment.workers_of(trial.method).trials_at_once
        if not isinstance(method, LoraMethod) or together == 1:
            continue
        way = method.model_copy(update={"rank": 1}).model_dump_json()
        if way not in known:
            known[way] = why_not_shared(config, method)
        if known[way]:
            text = f"search.trials_per_slot: {together}: {known[way]}: set it to 1"
            yield Problem(location=f"search.space.{name}", text=text)


def _trials(experiment: ExperimentSpec) -> Iterator[tuple[str, TrialSpec]]:
    for branch in branches_of(experiment).values():
        for trial in corner_trials(experiment, branch):
            yield branch.name, trial


def _all_can_use_flash(experiment: ExperimentSpec, abilities: ModelAbilities) -> bool:
    """Only where this machine can: workers cannot be asked before the first has started, and most are like it then."""
    return (
        abilities.has_flash
        and is_usable(FLASH_ATTENTION)
        and all(
            trial.precision == "bf16" and experiment.resources.of(trial.method).gpus_per_worker > 0
            for _, trial in _trials(experiment)
        )
    )


def _with_packing(trial: TrialSpec, packs: bool) -> TrialSpec:
    """Leaves `auto` where rows can be packed: a worker whose kernels let them leak, which is not seen here, packs none."""
    if trial.batch.packing != "auto" or packs:
        return trial
    return trial.model_copy(update={"batch": trial.batch.model_copy(update={"packing": False})})


def _space_with_packing(space: Mapping[str, Mapping[str, Any]], packs: bool) -> dict[str, dict[str, Any]]:
    settled = {name: dict(tree) for name, tree in space.items()}
    for tree in () if packs else settled.values():
        if isinstance(batch := tree.get("batch"), Mapping) and "packing" in batch:
            tree["batch"] = {**batch, "packing": settled_value(batch["packing"], False)}
    return settled


def _precision(written: ExperimentSpec, settled: ExperimentSpec) -> str:
    found = dict.fromkeys(trial.precision for _, trial in _trials(settled))
    slow = "fp32" in found and any(trial.precision == AUTO for _, trial in _trials(written))
    return f"precision {' or '.join(found)}{' (no instructions for bf16 here)' if slow else ''}"


def _model_decisions(settled: ExperimentSpec, abilities: ModelAbilities, has_trees: bool) -> list[str]:
    packing = {trial.batch.packing is not False for _, trial in _trials(settled)}  # True, or `auto` where they can be
    rows = (
        "rows packed"
        if packing == {True}
        else "rows not packed"
        if packing == {False}
        else "rows packed in some trials"
    )
    why = f" ({abilities.why_not_packed})" if True not in packing and abilities.why_not_packed else ""
    parts = [f"attention {abilities.attention}", f"{rows}{why}"]
    if has_trees and abilities.takes_trees:
        parts.append("each conversation in one pass, whatever its template rewrites")
    elif has_trees:
        parts.append(f"what a template rewrites in rows of its own ({abilities.why_no_trees})")
    return parts
