"""One self-contained page about a search: verdict, leaderboard, curves, answers. It loads no other file."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, StrictUndefined

from components.experiment.varied import hyperparameters
from components.reports.leaderboard import front_sentence
from components.reports.search_summary import SearchSummary

PAGE = Path(__file__).with_name("html_page.html.jinja")


def search_page(summary: SearchSummary, *, curves: str, command: str) -> str:
    """Returns HTML. `curves` is an SVG picture; `command` is the command line that started the search, or empty."""
    template = Environment(autoescape=True, undefined=StrictUndefined).from_string(PAGE.read_text(encoding="utf-8"))
    found = {name for trial in summary.trials for name in trial.scores}
    names = sorted(found, key=lambda name: (name != summary.metric.name, name))
    return template.render(
        summary=summary,
        command=command,
        names=names,
        hyperparameters=hyperparameters,
        front_sentence=front_sentence,
        curves=curves[curves.index("<svg") :],
    )
