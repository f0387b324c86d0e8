"""Whether one bracket over LoRA and full fine-tunes stops trials that a bracket per branch would have kept.

    python experiments/benchmarks/asha_brackets.py --curves /tmp/curves.json --write experiments/benchmarks/asha_brackets.md

Every trial of the quickstart is trained to the end of its budget, one after the other, and its eval loss at each evaluation
is kept in --curves (a run that was ended goes on from there). Then searches are replayed: trials start in the order of the
search as places become free, take the time they took, and report to the scheduler's own Halving, which may stop them.
"""

from __future__ import annotations

import argparse
import heapq
import json
import os
import platform
import random
import shlex
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

import torch
import transformers

from components.cluster.scheduling.successive_halving import HalvingRule
from components.conversations.chat_formats import load_chat_format
from components.conversations.tokenizers.load_tokenizer import load_tokenizer
from components.data.prepare import prepare_experiment
from components.experiment.draw_trials import sample_trials
from components.experiment.load_experiment import load_experiment
from components.experiment.precisions import with_precisions
from components.experiment.report_marks import largest_warmup
from components.experiment.spec import AshaSpec, ExperimentSpec, TrialSpec
from components.models.base.context import context_of
from components.models.base.load_base import resolve_model
from components.models.base.reference import BaseReference
from components.models.digest import model_digest
from components.records.events import Progress, TrialHistory, TrialStarted
from components.storage.open_folder import folder_at
from components.training.model_settings import precisions_here
from components.training.training_data import TrainingData
from components.training.trial_runner import TrialRunner
from components.training.workers import OneWorker

EXPERIMENT = Path(__file__).parent.parent / "quickstart.yaml"
CPUS = 2
ORDERS = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """One trial to the end of its budget. `reports`: (target tokens, eval loss in nats per target, seconds of training)."""

    number: int
    branch: str
    varied: dict[str, object]
    reports: tuple[tuple[int, float, float], ...]

    @property
    def best(self) -> float:
        return min(loss for _, loss, _ in self.reports)


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """What became of one search. `best`: by branch, the lowest loss that was reported. `spent`: a share of all budgets."""

    stopped: tuple[int, ...]
    best: dict[str, float]
    spent: float


# ------------------------------------------------------------------------------------------------------------- training


def train(experiment: ExperimentSpec, folder: Path, known: Sequence[Curve]) -> Iterator[Curve]:
    """Every trial that is not known yet, in the order of the search. No checkpoint is written."""
    directory = resolve_model(experiment.model)
    pad_token_id = load_chat_format(load_tokenizer(directory), experiment.format_spec).pad_token_id
    data = TrainingData(
        dataset=prepare_experiment(experiment, directory, context=context_of(directory)),
        max_tokens=experiment.data.max_tokens,
        pad_token_id=pad_token_id,
    )
    base = BaseReference(model=experiment.model, digest=model_digest(directory), chat_format=experiment.format_spec)
    session = TrialRunner(experiment.model, data, OneWorker(), base, folder_at(folder / "checkpoints"))
    for number, trial in enumerate(sample_trials(experiment), start=1):
        if number not in {curve.number for curve in known}:
            session.start(str(number), trial.spec)
            reports = tuple(_reports(session))
            yield Curve(number=number, branch=trial.branch, varied=dict(trial.varied), reports=reports)


def _reports(session: TrialRunner) -> Iterator[tuple[int, float, float]]:
    done = False
    while not done:
        progress = session.running.advance()
        assert progress is not None  # nobody interrupts it
        yield progress.target_tokens, progress.eval_loss, progress.seconds
        done = progress.done


# --------------------------------------------------------------------------------------------------------------- replay_order


