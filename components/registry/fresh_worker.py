"""What a fresh process does first (fresh_process.py): imports libraries, waits for its work, and becomes `python -m MODULE`.

    python -P fresh_worker.py

Its work is one line of JSON on the standard input: {"folder": ..., "module": ..., "arguments": [...]}. Nothing of this
project is imported here, for a version is proven by its own code.
"""

import contextlib
import importlib
import json
import os
import runpy
import sys

LIBRARIES = ("torch", "transformers", "peft", "mlflow.pyfunc")  # what the code of every version imports


def main() -> None:
    for library in LIBRARIES:
        with contextlib.suppress(Exception):  # if it is needed, the work fails by the same words
            importlib.import_module(library)
    line = sys.stdin.readline()
    if not line:  # the process that would have sent it is gone, or has none
        return
    work = json.loads(line)
    os.chdir(work["folder"])
    sys.path.insert(0, work["folder"])
    sys.argv[1:] = work["arguments"]
    runpy.run_module(work["module"], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
