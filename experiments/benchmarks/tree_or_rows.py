"""One pass over a conversation whose template shows only the newest thought, against a row for each turn.

    python experiments/benchmarks/tree_or_rows.py --write experiments/benchmarks/tree_or_rows.md

SmolLM2-135M-Instruct in float32, and conversations of 2, 5 and 20 turns in one process: the loss and its gradient both ways,
the tokens, and the time of a forward and backward pass as a ratio, after one that warms up. Separate rows are computed one
after the other, so none is padded. Some two minutes on two cores.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from components.conversations.chat_formats import load_chat_format
from components.conversations.messages import Conversation, Message
from components.conversations.tokenizers.load_tokenizer import load_tokenizer
from components.data.collate import collate
from components.data.rows import RowStore, rows_of
from components.data.token_store import Entry, TokenStore, write_store
from components.experiment.spec import ModelSpec
from components.models.base.load_base import load_base_model, resolve_model
from components.training.loss import ScoredModel

TEMPLATE = Path(__file__).with_name("chat_templates") / "only_newest_thought.jinja"
TURNS = (2, 5, 20)
MODEL = ModelSpec(path="smollm2-135m-instruct", dtype="fp32")


@dataclass(frozen=True, kw_only=True)
class Pass:
    tokens: int
    loss: float
    gradient: torch.Tensor
    seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", type=Path, metavar="FILE", help="the table, as Markdown")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    directory = resolve_model(MODEL)
    tokenizer = load_tokenizer(directory)
    tokenizer.chat_template = TEMPLATE.read_text(encoding="utf-8")
    chat_format = load_chat_format(tokenizer)
    scored = ScoredModel(load_base_model(MODEL), precision="fp32", attention="sdpa", device=torch.device("cpu"))
    lines: list[str] = []
    for turns in (TURNS[0], *TURNS):  # the first one warms up
        with TemporaryDirectory() as folder:
            entry = Entry(source="talk", rendered=chat_format.render(talk(turns)))
            write_store(Path(folder) / "talk.arrow", [entry])
            store = TokenStore(Path(folder) / "talk.arrow")
            tree, rows = (
                measure(scored, rows_of(store, separate=separate), chat_format.pad_token_id)
                for separate in (False, True)
            )
        lines.append(line_of(turns, tree, rows))
        print(lines[-1], flush=True)
    del lines[0]
    if arguments.write:
        arguments.write.write_text(page(lines), encoding="utf-8")


def talk(turns: int) -> Conversation:
    messages: list[Message] = []
    for number in range(turns):
        thought = (
            f"Day {number} has two ships. I count them, add those of the day before, and say when the next one comes."
        )
        question = f"How many ships passed until day {number}?"
        answer = f"{2 * number + 2} ships; the next one is due at dawn."
        messages += [
            Message(role="user", content=question),
            Message(role="assistant", content=answer, reasoning_content=thought),
        ]
    return Conversation(messages=tuple(messages))


def measure(scored: ScoredModel, store: RowStore, pad_token_id: int) -> Pass:
    batches = [collate(store, [(row,)], pad_token_id) for row in range(len(store))]
    scored.zero_grad()
    began, loss = time.perf_counter(), 0.0
    for batch in batches:
        summed = scored(batch)
        summed.backward()
        loss += float(summed.detach())
    seconds = time.perf_counter() - began
    gradient = torch.cat([parameter.grad.flatten() for parameter in scored.parameters() if parameter.grad is not None])
    return Pass(tokens=int(store.lengths.sum()), loss=loss, gradient=gradient, seconds=seconds)


def line_of(turns: int, tree: Pass, rows: Pass) -> str:
    gradient = float((tree.gradient - rows.gradient).norm() / rows.gradient.norm())
    return (
        f"| {turns} | {tree.tokens:,} | {rows.tokens:,} | {1 - tree.tokens / rows.tokens:.0%} |"
        f" {rows.seconds / tree.seconds:.1f} | {tree.loss:.5f} | {abs(tree.loss / rows.loss - 1):.0e} | {gradient:.0e} |"
    )


def page(lines: list[str]) -> str:
    return "\n".join(
        [
            "# A tree in one pass, or a row for each turn",
            "",
            f"tree_or_rows.py, {date.today()}, two CPU cores: SmolLM2-135M-Instruct in float32, a template that shows only"
            " the newest thought. Differences are relative.",
            "",
            "| turns | tokens in one pass | in separate rows | saved | times as fast | loss (summed) | difference | of the"
            " gradient |",
            "|---|---|---|---|---|---|---|---|",
            *lines,
            "",
        ]
    )


if __name__ == "__main__":
    main()
