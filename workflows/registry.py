"""Looks after registered versions. An alias goes to proven versions only, and each move is a tag of them.

python workflows/registry.py list quickstart-assistant
python workflows/registry.py promote quickstart-assistant/7 --reason "briefer answers, as support asked for"
python workflows/registry.py rollback quickstart-assistant --reason "it greets customers twice"
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from workflows.cli import Exit, exit_on_error, make_console, program, quiet_libraries, show, show_json


def main(argv: Sequence[str] | None = None) -> int:
    arguments = make_parser().parse_args(argv)
    quiet_libraries()
    from components.registry.manage_versions import open_shelf, promote, roll_back
    from components.registry.prove_again import prove
    from components.registry.prune import plan_prune, prune
    from components.reports.versions_table import prune_lines, version_lines, versions_table
    from components.tracking.mlflow_access import tracking_uri

    with exit_on_error():
        shelf = open_shelf(tracking_uri(given=arguments.tracking_uri))
        match arguments.verb:
            case "list":
                records = shelf.list(arguments.name)
                make_console(stderr=arguments.json).print(versions_table(records))
                if arguments.json:
                    show_json([record.model_dump() for record in records])
            case "show":
                record = shelf.get(arguments.version)
                commands = [f"{program(name)} {record.uri}" for name in ("chat", "serve")]
                show("\n".join([*version_lines(record), *commands]), stderr=arguments.json)
                if arguments.json:
                    show_json(record.model_dump() | {"commands": commands})
            case "promote":
                show(promote(shelf, arguments.version, arguments.reason, arguments.alias))
            case "rollback":
                show(roll_back(shelf, arguments.name, arguments.reason, arguments.alias))
            case "prove":
                show(prove(shelf, arguments.version))
            case "prune":
                plan = plan_prune(shelf, arguments.name, arguments.keep)
                deleted = prune(shelf, plan.unneeded) if arguments.yes else ()
                show("\n".join([*prune_lines(plan, dry=not arguments.yes), *deleted]))
    return Exit.DONE


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Look after the versions of a registered model.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb, what in {
        "list": "All versions, the newest first.",
        "show": "All that the registry says of a version.",
        "promote": "Give an alias to a proven version.",
        "rollback": "Give an alias back to the version that held it before.",
        "prove": "Verify a version once more, in fresh processes.",
        "prune": "Delete versions that no alias and no unfinished search needs.",
    }.items():
        each = verbs.add_parser(verb, help=what, description=what)
        one = verb in ("show", "promote", "prove")
        each.add_argument("version" if one else "name", help="NAME/VERSION or NAME@ALIAS" if one else "NAME")
        if verb in ("promote", "rollback"):
            each.add_argument("--reason", required=True, help="for the version's tags")
            each.add_argument("--alias", default="champion", help="which one (default: champion)")
        elif verb == "prune":
            each.add_argument(
                "--keep", type=int, default=3, metavar="N", help="of the newest, in any case (default: 3)"
            )
            each.add_argument("--yes", action="store_true", help="delete them; else only say what would be deleted")
        elif verb != "prove":
            each.add_argument("--json", action="store_true", help="as one line of JSON")
        each.add_argument("--tracking-uri", help="of the registry; by default MLFLOW_TRACKING_URI, else mlflow.db here")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
