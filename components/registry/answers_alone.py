"""Loads a version as any user of MLflow does, and asks it a question: `python -P answers_alone.py VERSION_FOLDER`.

It runs in a fresh process (prove_again.py), and imports nothing of this project, so that the version's own code answers,
whichever version of the project that is from. Its last line is the reply as JSON.
"""

import json
import sys

import mlflow.pyfunc

QUESTION = {"messages": [{"role": "user", "content": "Hello, who are you?"}], "max_tokens": 64, "temperature": 0.0}


def main() -> None:
    reply = mlflow.pyfunc.load_model(sys.argv[1], suppress_warnings=True).predict(QUESTION)
    json.dump(reply, sys.stdout)


if __name__ == "__main__":
    main()