def replay_order(order: Sequence[Curve], halving: HalvingRule, workers: dict[str, int], places: int = CPUS) -> Replay:
    """A search over these trials on so many places. A trial on twice the workers takes half the time."""
    histories: dict[str, TrialHistory] = {}
    waiting, running, free, now = list(order), [], places, 0.0
    stopped: list[int] = []
    tokens = 0
    while waiting or running:
        while (curve := next((each for each in waiting if workers[each.branch] <= free), None)) is not None:
            waiting.remove(curve)
            free -= workers[curve.branch]
            histories[str(curve.number)] = TrialHistory(started=_started(curve))
            heapq.heappush(running, (now + curve.reports[0][2] / workers[curve.branch], curve.number, 0, curve))
        now, _, index, curve = heapq.heappop(running)
        target_tokens, loss, seconds = curve.reports[index]
        history, is_last = histories[str(curve.number)], index + 1 == len(curve.reports)
        report = _progress(index + 1, target_tokens, loss)
        stops = not is_last and halving.stops(histories, history.trial_id, report)
        histories[history.trial_id] = history.model_copy(update={"reports": (*history.reports, report)})
        if stops or is_last:
            stopped += [curve.number] if stops else []
            tokens += target_tokens
            free += workers[curve.branch]
        else:
            later = now + (curve.reports[index + 1][2] - seconds) / workers[curve.branch]
            heapq.heappush(running, (later, curve.number, index + 1, curve))
    best: dict[str, float] = {}
    for history in histories.values():
        lowest = min(report.eval_loss for report in history.reports)
        best[history.started.branch] = min(lowest, best.get(history.started.branch, lowest))
    return Replay(
        stopped=tuple(sorted(stopped)), best=best, spent=tokens / sum(curve.reports[-1][0] for curve in order)
    )


def _started(curve: Curve) -> TrialStarted:
    return TrialStarted(
        trial_id=str(curve.number),
        number=curve.number,
        branch=curve.branch,
        spec=TrialSpec(),
        workers=1,
        varied=curve.varied,
        time=0.0,
    )


def _progress(step: int, target_tokens: int, loss: float) -> Progress:
    return Progress(
        step=step,
        target_tokens=target_tokens,
        epoch=0.0,
        train_loss=0.0,
        eval_loss=loss,
        eval_num_targets=1,
        tokens_per_second=0.0,
        seconds=0.0,
    )


def orders(curves: Sequence[Curve], *, wide_first: bool) -> Iterator[list[Curve]]:
    """As the search has it, then ORDERS others, in which the trials of each branch have changed places."""
    generator = random.Random(0)
    by_branch = {name: [curve for curve in curves if curve.branch == name] for name in _branches(curves)}
    for number in range(ORDERS + 1):
        turns = [list(branch) for branch in by_branch.values()]
        if number:
            for branch in turns:
                generator.shuffle(branch)
        if wide_first:
            yield [curve for name in ("full", "lora") for curve in turns[list(by_branch).index(name)]]
        else:
            yield [curve for turn in zip(*turns, strict=True) for curve in turn]


def _branches(curves: Sequence[Curve]) -> list[str]:
    return list(dict.fromkeys(curve.branch for curve in curves))


# ------------------------------------------------------------------------------------------------------------ the tables


def curves_table(curves: Sequence[Curve]) -> str:
    evaluations = len(curves[0].reports)
    lines = [
        f"| trial | branch | {' | '.join(f'evaluation {number}' for number in range(1, evaluations + 1))} |",
        "|---|---|" + "---|" * evaluations,
    ]
    for curve in curves:
        losses = " | ".join(f"{loss:.4f}" for _, loss, _ in curve.reports)
        lines.append(f"| {curve.number} | {curve.branch} | {losses} |")
    return "\n".join(lines)


def policies_table(curves: Sequence[Curve], experiment: ExperimentSpec, budget: int) -> str:
    lines = [
        "| workers of full | one in | brackets | stopped in the search's order | spent | regret | regret: "
        + " | regret: ".join(_branches(curves))
        + " |",
        "|---|---|---|---|---|---|" + "---|" * len(_branches(curves)),
    ]
    for full_workers in (1, 2):
        for factor in (3, 2):
            for brackets in ("shared", "per_branch"):
                asha = AshaSpec(reduction_factor=factor, brackets=brackets)
                halving = HalvingRule.of(asha, asha.rungs(budget, largest_warmup(experiment)))
                workers = {"lora": 1, "full": full_workers}
                replays = [
                    replay_order(order, halving, workers) for order in orders(curves, wide_first=full_workers > 1)
                ]
                lines.append(_policy_row(curves, replays, [str(full_workers), str(factor), brackets]))
    return "\n".join(lines)


