"""Shows what will be trained on, token by token, and what is dropped, before anything starts; and what it will cost.

python workflows/preview.py experiments/quickstart.yaml --records 2 --html preview.html
python workflows/preview.py --model DIR_OR_ID --data conversations.jsonl --json
python workflows/preview.py experiments/chatglm3_lora_vs_full.yaml --plan
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from components.conversations.readers.read import read_conversations
from components.conversations.readers.record_formats import RECORD_FORMATS
from components.conversations.readers.unknown_keys import unused_keys_sentences
from components.experiment.load import load_experiment
from components.experiment.spec import ExperimentSpec, ModelSpec
from workflows.cli import Exit, exit_on_error, fail, make_console, quiet_libraries

if TYPE_CHECKING:
    from rich.console import Console

    from components.conversations.preview.mask_preview import Decode, PreviewRecord, PreviewTotals

MAX_NAMED = 20
NODES = Path("experiments/cluster/nodes.yaml")


@dataclass(frozen=True, kw_only=True)
class Preview:
    """`records` are those to show, or all of them for --json; `totals` are of all; `remarks` are for people."""

    title: str
    records: Sequence[PreviewRecord]
    totals: PreviewTotals
    remarks: Sequence[str]
    decode: Decode


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _arguments(argv)
    with exit_on_error():
        experiment = load_experiment(arguments.experiment, arguments.set) if arguments.experiment else None
    # Imported late: what is wrong with the file is said at once, not after the seconds that torch takes.
    quiet_libraries()
    if experiment is not None and arguments.plan:
        return _plan(experiment, arguments)
    with exit_on_error():
        preview = _of_experiment(experiment, arguments) if experiment is not None else _of_file(arguments)
    if arguments.json:
        for record in preview.records:
            print(json.dumps({"token_ids": list(record.token_ids), "labels": record.labels()}))
    console = make_console(stderr=arguments.json)
    _print(preview, console, records=not arguments.json)
    if arguments.html:
        with exit_on_error(OSError):
            arguments.html.write_text(_page(preview, arguments.records), encoding="utf-8")
        console.print(f"page {arguments.html}", soft_wrap=True)
    return Exit.DONE


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = make_parser()
    arguments = parser.parse_args(argv)
    if (arguments.experiment is None) == (arguments.model is None or arguments.data is None):
        parser.error("give an experiment, or both --model and --data")
    if (arguments.plan and arguments.experiment is None) or (arguments.calibrate and not arguments.plan):
        parser.error("--plan is of an experiment, and --calibrate goes with --plan")
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
    parser.add_argument("--chat-format", default="auto", metavar="NAME", help="with --model: auto, template or chatml")
    parser.add_argument("--format", default="auto", choices=["auto", *RECORD_FORMATS], help="with --model: of the data")
    parser.add_argument(
        "--unknown-keys", default="fail", choices=["fail", "ignore"], help="with --model: as data.unknown_keys"
    )
    parser.add_argument("--max-tokens", type=_count, metavar="N", help="with --model: truncate to this many tokens")
    parser.add_argument("--records", type=_count, default=3, metavar="N", help="conversations to show (default: 3)")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write them as a page, too")
    parser.add_argument(
        "--plan", action="store_true", help="what its search will need: memory, GPU-hours, money; no weights are loaded"
    )
    parser.add_argument(
        "--calibrate", action="store_true", help="with --plan: take a few real steps here, and reckon with their speed"
    )
    parser.add_argument(
        "--nodes", type=Path, default=NODES, metavar="FILE", help=f"with --plan: machines and prices (default: {NODES})"
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help='all of them as JSON lines on stdout: {"token_ids": [...], "labels": [...]}, not shifted, -100 where not'
        " scored; with --plan: the plan as one line",
    )
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def _of_experiment(experiment: ExperimentSpec, arguments: argparse.Namespace) -> Preview:
    """What a search of it will train on, prepared where the search will look for it."""
    from components.conversations.preview.mask_preview import verbatim
    from components.conversations.tokenizers.load import load_tokenizer
    from components.data.prepare import prepare_experiment
    from components.data.preview_records import stored_records, totals_of
    from components.models.base.load import resolve_model

    directory = resolve_model(experiment.model, weights=False)
    dataset = prepare_experiment(experiment, directory)
    return Preview(
        title=f"{experiment.name}: what is trained on",
        records=stored_records(dataset.train, None if arguments.json else arguments.records),
        totals=totals_of(dataset),
        remarks=[dataset.summary(), *_named(dataset.left_out)],
        decode=verbatim(load_tokenizer(directory)),
    )


def _of_file(arguments: argparse.Namespace) -> Preview:
    read = read_conversations(arguments.data, format=arguments.format, unknown_keys=arguments.unknown_keys)
    from components.conversations.chat_formats import load_chat_format
    from components.conversations.preview.mask_preview import verbatim
    from components.conversations.tokenizers.load import load_tokenizer
    from components.data.parallel_rendering import Renderer
    from components.data.preview_records import rendered_records, totals_of_records
    from components.models.base.load import resolve_model

    directory = resolve_model(ModelSpec(path=arguments.model), weights=False)
    tokenizer = load_tokenizer(directory)
    renderer = Renderer(
        load_chat_format(tokenizer, arguments.chat_format),
        model_path=directory,
        chat_format_name=arguments.chat_format,
    )
    records = rendered_records(read.conversations, renderer, arguments.max_tokens)
    return Preview(
        title=f"{arguments.data} as {arguments.model} sees it",
        records=records if arguments.json else records[: arguments.records],
        totals=totals_of_records(records),
        remarks=[
            *unused_keys_sentences(read.unused_keys, read.ignored_keys),
            *_named([f"{record.source}: {record.note}" for record in records if not record.token_ids]),
        ],
        decode=verbatim(tokenizer),
    )


def _plan(experiment: ExperimentSpec, arguments: argparse.Namespace) -> int:
    """What fits nowhere ends the program as a cluster without room would."""
    from components.experiment.warnings import experiment_warnings
    from components.planning.instance_types import load_nodes
    from components.planning.planner import plan_experiment
    from components.reports.plan_tables import no_room, print_plan

    console = make_console(stderr=arguments.json)
    for remark in experiment_warnings(experiment):
        console.print(remark, soft_wrap=True)
    with exit_on_error():
        plan = plan_experiment(
            experiment, load_nodes(arguments.nodes), calibrated=arguments.calibrate, told=console.print
        )
    if arguments.json:
        print(plan.model_dump_json())
    print_plan(console, plan)
    if plan.without_room:
        fail(no_room(plan), Exit.NO_ROOM)
    return Exit.DONE


def _named(left_out: Sequence[str]) -> list[str]:
    more = [f"... and {len(left_out) - MAX_NAMED} more"] if len(left_out) > MAX_NAMED else []
    return [*left_out[:MAX_NAMED], *more]


def _print(preview: Preview, console: Console, *, records: bool) -> None:
    from components.conversations.preview.mask_preview import print_preview

    if records:
        print_preview(console, preview.records, preview.decode)
    for line in [*preview.remarks, preview.totals.sentence()]:
        console.print(line, soft_wrap=True)


def _page(preview: Preview, count: int) -> str:
    from components.conversations.preview.mask_preview import preview_html

    return preview_html(preview.records[:count], preview.decode, preview.title, preview.totals)


if __name__ == "__main__":
    raise SystemExit(main())
