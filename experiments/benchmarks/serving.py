"""Clients of serve.py who ask at once, against the same requests one after another.

    python experiments/benchmarks/serving.py smollm2-135m-instruct --write experiments/benchmarks/serving.md
    python experiments/benchmarks/serving.py models:/quickstart-assistant@champion --clients 4 16 --tokens 64

The server is a process of its own on this machine, and the requests are greedy. Some minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # where `experiments` and `components` lie

from experiments.benchmarks.gpu_kit.table import facts_of_machine

PROGRAM = Path(__file__).resolve().parents[2] / "workflows" / "serve.py"
UP_SECONDS, REQUEST_SECONDS = 180, 600
LIBRARIES = ("torch", "transformers", "peft", "fastapi", "uvicorn")
ABOUT = (
    "What is your name",
    "How does rain form",
    "Name a river",
    "Write a line on snow",
    "Count to five",
    "Say goodbye",
)
HEAD = """# Clients who ask at once, against the same requests one after another

Every client asks one question and waits for the whole reply, which is greedy. Rounds of "at once" and of "one after another"
take turns with the same server, after one request that is not counted; figures are medians of rounds, the ratio that of
neighbouring rounds.

"""


@dataclass(frozen=True)
class Round:
    """Seconds, tokens that were made, and the texts in the order of the questions."""

    seconds: float
    tokens: int
    texts: tuple[str, ...]


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="as serve.py takes it")
    parser.add_argument("--clients", nargs="+", type=int, default=[4, 16], help="(default: 4 16)")
    parser.add_argument("--tokens", type=int, default=48, help="of a reply, at most (default: 48)")
    parser.add_argument("--rounds", type=int, default=3, help="(default: 3)")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the table there")
    return parser.parse_args()


def main() -> int:
    arguments = parsed()
    facts = facts_of_machine(LIBRARIES) | {
        "load before": f"{os.getloadavg()[0]:.1f}",
        "command": shlex.join(["python", *sys.argv]),
    }
    rows = [
        "| clients | tokens a second at once | one after another | ratio | replies alike |",
        "|---|---|---|---|---|",
    ]
    with served(arguments.model) as url:
        ask(url, question(0), arguments.tokens)
        for clients in arguments.clients:
            rows.append(compared(url, clients, arguments.tokens, arguments.rounds))
            print(rows[-1], flush=True)
    text = HEAD + "\n".join([*rows, "", "; ".join(f"{name} {value}" for name, value in facts.items()), ""])
    if arguments.write:
        arguments.write.write_text(text, encoding="utf-8")
    return 0


def compared(url: str, clients: int, tokens: int, rounds: int) -> str:
    """Returns a row of the table."""
    questions = [question(number) for number in range(clients)]
    pairs = [(asked(url, questions, tokens, clients), asked(url, questions, tokens, 1)) for _ in range(rounds)]
    speeds = [statistics.median(each.tokens / each.seconds for each in way) for way in zip(*pairs, strict=True)]
    ratio = statistics.median(turn.seconds / once.seconds for once, turn in pairs)
    alike = sum(one == other for one, other in zip(pairs[0][0].texts, pairs[0][1].texts, strict=True))
    return f"| {clients} | {speeds[0]:,.0f} | {speeds[1]:,.0f} | **{ratio:.2f}** | {alike} of {clients} |"


def asked(url: str, questions: Sequence[str], tokens: int, at_once: int) -> Round:
    with ThreadPoolExecutor(at_once) as people:
        began = time.monotonic()
        replies = list(people.map(lambda text: ask(url, text, tokens), questions))
        seconds = time.monotonic() - began
    return Round(seconds, sum(made for made, _ in replies), tuple(text for _, text in replies))


def ask(url: str, text: str, tokens: int) -> tuple[int, str]:
    """Returns (tokens that were made, the reply)."""
    body = {"model": "model", "messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": tokens}
    request = urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=REQUEST_SECONDS) as response:
        answer = json.load(response)
    return answer["usage"]["completion_tokens"], answer["choices"][0]["message"]["content"]


def question(number: int) -> str:
    return f"{ABOUT[number % len(ABOUT)]}, please, and give a reason for that ({number})."


@contextmanager
def served(model: str) -> Iterator[str]:
    """Inside, serve.py serves the model; yields where."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    program = [sys.executable, str(PROGRAM), f"model={model}", "--port", str(port)]
    with subprocess.Popen(program, stdout=subprocess.DEVNULL) as process:
        try:
            yield until_up(f"http://127.0.0.1:{port}", process)
        finally:
            process.terminate()


def until_up(url: str, process: subprocess.Popen[bytes]) -> str:
    deadline = time.monotonic() + UP_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return url
        except OSError:
            time.sleep(0.2)
    raise SystemExit(f"the server did not come up: status {process.poll()}")


if __name__ == "__main__":
    raise SystemExit(main())