def _policy_row(curves: Sequence[Curve], replays: Sequence[Replay], policy: list[str]) -> str:
    """Regret: how far the best that was reported is above the best that would have been, in nats; mean over the orders."""
    stopped = {
        name: sum(curve.number in replays[0].stopped for curve in curves if curve.branch == name)
        for name in _branches(curves)
    }
    wanted = {name: min(curve.best for curve in curves if curve.branch == name) for name in stopped}
    regrets = {name: statistics.mean(each.best[name] - wanted[name] for each in replays[1:]) for name in wanted}
    overall = statistics.mean(min(each.best.values()) - min(wanted.values()) for each in replays[1:])
    cells = [
        *policy,
        ", ".join(f"{count} {name}" for name, count in stopped.items()),
        f"{statistics.mean(each.spent for each in replays[1:]):.0%}",
        f"{overall:.4f}",
        *(f"{regret:.4f}" for regret in regrets.values()),
    ]
    return f"| {' | '.join(cells)} |"


def page(curves: Sequence[Curve], experiment: ExperimentSpec, budget: int, load: float) -> str:
    """load: the machine's load average when the page was made."""
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    return "\n\n".join(
        [
            "# ASHA with one bracket for all branches, and with one for each",
            f"{len(curves)} trials of {experiment.model.path} in the quickstart's space (changes, if any, are in the command"
            f" below), each trained to the end of {budget:,} target tokens on 1 worker."
            " Eval loss, in nats per target, at equal target tokens:",
            curves_table(curves),
            f"Searches over them on {CPUS} CPUs, replayed: first the order of the search itself (which trials are stopped),"
            f" then {ORDERS} in which the trials of each branch have changed places (all other columns, means). Spent: share"
            " of the target tokens of all trials. Regret: how far the lowest reported loss is above the lowest of all curves,"
            " in nats, over both branches and in each. With 1 worker the branches take turns; with 2 full trials come first,"
            " one at a time, in half the time, and LoRA trials after them.",
            policies_table(curves, experiment, budget),
            f"{date.today()}, {os.cpu_count()} cores ({platform.machine()}), load {load:.1f}, no GPU used; {versions}.",
            f"Made by `python {shlex.join(sys.argv)}`.",
        ]
    )  # fmt: skip


def parsed(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--curves", type=Path, required=True, help="JSON: what is trained already, and what will be")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change the quickstart")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the page there, too")
    return parser.parse_args(words)


def main() -> None:
    arguments = parsed()
    known = read_curves(arguments.curves)
    with tempfile.TemporaryDirectory(prefix="asha-brackets-") as folder:
        experiment = load_experiment(EXPERIMENT, [*arguments.set, f"storage.path={folder}"])
        experiment = with_precisions(experiment, precisions_here(experiment))
        for curve in train(experiment, Path(folder), known):
            known.append(curve)
            arguments.curves.write_text(json.dumps([asdict(each) for each in known]), encoding="utf-8")
            print(f"trial {curve.number}, {curve.branch}: {curve.reports[-1][1]:.4f}", flush=True)
        directory = resolve_model(experiment.model)
        dataset = prepare_experiment(experiment, directory, context=context_of(directory))
        budget = experiment.trial.budget.in_target_tokens(dataset.train.total_targets)
    text = page(known, experiment, budget, os.getloadavg()[0])
    print(text)
    if arguments.write:
        arguments.write.write_text(text + "\n", encoding="utf-8")


def read_curves(file: Path) -> list[Curve]:
    if not file.exists():
        return []
    plain = json.loads(file.read_text(encoding="utf-8"))
    return [Curve(**{**each, "reports": tuple(tuple(report) for report in each["reports"])}) for each in plain]


if __name__ == "__main__":
    main()
