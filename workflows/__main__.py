"""`turnwise PROGRAM ...`: the programs of this folder under one command, for those who installed the wheel.

turnwise tune experiment.yaml
turnwise chat models:/assistant@champion
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

from workflows.cli import COMMAND, Exit, show

PROGRAMS = (
    *("tune", "train", "preview", "plan", "evaluate", "chat"),
    *("serve", "export", "registry", "control", "timeline"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs workflows/PROGRAM.py as if it had been called itself, but for the name it gives itself."""
    given = list(sys.argv[1:] if argv is None else argv)
    name, arguments = (given[0], given[1:]) if given else ("", [])
    if name not in PROGRAMS:
        wants_help = name in ("-h", "--help")
        show(f"usage: {COMMAND} {{{','.join(PROGRAMS)}}} ...", stderr=not wants_help)
        return Exit.DONE if wants_help else Exit.BAD_INPUT
    sys.argv = [f"{COMMAND} {name}", *arguments]
    return int(import_module(f"workflows.{name}").main())


if __name__ == "__main__":
    raise SystemExit(main())
