"""Shows which nodes a cluster had when, and which trials of a search ran on them.

python workflows/timeline.py experiments/quickstart.yaml
RAY_AUTH_MODE=token python workflows/timeline.py experiments/x.yaml --set storage.path=/shared/runs --address http://HEAD:8265
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict

from components.cluster.capacity.node_history import NodeTime, node_history
from components.experiment.load import load_experiment
from components.records.journal import Journal
from components.records.slot_timeline import Stretch, stretches_of
from components.reports.text_timeline import Bar, Row, timeline_text
from workflows.cli import NEWEST, add_experiment_file, exit_on_error
from workflows.searches import find_search


def main(argv: Sequence[str] | None = None) -> int:
    arguments = make_parser().parse_args(argv)
    with exit_on_error():
        experiment = load_experiment(arguments.experiment, arguments.set)
        records = Journal(experiment.folder / find_search(experiment, arguments.search).search_id).read()
    stretches = list(stretches_of(records))
    nodes = node_history(arguments.address)
    if arguments.json:
        print(json.dumps([_as_json(node, stretches) for node in nodes]))
    else:
        print(timeline_text([row for node in nodes for row in _rows(node, stretches, now=time.time())]))
    return 0


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Show nodes and trials over time.")
    add_experiment_file(parser)
    parser.add_argument("--search", default=NEWEST, metavar="SEARCH_ID", help="by default the newest one")
    parser.add_argument("--address", help="the cluster's dashboard; by default the cluster RAY_ADDRESS points to")
    parser.add_argument("--json", action="store_true", help="the same, as JSON: nodes, and the trials on each")
    return parser


def _rows(node: NodeTime, stretches: Sequence[Stretch], *, now: float) -> list[Row]:
    ended = node.ended or now
    up = Row(label=f"{node.kind} {node.node_id[-6:]}", bars=(Bar(began=node.began, ended=ended, mark="-"),))
    trials = sorted({stretch.number for stretch in stretches if stretch.slot in node.slots})
    return [
        up,
        *(
            Row(
                label=f"  trial {number}",
                bars=tuple(
                    Bar(began=max(stretch.began, node.began), ended=stretch.ended, mark="#")
                    for stretch in stretches
                    if stretch.number == number and stretch.slot in node.slots
                ),
            )
            for number in trials
        ),
    ]


def _as_json(node: NodeTime, stretches: Sequence[Stretch]) -> dict[str, object]:
    return {
        "type": node.kind,
        "node_id": node.node_id,
        "began": node.began,
        "ended": node.ended,
        "trials": [asdict(stretch) for stretch in stretches if stretch.slot in node.slots],
    }


if __name__ == "__main__":
    raise SystemExit(main())
