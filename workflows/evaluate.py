"""Scores a registered model, a checkpoint or a base model on conversations, alone or against another one.

python workflows/evaluate.py models:/quickstart-assistant@champion --data held_out.jsonl
python workflows/evaluate.py models:/bot/7 --against models:/bot@champion --data held_out.jsonl --json
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.conversations.readers.read import read_conversations
from workflows.cli import Exit, exit_on_error, json_line, make_console, quiet_libraries

if TYPE_CHECKING:
    from components.data.token_store import Entry
    from components.inference.comparison import Comparison
    from components.models.load_trained import LoadedModel
    from components.training.evaluate import ConversationLoss


def main(argv: Sequence[str] | None = None) -> int:
    arguments = make_parser().parse_args(argv)
    quiet_libraries()
    console = make_console(stderr=arguments.json)
    with exit_on_error():
        result = evaluated(arguments)
    console.print(result["sentence"], soft_wrap=True)
    if arguments.json:
        print(json_line(result))
    losses = (result["loss"], result.get("verdict", {}).get("other_loss", 0.0))
    return Exit.DONE if all(map(math.isfinite, losses)) else Exit.NOT_FINITE


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Score a model on conversations: nats per target token.")
    parser.add_argument("model", help="models:/NAME@ALIAS, models:/NAME/VERSION, a directory, a hub id")
    parser.add_argument("--data", required=True, help="conversations: a file, a glob or hf:DATASET[:SPLIT][@REVISION]")
    parser.add_argument("--format", default="auto", help="of the data")
    parser.add_argument("--unknown-keys", default="fail", choices=["fail", "ignore"], help="as data.unknown_keys")
    parser.add_argument("--against", metavar="MODEL", help="another model with the same tokenizer and chat format")
    parser.add_argument("--confidence", type=float, default=0.95, help="of the comparison (default: 0.95)")
    parser.add_argument("--max-tokens", type=int, default=1024, help="longer conversations lose their last turns")
    parser.add_argument("--chat-format", default="auto", help="of a base model; trained ones know theirs")
    parser.add_argument("--tracking-uri", help="of the registry; by default MLFLOW_TRACKING_URI, else mlflow.db here")
    parser.add_argument("--json", action="store_true", help="the result as one JSON line on stdout")
    return parser


def evaluated(arguments: argparse.Namespace) -> dict[str, Any]:
    """What --json prints. Raises ValueError for models or data that cannot be used or compared."""
    losses, entries = _losses(arguments.model, arguments)
    num_targets = sum(loss.num_targets for loss in losses)
    loss = sum(loss.loss_sum for loss in losses) / num_targets
    result = {"model": arguments.model, "loss": loss, "num_targets": num_targets, "conversations": len(losses)}
    if arguments.against is None:
        counted = f"{num_targets:,} targets of {len(losses):,} conversations"
        return {**result, "sentence": f"{arguments.model}: {loss:.4f} nats per target over {counted}"}
    others, other_entries = _losses(arguments.against, arguments)
    unlike = [one.source for one, other in zip(entries, other_entries, strict=True) if one.rendered != other.rendered]
    if unlike:
        raise ValueError(
            f"{arguments.model} and {arguments.against} turn {len(unlike)} of {len(entries)} conversations into different"
            f" tokens (the first: {unlike[0]}), so their losses per target cannot be compared"
        )
    verdict = _verdict(arguments, losses, others)
    return {**result, "verdict": verdict.model_dump(), "sentence": f"{arguments.model} {verdict.sentence()}"}


def _losses(name: str, arguments: argparse.Namespace) -> tuple[list[ConversationLoss], list[Entry]]:
    """The loss of every conversation, and what the model's chat format makes of it."""
    from workflows.named import load_named

    loaded = load_named(name, chat_format=arguments.chat_format, tracking=arguments.tracking_uri)
    return _scored(loaded, arguments)


def _scored(loaded: LoadedModel, arguments: argparse.Namespace) -> tuple[list[ConversationLoss], list[Entry]]:
    from components.conversations.chat_formats.truncation import fit_length
    from components.data.token_store import Entry, TokenStore, write_store
    from components.training.evaluate import score

    read = read_conversations(arguments.data, format=arguments.format, unknown_keys=arguments.unknown_keys)
    entries = []
    for conversation in read.conversations:
        rendered = loaded.chat_format.render(conversation)
        fitted = fit_length(rendered, arguments.max_tokens, truncate=True)
        if fitted is None:
            raise ValueError(
                f"{conversation.source}: not even its first scored turn fits into --max-tokens {arguments.max_tokens}"
            )
        entries.append(Entry(source=conversation.source, rendered=fitted))
    with tempfile.TemporaryDirectory(prefix="turnwise-evaluate-") as folder:
        write_store(Path(folder) / "data.arrow", entries)
        store = TokenStore(Path(folder) / "data.arrow")
        return score(loaded, store, max_tokens=arguments.max_tokens, rows_per_batch=4), entries


def _verdict(
    arguments: argparse.Namespace, losses: Sequence[ConversationLoss], others: Sequence[ConversationLoss]
) -> Comparison:
    from components.inference.comparison import paired_bootstrap

    return paired_bootstrap(
        f"model {arguments.against}",
        [loss.loss_sum for loss in losses],
        [loss.loss_sum for loss in others],
        [loss.num_targets for loss in losses],
        confidence=arguments.confidence,
    )


if __name__ == "__main__":
    raise SystemExit(main())
