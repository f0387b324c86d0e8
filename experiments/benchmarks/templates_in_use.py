"""Whether champions end their turns: a small search on SmolLM2-135M-Instruct with a chat template that it never saw.

    python experiments/benchmarks/templates_in_use.py --write experiments/benchmarks/templates_in_use.md

Each template is one of which most tools train another text than the model sees in use: one shows only the newest thought,
and one writes nothing behind an answer, so that the next role's token is the stop. The search is the real tune.py on the
quickstart's conversations (for the first with thoughts), with two trials. Then its probes are asked of the champion three
ways: in this process, through MLflow (pyfunc), and by chat.py. Some eight minutes each on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory

import mlflow

import components as turnwise
from components.experiment.spec import ModelSpec
from components.models.base.load_base import resolve_model

ROOT = Path(__file__).parents[2]
DATA, PROBES = ROOT / "experiments/data/quickstart.jsonl", ROOT / "experiments/data/quickstart_probes.jsonl"
LIMIT_S = 1800  # of one search
MAX_NEW_TOKENS = 120
TEMPLATES = Path(__file__).with_name("chat_templates")


@dataclass(frozen=True, kw_only=True)
class Case:
    name: str
    file: str
    thinks: bool


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """`stopped`: replies that ended themselves, by way of asking. `example` is one of them."""

    champion: str
    stopped: Mapping[str, int]
    asked: int
    example: str


CASES = (
    Case(name="only the newest thought is shown", file="only_newest_thought.jinja", thinks=True),
    Case(name="the next role's token is the stop", file="next_role_stops.jinja", thinks=False),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", type=Path, metavar="FILE", help="the table, as Markdown")
    parser.add_argument("--only", choices=["thinking", "next-role"], help="one of the two templates")
    arguments = parser.parse_args()
    chosen = [case for case in CASES if arguments.only in (None, "thinking" if case.thinks else "next-role")]
    outcomes = {}
    for case in chosen:
        with TemporaryDirectory(prefix="turnwise-templates-") as folder:
            outcomes[case.name] = run(case, Path(folder))
        print(case.name, outcomes[case.name], flush=True)
    if arguments.write:
        arguments.write.write_text(page(outcomes), encoding="utf-8")
    return 0 if all(sum(one.stopped.values()) == 3 * one.asked for one in outcomes.values()) else 1


def run(case: Case, folder: Path) -> Outcome:
    model = folder / "model"
    copy_with_template(resolve_model(ModelSpec(path="smollm2-135m-instruct")), model, TEMPLATES / case.file)
    data = folder / "data.jsonl"
    data.write_text("".join(f"{line}\n" for line in records(thinks=case.thinks)), encoding="utf-8")
    champion = search(case, folder, model, data)
    questions = [json.loads(line)["messages"] for line in PROBES.read_text(encoding="utf-8").splitlines()]
    tracking = f"sqlite:///{folder}/mlflow.db"
    loaded = turnwise.load_model("models:/in-use@champion", tracking=tracking)
    replies = [loaded.reply(question, max_new_tokens=MAX_NEW_TOKENS) for question in questions]
    return Outcome(
        champion=champion,
        stopped={
            "in this process": sum(reply.stopped for reply in replies),
            "through MLflow": sum(finish == "stop" for finish in through_mlflow(tracking, questions)),
            "by chat.py": sum(
                by_chat(tracking, question[-1]["content"], reply.text)
                for question, reply in zip(questions, replies, strict=True)
            ),
        },
        asked=len(questions),
        example=replies[0].text,
    )


def copy_with_template(source: Path, target: Path, template: Path) -> None:
    """Copies a model's directory, its weights as a link."""
    target.mkdir()
    for file in source.iterdir():
        if file.suffix == ".safetensors":
            (target / file.name).symlink_to(file)
        elif not file.name.startswith("."):
            shutil.copy(file, target)
    shutil.copy(template, target / "chat_template.jinja")


def records(*, thinks: bool) -> list[str]:
    """Returns the quickstart's conversations; if it thinks, with a short thought before each answer."""
    lines = [json.loads(line) for line in DATA.read_text(encoding="utf-8").splitlines()]
    for record in lines:
        for before, message in zip(record["messages"], record["messages"][1:], strict=False):
            if thinks and message["role"] == "assistant":
                message["reasoning_content"] = f"They say: {before['content'][:40]} I answer, then name a next step."
    return [json.dumps(record, ensure_ascii=False) for record in lines]


def search(case: Case, folder: Path, model: Path, data: Path) -> str:
    """Returns the line in which tune.py names the champion. Raises RuntimeError if it ends without one."""
    settings = {
        "name": "in-use", "model.path": model, "data.train": data, "data.max_tokens": 384, "search.trials": 2,
        "storage.path": folder / "runs", "tracking.uri": f"sqlite:///{folder}/mlflow.db", "registry.name": "in-use",
    }  # fmt: skip
    told = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    command = [sys.executable, "workflows/tune.py", "experiments/quickstart.yaml", *told]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    line = next((line for line in ended.stdout.splitlines() if line.startswith("Champion")), None)
    if ended.returncode != 0 or line is None:
        raise RuntimeError(f"{case.name}: status {ended.returncode}\n{ended.stdout[-3000:]}\n{ended.stderr[-3000:]}")
    return line


def through_mlflow(tracking: str, questions: list[list[dict[str, str]]]) -> list[str]:
    """Returns how each reply ended."""
    mlflow.set_tracking_uri(tracking)
    model = mlflow.pyfunc.load_model("models:/in-use@champion")
    asked = ({"messages": question, "max_tokens": MAX_NEW_TOKENS, "temperature": 0.0} for question in questions)
    return [model.predict(request)["choices"][0]["finish_reason"] for request in asked]


def by_chat(tracking: str, question: str, wanted: str) -> bool:
    """Whether chat.py prints the same reply and ends it, with room for twice as many tokens."""
    room = str(2 * MAX_NEW_TOKENS)
    command = [sys.executable, "workflows/chat.py", "models:/in-use@champion", "--tracking-uri", tracking]
    command += ["--message", question, "--max-new-tokens", room]
    ended = subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
        env={**os.environ, "LC_ALL": "C.UTF-8"},
    )
    return ended.stdout.strip() == wanted.strip()


def page(outcomes: Mapping[str, Outcome]) -> str:
    rows = [
        f"| {name} | {', '.join(f'{count} of {one.asked} {way}' for way, count in one.stopped.items())} | {one.champion} |"
        for name, one in outcomes.items()
    ]
    examples = [f"{name}:\n\n```\n{one.example}\n```\n" for name, one in outcomes.items()]
    return "\n".join(
        [
            "# Champions end their turns",
            "",
            f"templates_in_use.py, {date.today()}: SmolLM2-135M-Instruct with templates that it never saw, two trials each on"
            " the quickstart's conversations.",
            "",
            "| template | replies that ended themselves | search |",
            "|---|---|---|",
            *rows,
            "",
            *examples,
        ]
    )


if __name__ == "__main__":
    raise SystemExit(main())
