"""Scores a registered model, a checkpoint or a base model on conversations, alone or against another one.

python workflows/evaluate.py models:/quickstart-assistant@champion --data held_out.jsonl
python workflows/evaluate.py models:/bot/7 --against models:/bot@champion --data held_out.jsonl --json
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence

from components.conversations.readers.read import read_conversations
from components.reports.loss_sides import ends_sentence, sides_table
from workflows.cli import (
    Exit,
    add_format_arguments,
    exit_on_error,
    format_spec_of,
    make_console,
    quiet_libraries,
    show_json,
)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = make_parser().parse_args(argv)
    quiet_libraries()
    console = make_console(stderr=arguments.json)
    from components.inference.score import Score, compare_scores, score
    from components.registry.load_by_name import load_by_name

    def score_by_name(name: str) -> Score:
        model = load_by_name(name, chat_format=format_spec_of(arguments), tracking=arguments.tracking_uri)
        both = arguments.against is not None  # what one of them cannot render is left out for both
        return score(model, conversations, max_tokens=arguments.max_tokens, leave_out=both)

    with exit_on_error():
        read = read_conversations(
            arguments.data, format=arguments.format, unknown_keys=arguments.unknown_keys, tag=arguments.tag
        )
        conversations = read.conversations
        scored = score_by_name(arguments.model)
        result: dict[str, object] = {
            "model": arguments.model,
            "loss": scored.loss,
            "bits_per_byte": scored.bits_per_byte,
            "num_targets": scored.num_targets,
            "conversations": len(scored.losses),
            "views": scored.views.model_dump(),
        }
        views = {arguments.model: scored.views}
        losses, sentence = [scored.loss], f"{arguments.model}: {scored.sentence()}"
        if arguments.against is not None:
            other = score_by_name(arguments.against)
            verdict = compare_scores(
                scored, other, name=arguments.model, other_name=arguments.against, confidence=arguments.confidence
            )
            result |= {"verdict": verdict.model_dump(), "views_against": other.views.model_dump()}
            views[arguments.against] = other.views
            losses.append(verdict.other_loss)
            sentence = f"{arguments.model} {verdict.sentence()}"
    console.print(sides_table(views))
    for name, view in views.items():
        console.print(f"{name}: perplexity {view.whole.perplexity:.2f}, {ends_sentence(view.ends)}", soft_wrap=True)
    console.print(sentence, soft_wrap=True)
    if arguments.json:
        show_json(result | {"sentence": sentence})
    return Exit.DONE if all(map(math.isfinite, losses)) else Exit.NOT_FINITE


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Score a model on conversations: nats per target token.")
    parser.add_argument("model", help="models:/NAME@ALIAS, models:/NAME/VERSION, a directory, a hub id")
    parser.add_argument("--data", required=True, help="conversations: a file, a glob or hf:DATASET[:SPLIT][@REVISION]")
    parser.add_argument("--format", default="auto", help="of the data")
    parser.add_argument("--unknown-keys", default="fail", choices=["fail", "ignore"], help="as data.unknown_keys")
    parser.add_argument("--against", metavar="MODEL", help="another model; in bits per byte if its tokens differ")
    parser.add_argument("--tag", metavar="KEY", help="as data.tag: shows the loss by this label of the records")
    parser.add_argument("--confidence", type=float, default=0.95, help="of the comparison (default: 0.95)")
    parser.add_argument("--max-tokens", type=int, default=1024, help="longer conversations lose their last turns")
    add_format_arguments(parser, "of a base model; trained ones know theirs")
    parser.add_argument("--tracking-uri", help="of the registry; by default MLFLOW_TRACKING_URI, else mlflow.db here")
    parser.add_argument("--json", action="store_true", help="the result as one JSON line on stdout")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
