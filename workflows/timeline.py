"""Shows which nodes a cluster had when, and which trials of a search ran on them.

python workflows/timeline.py experiments/quickstart.yaml
RAY_AUTH_MODE=token python workflows/timeline.py experiments/x.yaml --set storage.path=/shared/runs --address http://HEAD:8265
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

from components.experiment.load_experiment import load_experiment
from components.reports.text_timeline import timeline_text
from components.search.find import NEWEST
from components.search.node_timeline import search_timeline
from workflows.cli import Exit, add_experiment_file, exit_on_error, show, show_json


def main(argv: Sequence[str] | None = None) -> int:
    arguments = make_parser().parse_args(argv)
    with exit_on_error():
        experiment = load_experiment(arguments.experiment, arguments.set)
        nodes = search_timeline(experiment, arguments.search, address=arguments.address)
    if arguments.json:
        show_json([node.as_json() for node in nodes])
    else:
        show(timeline_text([row for node in nodes for row in node.rows(now=time.time())]))
    return Exit.DONE


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Show nodes and trials over time.")
    add_experiment_file(parser)
    parser.add_argument("--search", default=NEWEST, metavar="SEARCH_ID", help="by default the newest one")
    parser.add_argument("--address", help="the cluster's dashboard; by default the cluster RAY_ADDRESS points to")
    parser.add_argument("--json", action="store_true", help="the same, as JSON: nodes, and the trials on each")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
