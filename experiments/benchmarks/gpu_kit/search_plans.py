"""plan.py of every experiment file, and of the smoke search with the price of the card at hand."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from components.experiment.load_experiment import load_experiment
from components.models.chatglm.tiny_model import make_tiny
from components.planning.branch_plan import NodeFit
from components.planning.experiment_plan import ExperimentPlan
from components.planning.instance_types import load_node_table
from components.storage.size import GB
from experiments.benchmarks.gpu_kit.cases import Case
from experiments.benchmarks.gpu_kit.checks import Check, failed, passed_if, skipped
from experiments.benchmarks.gpu_kit.search_recording import ROOT
from experiments.benchmarks.gpu_kit.settings import Settings
from workflows import plan
from workflows.cli import Exit

EXPERIMENTS = ROOT / "experiments"
PLAN_SECONDS = 20.0  # for a plan of a 6B's shape on a slow machine
PRICE = "plan.py gpu_smoke.yaml --calibrate: it finds this card, and says what the search costs on it"
# The sizes of ChatGLM3-6B in its config.json.
CHATGLM3_6B = {
    "num_layers": 28, "hidden_size": 4096, "ffn_hidden_size": 13696, "num_attention_heads": 32, "kv_channels": 128,
    "multi_query_group_num": 2, "padded_vocab_size": 65024, "seq_length": 8192,
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """A run of plan.py: its status, its plan (None: it made none), and all that it said to people."""

    status: int
    plan: ExperimentPlan | None
    said: str

    def end(self) -> str:
        """On a line, for one that did not make a plan."""
        return f"status {self.status}: {' '.join(self.said.split())[:200]}"


def every_file(settings: Settings) -> Iterator[Case]:
    """An experiment is planned, by the sizes of its model alone; another YAML file (of a cluster) is refused as bad input."""
    folder = settings.scratch / "plans"
    tiny = folder / "tiny"
    make_tiny(tiny)
    six = tiny if settings.tiny else config_of_6b(tiny, folder / "chatglm3-6b")
    for file in sorted(EXPERIMENTS.rglob("*.yaml")):
        is_experiment = file.parent == EXPERIMENTS
        asked = f"plan.py {file.relative_to(ROOT)}: {'a plan' if is_experiment else 'refused, for it is no experiment'}"
        answer = (
            partial(planned, asked, file, folder, six=six, other=tiny)
            if is_experiment
            else partial(refused, asked, file)
        )
        yield asked, answer, PLAN_SECONDS


def planned(asked: str, file: Path, folder: Path, *, six: Path, other: Path) -> Iterator[Check]:
    """Its own model is not here: one of the 6B's shape takes its place where it is ChatGLM3-6B, else a small one."""
    model = six if "chatglm3-6b" in load_experiment(file).model.path else other
    ran = run_plan(file, f"model.path={model}", f"storage.path={folder / 'runs'}")
    if ran.plan is None:
        yield failed(asked, ran.end())
        return
    branches = ran.plan.branches
    sizes = ", ".join(f"{branch.branch} {branch.memory.total / GB:.2f} GB" for branch in branches)
    fit = [{fit.node for fit in branch.fits if fit.fits} for branch in branches]
    places = ", ".join(sorted(set.intersection(*fit))) or "nowhere"
    yield passed_if(ran.status == Exit.DONE, asked, f"{sizes}; all fit on: {places}")


def refused(asked: str, file: Path) -> Iterator[Check]:
    ran = run_plan(file)
    yield passed_if(ran.status == Exit.BAD_INPUT and "field required" in ran.said, asked, ran.end())


def price_of_card(settings: Settings, file: Path, model: Path, card: str) -> Iterator[Check]:
    """The plan of the smoke search after a few real steps of each branch on this card."""
    nodes = [name for name, node in load_node_table().nodes.items() if node.is_of(card)]
    if not nodes:
        yield skipped(PRICE, f"no machine of components/planning/nodes.yaml has a {card}")
        return
    storage = f"storage.path={settings.scratch / 'plans' / 'runs'}"
    yield priced(run_plan(file, f"model.path={model}", storage, calibrate=True), nodes[0], card)


def priced(ran: Ran, node: str, card: str) -> Check:
    if ran.plan is None or ran.status != Exit.DONE:
        return failed(PRICE, ran.end())
    seen, holds = [], True
    for branch in ran.plan.branches:
        fit = next((each for each in branch.fits if each.node == node), NodeFit(node=node, room_bytes=0, short_bytes=1))
        measured = branch.calibration
        if measured is None or fit.hours is None or fit.dollars is None:
            holds, words = False, "not measured" if measured is None else "no price"
        else:
            row = [line for line in ran.said.splitlines() if line.split()[:2] == [branch.branch, node]]
            holds = holds and measured.device == card and fit.fits and fit.dollars.high > 0 and len(row) == 1
            words = f"{measured.tokens_per_second:,.0f} tokens/s, {fit.hours.high:.2g} hours, ${fit.dollars.high:.2g}"
        seen.append(f"{branch.branch}: {words}")
    return passed_if(holds, PRICE, f"{'; '.join(seen)} on {node}")


def run_plan(file: Path, *changes: str, calibrate: bool = False) -> Ran:
    """Runs the program in this process: its imports take longer than a plan."""
    words = [str(file), "--json", *(["--calibrate"] if calibrate else [])]
    words += [word for change in changes for word in ("--set", change)]
    out, said = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(said):
        try:
            status = int(plan.main(words))
        except SystemExit as end:
            status = int(end.code or 0)
    lines = out.getvalue().splitlines()
    made = ExperimentPlan.model_validate(json.loads(lines[-1])) if lines else None
    return Ran(status=status, plan=made, said=said.getvalue())


def config_of_6b(tiny: Path, directory: Path) -> Path:
    """A directory of ChatGLM3-6B's shape without weights, which a plan does not read; the tokenizer is the tiny one's."""
    directory.mkdir(parents=True)
    config = json.loads((tiny / "config.json").read_text(encoding="utf-8"))
    (directory / "config.json").write_text(json.dumps(config | CHATGLM3_6B), encoding="utf-8")
    shutil.copy(tiny / "tokenizer.model", directory)
    return directory
