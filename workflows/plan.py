"""Tells what a search will need before it starts: memory, GPU-hours and money. No weights are loaded.

python workflows/plan.py experiments/chatglm3_lora_vs_full.yaml
python workflows/plan.py experiments/quickstart.yaml --calibrate --json
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.text import Text

from components.experiment.load_experiment import load_experiment
from workflows.cli import Exit, add_experiment_file, exit_on_error, fail, make_console, quiet_libraries, show_json


def main(argv: Sequence[str] | None = None) -> int:
    """A search that fits on no machine ends with the status of a cluster without room."""
    arguments = make_parser().parse_args(argv)
    with exit_on_error():
        experiment = load_experiment(arguments.experiment, arguments.set)
    # Imported late: an error in the file is reported at once, not after the seconds that torch takes.
    quiet_libraries()
    from components.experiment.experiment_warnings import experiment_warnings
    from components.planning.instance_types import load_node_table
    from components.planning.planner import plan

    console = make_console(stderr=arguments.json)
    for warning in experiment_warnings(experiment):
        console.print(warning, soft_wrap=True)
    with exit_on_error():
        table = load_node_table(arguments.nodes)
        planned = plan(experiment, table, calibrate=arguments.calibrate, on_message=console.print)
    if arguments.json:
        show_json(planned)
    for part in planned.parts():
        console.print(part, soft_wrap=isinstance(part, Text))
    if planned.without_room:
        fail(planned.shortage(), Exit.NO_ROOM)
    return Exit.DONE


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Tell what a search will need: memory, GPU-hours, money.")
    add_experiment_file(parser)
    parser.add_argument(
        "--calibrate", action="store_true", help="take a few real steps on this machine, and use their speed"
    )
    parser.add_argument(
        "--nodes", type=Path, metavar="FILE", help="machines and prices (default: components/planning/nodes.yaml)"
    )
    parser.add_argument("--json", action="store_true", help="the plan as one JSON line on stdout")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
