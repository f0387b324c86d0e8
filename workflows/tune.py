"""Searches an experiment and registers the winner: the main job.

python workflows/tune.py experiments/quickstart.yaml
python workflows/tune.py experiments/quickstart.yaml --set search.trials=16 --set trial.budget.epochs=2
python workflows/tune.py experiments/quickstart.yaml --new        without it, an interrupted search goes on
ray job submit --working-dir . -- python workflows/tune.py x.yaml --set storage.path=/shared/runs --set tracking.uri=http://...
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from components.experiment.load_experiment import load_experiment
from components.experiment.schema import experiment_schema
from components.lasting_output import lasting_output
from components.search.find import NEWEST
from workflows.cli import Exit, add_experiment_arguments, command_line, exit_on_error, quiet_libraries, show
from workflows.terminal import search_and_report, watch


def main(argv: Sequence[str] | None = None) -> int:
    arguments = make_parser().parse_args(argv)
    with exit_on_error():
        experiment = load_experiment(arguments.experiment, arguments.set)
    if arguments.watch is not None:
        return watch(experiment, arguments.watch, as_json=arguments.json)
    quiet_libraries()
    if arguments.sync is not None:
        from components.search.sync_search import sync_search

        with exit_on_error(), lasting_output():
            sync_search(experiment, arguments.sync, on_message=show)
        return Exit.DONE
    return search_and_report(
        experiment,
        command=command_line("tune", argv),
        resume=arguments.resume,
        replace=arguments.replace,
        new=arguments.new,
        as_json=arguments.json,
    )


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Search an experiment and register the winner.")
    add_experiment_arguments(parser)
    watched = "look at a search that runs anywhere, by default the newest; with --json its state, once"
    parser.add_argument("--watch", nargs="?", const=NEWEST, metavar="SEARCH_ID", help=watched)
    filled = "fill MLflow from the journal of a search, by default the newest"
    parser.add_argument("--sync", nargs="?", const=NEWEST, metavar="SEARCH_ID", help=filled)
    parser.add_argument("--schema", action=_PrintSchema, nargs=0, help="print the JSON Schema of experiment files")
    return parser


class _PrintSchema(argparse.Action):
    """Like --help: prints and ends, with or without other arguments."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        show(json.dumps(experiment_schema(), indent=1))
        parser.exit()


if __name__ == "__main__":
    raise SystemExit(main())
