"""Replies to 64 conversations in batches against one by one: how much faster, and are they the same tokens?

    python experiments/benchmarks/batched_generation.py --write experiments/benchmarks/batched_generation.md

SmolLM2-135M-Instruct answers the last questions of 64 conversations of the quickstart, greedily, both ways in one process and
on two threads: in float32, with float32 weights under bf16 (full fine-tuning), and with bf16 weights under it (LoRA). Before
each way a few prompts warm it up. Beside seconds it counts those of the processor, which other programs on a machine leave
as they are. Some fifteen minutes.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

import torch

from components.conversations.readers.read import read_conversations
from components.experiment.spec import ModelSpec
from components.inference.generate import reply_to
from components.models.load_trained import LoadedModel, load_base
from components.scoring.batched_generation import generate_replies
from components.scoring.questions import Question, questions_of
from components.scoring.reply import Reply

DATA = Path(__file__).parents[1] / "data" / "quickstart.jsonl"
CONVERSATIONS, WARM_UP = 64, 3
MAX_BATCH_TOKENS = 2**14
Seconds = tuple[float, float]
Way = Callable[[LoadedModel, list[Question], int], list[Reply]]
WAYS = (("fp32", "fp32"), ("fp32", "bf16"), ("bf16", "bf16"))  # (dtype of the weights, precision of the computation)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """`alone` and `batched` are (seconds, seconds of the processor). `unlike` counts the replies that differ."""

    weights: str
    precision: str
    tokens: int
    alone: Seconds
    batched: Seconds
    unlike: int

    def row(self) -> str:
        (alone, alone_cpu), (batched, batched_cpu) = self.alone, self.batched
        return (
            f"| {self.weights} | {self.precision} | {self.tokens:,} | {self.tokens / alone:.1f} |"
            f" {self.tokens / batched:.1f} | {alone / batched:.1f} | {alone_cpu / batched_cpu:.1f} |"
            f" {CONVERSATIONS - self.unlike} of {CONVERSATIONS} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", type=Path, metavar="FILE", help="the table, as Markdown")
    parser.add_argument("--new-tokens", type=int, default=64, help="at most, of each reply")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    rows = []
    for weights, precision in WAYS:
        loaded = replace(load_base(ModelSpec(path="smollm2-135m-instruct", dtype=weights)), precision=precision)
        rows.append(measure(loaded, weights, arguments.new_tokens))
        print(rows[-1].row(), flush=True)
    if arguments.write:
        arguments.write.write_text(page(rows, arguments.new_tokens), encoding="utf-8")


def measure(loaded: LoadedModel, weights: str, new_tokens: int) -> Measured:
    conversations = read_conversations(str(DATA)).conversations[:CONVERSATIONS]
    questions = questions_of(enumerate(conversations), loaded.chat_format)
    one_by_one(loaded, questions[:WARM_UP], new_tokens)
    batched(loaded, questions[:WARM_UP], new_tokens)
    together, batched_seconds = timed(batched, loaded, questions, new_tokens)
    alone, alone_seconds = timed(one_by_one, loaded, questions, new_tokens)
    return Measured(
        weights=weights,
        precision=loaded.precision,
        tokens=sum(reply.new_tokens for reply in alone),
        alone=alone_seconds,
        batched=batched_seconds,
        unlike=sum(one != other for one, other in zip(alone, together, strict=True)),
    )


def timed(way: Way, loaded: LoadedModel, questions: list[Question], new_tokens: int) -> tuple[list[Reply], Seconds]:
    began, began_cpu = time.perf_counter(), time.process_time()
    replies = way(loaded, questions, new_tokens)
    return replies, (time.perf_counter() - began, time.process_time() - began_cpu)


def one_by_one(loaded: LoadedModel, questions: list[Question], new_tokens: int) -> list[Reply]:
    return [reply_to(loaded, each.history, tools=each.tools, max_new_tokens=new_tokens) for each in questions]


def batched(loaded: LoadedModel, questions: list[Question], new_tokens: int) -> list[Reply]:
    prompts = [each.prompt for each in questions]
    return generate_replies(loaded, prompts, max_new_tokens=new_tokens, max_batch_tokens=MAX_BATCH_TOKENS)


def page(rows: list[Measured], new_tokens: int) -> str:
    table = "\n".join(row.row() for row in rows)
    return f"""# Replies in batches

batched_generation.py, {date.today()}, two CPU cores: SmolLM2-135M-Instruct answers {CONVERSATIONS} conversations greedily,
up to {new_tokens} tokens each, in batches of up to 64 and one by one.

| weights | computed in | tokens | a second, one by one | in batches | times as fast | in processor time | equal replies |
|---|---|---|---|---|---|---|---|
{table}

In float32 the replies are the same. In bf16 the products of a batch are rounded otherwise than those of one row: where two
tokens are likely to the same few bits the other one is chosen, and the reply goes on from there. Two batches of other sizes
differ as much. A search compares replies that were all made in batches.

Reading a prompt costs as much in a batch as alone; what is saved is in the tokens after it.
"""


if __name__ == "__main__":
    main()
