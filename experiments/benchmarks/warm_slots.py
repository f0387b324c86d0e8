"""One small search two ways on one local cluster: in warm slots, and by the documented one-TorchTrainer-per-trial pattern.

    python experiments/benchmarks/warm_slots.py --write experiments/benchmarks/warm_slots.md

Both ways run the same TrialSpecs with the same training code on the same 2 CPUs, and must end with equal losses. The
documented way is Ray's Tune-with-Train guide: a Tune function builds a TorchTrainer for its trial and calls fit(). It is
given what helps it: the function itself reserves no CPU, imports nothing it does not need and reports once, after fit(),
so that it neither takes a core from the workers nor waits for Tune. `--tuned` adds what the guide does not mention.
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import ray
import torch
import transformers
from ray import tune
from ray.tune import PlacementGroupFactory
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # where `experiments`, `tests` and `components` lie

from components.cluster.capacity.cluster_capacity import bundle
from components.cluster.ray_session import connected
from components.cluster.run_search import run_search
from components.cluster.slots.search_context import SearchContext
from components.cluster.slots.trial_config import KEY, TrialConfig
from components.conversations.chat_formats import load_chat_format
from components.conversations.tokenizers.load_tokenizer import load_tokenizer
from components.data.prepare import prepare
from components.experiment.draw_trials import sample_trials
from components.experiment.spec import ExperimentSpec
from components.models.base.load_base import resolve_model
from components.models.base.reference import BaseReference
from components.models.digest import model_digest
from components.records.events import TrialEvent, replay
from components.records.histories import TrialHistories
from experiments.benchmarks.slot_times import first_step_began, last_reports_by_slot

DATA = Path(__file__).parent.parent / "data" / "quickstart.jsonl"
MAX_DIFFERENCE = 1e-6  # between the final eval losses of one trial, in nats per target


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """One search, measured. All in seconds but `losses`, the last eval loss by trial number.

    work: of each trial, from its first step to its last report.
    cold: of each trial that had to start workers, what it cost beside its work: from its start to its first step, and from
        its last report to its end, but not waiting for room (Ray Train asks anew each minute; only its last wait is known).
        The process that Tune starts for the trial before all that is not in it.
    warm: of each later trial in a slot, from the last report of the one before to its own first step.
    """

    makespan: float
    losses: dict[int, float]
    work: tuple[float, ...]
    cold: tuple[float, ...]
    warm: tuple[float, ...] = ()


# ---------------------------------------------------------------------------------------------------------- warm slots


def in_warm_slots(context: SearchContext) -> Search:
    records: list[TrialEvent] = []
    began = time.time()
    histories = TrialHistories()
    histories.subscribe(records.append)
    run_search(context, histories)
    return search_of(records, makespan=time.time() - began)


def search_of(records: Sequence[TrialEvent], *, makespan: float) -> Search:
    histories = replay(records)
    work, cold, warm = [], [], []
    for last_reports in last_reports_by_slot(records).values():
        free_since = None
        for trial_id, last_report in last_reports.items():
            first_step = first_step_began(histories[trial_id])
            work.append(last_report - first_step)
            if free_since is None:
                cold.append(first_step - histories[trial_id].started.time)
            else:
                warm.append(first_step - free_since)
            free_since = last_report
    losses = {history.started.number: history.reports[-1].eval_loss for history in histories.values()}
    return Search(makespan=makespan, losses=losses, work=tuple(work), cold=tuple(cold), warm=tuple(warm))


# ---------------------------------------------------------------------------- one TorchTrainer per trial, as documented


def one_trainer_per_trial(context: SearchContext, *, max_concurrent_trials: int, tuned: bool) -> Search:
    # Something must be reserved for the function; a megabyte leaves both CPUs to the workers.
    trainable = tune.with_resources(
        tune.with_parameters(fit_one_trial, context=context, tuned=tuned), PlacementGroupFactory([{"memory": 2**20}])
    )
    configs = [
        TrialConfig(number=number, branch=trial.branch, varied=dict(trial.varied), spec=trial.spec).to_tune()
        for number, trial in enumerate(sample_trials(context.experiment), start=1)
    ]
    began = time.time()
    results = tune.Tuner(
        trainable,
        param_space={KEY: tune.grid_search([config[KEY] for config in configs])},
        tune_config=tune.TuneConfig(max_concurrent_trials=max_concurrent_trials, reuse_actors=tuned),
        run_config=tune.RunConfig(name="tune", storage_path=str(context.folder), verbose=0),
    ).fit()
    makespan = time.time() - began
    if results.errors:
        raise results.errors[0]
    metrics = {result.metrics["number"]: result.metrics for result in results}
    work = {number: trial["last_report"] - trial["first_step"] for number, trial in metrics.items()}
    return Search(
        makespan=makespan,
        losses={number: trial["eval_loss"] for number, trial in metrics.items()},
        work=tuple(work.values()),
        cold=tuple(
            trial["ended"] - trial["began"] - trial["waited"] - work[number] for number, trial in metrics.items()
        ),
    )


def fit_one_trial(config: dict[str, Any], context: SearchContext, tuned: bool) -> None:
    """The Tune trainable: one trial, one Train run."""
    began = time.time()
    if tuned:
        os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.1"  # how soon fit() sees that its workers have ended
    from ray.train import CheckpointConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    trial = TrialConfig.of(config)
    workers = context.experiment.resources.of(trial.spec.method)
    trial_id = tune.get_context().get_trial_id()
    result = TorchTrainer(
        train_one_trial,
        train_loop_config={"context": context, "spec": trial.spec, "workers": workers, "trial_id": trial_id},
        scaling_config=ScalingConfig(num_workers=workers.max_workers, resources_per_worker=bundle(workers)),
        run_config=RunConfig(
            name=trial_id,
            storage_path=str(context.folder / "trains"),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
        ),
    ).fit()
    tune.report({**result.metrics, "number": trial.number, "began": began, "ended": time.time()})


def train_one_trial(config: dict[str, Any]) -> None:
    """The train function: what a slot's workers do for a trial, with a Ray Train report where a slot answers a command."""
    from ray.train import Checkpoint, report
    from ray.util import get_current_placement_group, placement_group_table

    from components.cluster.slots.train_workers import workers_of_this_run
    from components.cluster.slots.worker import make_runner

    workers = workers_of_this_run(config["workers"])
    runner = make_runner(config["context"], workers)
    runner.start(config["trial_id"], config["spec"])
    placed = placement_group_table(get_current_placement_group())
    waited = placed["stats"]["end_to_end_creation_latency_ms"] / 1000
    first_step, done = None, False
    while not done:
        progress = runner.advance()
        first_step, done = first_step or progress.steps[0].time - progress.steps[0].seconds, progress.done
        times = {"waited": waited, "first_step": first_step, "last_report": time.time()}
        report(
            {"eval_loss": progress.eval_loss, **times},
            checkpoint=Checkpoint(str(progress.checkpoint)) if workers.worker_rank == 0 else None,
            delete_local_checkpoint_after_upload=True,
        )


