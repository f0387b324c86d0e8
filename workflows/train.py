"""Trains one configuration, the `trial:` section of an experiment, without a search.

python workflows/train.py experiments/quickstart.yaml --set trial.optimizer.learning_rate=1e-3
python workflows/train.py experiments/quickstart.yaml --set trial.method.kind=full --register
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from components.experiment.check_search import without_search
from components.experiment.load_experiment import load_experiment
from workflows.cli import add_experiment_arguments, command_line, exit_on_error, quiet_libraries
from workflows.terminal import search_and_report


def main(argv: Sequence[str] | None = None) -> int:
    arguments = make_parser().parse_args(argv)
    with exit_on_error():
        experiment = without_search(load_experiment(arguments.experiment, arguments.set))
    quiet_libraries()
    return search_and_report(
        experiment,
        command=command_line("train", argv),
        resume=arguments.resume,
        new=arguments.new,
        register=arguments.register,
        replace=arguments.replace,
        as_json=arguments.json,
    )


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Train the `trial:` section of an experiment, without a search.")
    add_experiment_arguments(parser)
    parser.add_argument("--register", action="store_true", help="send the result through the registry's gate")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
