"""Shows what will be trained on, token by token, and what is dropped, before anything starts.

python workflows/preview.py experiments/quickstart.yaml --records 2 --html preview.html
python workflows/preview.py --model DIR_OR_ID --data conversations.jsonl --json
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from components.conversations.readers.record_formats import RECORD_FORMATS
from components.experiment.load_experiment import load_experiment
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
    arguments = _parse(argv)
    records = None if arguments.json else arguments.records
    with exit_on_error():
        experiment = load_experiment(arguments.experiment, arguments.set) if arguments.experiment else None
    # Imported late: an error in the file is reported at once, not after the seconds that torch takes.
    quiet_libraries()
    from components.planning.data_preview import preview_data, preview_experiment

    with exit_on_error():
        if experiment is not None:
            preview = preview_experiment(experiment, records)
        else:
            preview = preview_data(
                arguments.model,
                arguments.data,
                records=records,
                chat_format=format_spec_of(arguments),
                format=arguments.format,
                unknown_keys=arguments.unknown_keys,
                max_tokens=arguments.max_tokens,
            )
    console = make_console(stderr=arguments.json)
    if arguments.json:
        for record in preview.records:
            forks = {"forks": record.forks} if record.forks else {}
            show_json({"token_ids": list(record.token_ids), "labels": record.labels(), **forks})
        for line in preview.lines():
            console.print(line, soft_wrap=True)
    else:
        console.print(preview, soft_wrap=True)
    if arguments.html:
        with exit_on_error(OSError):
            arguments.html.write_text(preview.page(arguments.records), encoding="utf-8")
        console.print(f"page {arguments.html}", soft_wrap=True)
    return Exit.DONE


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = make_parser()
    arguments = parser.parse_args(argv)
    if (arguments.experiment is None) == (arguments.model is None or arguments.data is None):
        parser.error("give an experiment, or both --model and --data")
    return arguments


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Show what will be trained on, token by token: of an experiment, or of any model and file."
    )
    parser.add_argument("experiment", nargs="?", help="a YAML file; its data is prepared, and a search will find it so")
    parser.add_argument("--set", action="append", default=[], metavar="a.b=VALUE", help="override a value of the file")
    parser.add_argument(
        "--model", metavar="DIR_OR_ID", help="instead of an experiment: a model; its tokenizer is enough"
    )
    parser.add_argument(
        "--data", metavar="FILE", help="with --model: conversations; a file, a glob or hf:DATASET[:SPLIT][@REVISION]"
    )
    add_format_arguments(parser, "with --model")
    parser.add_argument("--format", default="auto", choices=["auto", *RECORD_FORMATS], help="with --model: of the data")
    parser.add_argument(
        "--unknown-keys", default="fail", choices=["fail", "ignore"], help="with --model: as data.unknown_keys"
    )
    parser.add_argument("--max-tokens", type=_count, metavar="N", help="with --model: truncate to this many tokens")
    parser.add_argument("--records", type=_count, default=3, metavar="N", help="conversations to show (default: 3)")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write them as a page, too")
    parser.add_argument(
        "--json",
        action="store_true",
        help='all of them as JSON lines on stdout: {"token_ids": [...], "labels": [...]}, not shifted, -100 where not'
        ' scored; of a tree also "forks": [[start, depth], ...], where tokens continue the path before them cut to a depth',
    )
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


if __name__ == "__main__":
    raise SystemExit(main())