# --------------------------------------------------------------------------------------------- what both have in common


def experiment_of(arguments: argparse.Namespace, folder: Path) -> ExperimentSpec:
    """Unequal trials: half of them LoRA on one worker, half full fine-tunes on two."""
    learning_rate = {"learning_rate": {"log_uniform": [1.0e-4, 1.0e-3]}}
    return ExperimentSpec.model_validate(
        {
            "name": "warm-slots",
            "model": {"path": arguments.model or str(tiny_model(folder / "model"))},
            "data": {"train": str(DATA), "max_tokens": 512},
            "trial": {
                "budget": {"epochs": arguments.epochs, "evaluations": 2},
                "batch": {"rows_per_step": 2, "rows_per_micro_batch": 2},
                "precision": "fp32",
            },
            "search": {
                "trials": arguments.trials,
                "scheduler": {"name": "none"},
                "space": {
                    "lora": {"method": {"rank": {"choice": [4, 8]}}, "optimizer": learning_rate},
                    "full": {"method": {"kind": "full"}, "optimizer": learning_rate},
                },
            },
            "resources": {"lora": {"workers": 1}, "full": {"workers": 2}},
            "storage": {"path": str(folder)},
        }
    )


def tiny_model(directory: Path) -> Path:
    """A random Llama of a few hundred thousand weights, with a byte-level tokenizer learnt from the data."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = ByteLevel(add_prefix_space=False), ByteLevelDecoder()
    special = ["<pad>", "<|im_start|>", "<|im_end|>"]
    alphabet = ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=1000, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train([str(DATA)], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=special[0], eos_token=special[2])
    fast.add_special_tokens({"additional_special_tokens": special[1:2]})
    fast.save_pretrained(directory)
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(fast), pad_token_id=0, eos_token_id=2, **sizes)).save_pretrained(
        directory
    )
    return directory


def context_of(experiment: ExperimentSpec, name: str) -> SearchContext:
    directory = resolve_model(experiment.model)
    dataset = prepare(
        experiment.data, model_path=directory, chat_format=experiment.format_spec, storage=experiment.folder
    )
    return SearchContext(
        experiment=experiment,
        search_id=name,
        folder=experiment.folder / name,
        prepared=dataset.directory,
        budget=experiment.trial.budget.in_target_tokens(dataset.train.total_targets),
        pad_token_id=load_chat_format(load_tokenizer(directory), experiment.format_spec).pad_token_id,
        base=BaseReference(model=experiment.model, digest=model_digest(directory), chat_format=experiment.format_spec),
    )


def measured(arguments: argparse.Namespace) -> list[tuple[Search, Search]]:
    """(warm slots, documented) of every repetition; each pair begins with the other one than the pair before."""
    how = {"max_concurrent_trials": arguments.max_concurrent_trials, "tuned": arguments.tuned}
    pairs = []
    with tempfile.TemporaryDirectory(prefix="warm-slots-") as folder, connected("local", num_cpus=2):
        experiment = experiment_of(arguments, Path(folder))
        for repetition in range(1, arguments.repetitions + 1):
            searches = {}
            for way in sorted(["slots", "trainers"], reverse=repetition % 2 == 0):
                context = context_of(experiment, f"{way}-{repetition}")
                searches[way] = in_warm_slots(context) if way == "slots" else one_trainer_per_trial(context, **how)
                print(f"repetition {repetition}, {way}: {searches[way].makespan:.1f} s", flush=True)
            check_equal(searches["slots"], searches["trainers"])
            pairs.append((searches["slots"], searches["trainers"]))
    return pairs


def check_equal(slots: Search, trainers: Search) -> None:
    """Raises AssertionError unless every trial ended with the same loss both ways."""
    assert slots.losses.keys() == trainers.losses.keys(), (slots.losses, trainers.losses)
    for number, loss in slots.losses.items():
        other = trainers.losses[number]
        assert abs(loss - other) <= MAX_DIFFERENCE, f"trial {number} ended at {loss} in a slot, at {other} without"


# ------------------------------------------------------------------------------------------------------------ the table


def table(pairs: Sequence[tuple[Search, Search]]) -> str:
    slots, trainers = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    ratios = [slow.makespan / fast.makespan for fast, slow in pairs]
    lines = [
        "| repetition | makespan in warm slots, s | with one TorchTrainer per trial, s | ratio |",
        "|---|---|---|---|",
    ]
    for number, ((fast, slow), ratio) in enumerate(zip(pairs, ratios, strict=True), start=1):
        lines.append(f"| {number} | {fast.makespan:.1f} | {slow.makespan:.1f} | {ratio:.2f} |")
    lines.append(f"| median | | | **{statistics.median(ratios):.2f}** |")
    difference = max(abs(fast.losses[number] - slow.losses[number]) for fast, slow in pairs for number in fast.losses)
    return "\n".join(
        [
            *lines,
            "",
            "| seconds | count | median | max |",
            "|---|---|---|---|",
            row("gap in a slot: from the last report of a trial to the first step of the next", slots, "warm"),
            row("fixed cost of the first trial of a slot", slots, "cold"),
            row("fixed cost of a trial with its own TorchTrainer", trainers, "cold"),
            row("work of a trial, from its first step to its last report, in a slot", slots, "work"),
            row("the same with its own TorchTrainer", trainers, "work"),
            "",
            f"The final eval losses of a trial differ by at most {difference:.1e} between the two ways.",
        ]
    )


def row(name: str, searches: Sequence[Search], field: str) -> str:
    seconds = [value for search in searches for value in getattr(search, field)]
    if not seconds:
        return f"| {name} | 0 | | |"
    return f"| {name} | {len(seconds)} | {statistics.median(seconds):.2f} | {max(seconds):.2f} |"


def page(arguments: argparse.Namespace, pairs: Sequence[tuple[Search, Search]], load: float) -> str:
    """load: the machine's load average before the run; well above 0, others were at work and the figures are rough."""
    model = arguments.model or "a random two-layer Llama"
    tuned = ", with reused Tune actors and health checks every 0.1 s instead of Ray's 2 s" if arguments.tuned else ""
    versions = f"ray {ray.__version__}, torch {torch.__version__}, transformers {transformers.__version__}"
    return "\n\n".join(
        [
            "# Warm slots against one TorchTrainer per trial",
            f"{arguments.trials} trials (half LoRA on 1 worker, half full on 2), {arguments.epochs:g} epochs, 2 reports each,"
            f" of {model}, on a local Ray cluster of 2 CPUs; both ways in one run, alternating. The documented way runs"
            f" at most {arguments.max_concurrent_trials} trials at once{tuned}; slots are admitted by resources alone.",
            f"{date.today()}, {os.cpu_count()} cores ({platform.machine()}), load {load:.1f} before, no GPU used; Python"
            f" {platform.python_version()}, {versions}.",
            table(pairs),
            f"Made by `python {shlex.join(sys.argv)}`.",
        ]
    )  # fmt: skip


def parsed(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--model", help="the base model; by default a random two-layer Llama made here")
    parser.add_argument("--trials", type=int, default=10, help="half LoRA, half full (default: 10)")
    parser.add_argument("--epochs", type=float, default=8.0, help="of every trial (default: 8)")
    parser.add_argument("--repetitions", type=int, default=2, help="of each way (default: 2)")
    parser.add_argument("--max-concurrent-trials", type=int, default=2, help="of the documented way (default: 2)")
    parser.add_argument("--tuned", action="store_true", help="quicken the documented way by settings of Ray's")
    parser.add_argument("--timeout", type=int, default=900, help="seconds after which to give up (default: 900)")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the table there, too")
    return parser.parse_args(words)


def main() -> None:
    arguments = parsed()
    signal.signal(signal.SIGALRM, give_up)
    signal.alarm(arguments.timeout)
    load = os.getloadavg()[0]
    text = page(arguments, measured(arguments), load)
    print(text)
    if arguments.write:
        arguments.write.write_text(text + "\n", encoding="utf-8")


def give_up(number: int, frame: object) -> None:
    raise TimeoutError("not done within --timeout seconds; the cluster ends with this error")


if __name__ == "__main__":
    main()
