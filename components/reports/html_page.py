"""One self-contained page about a search: verdict, leaderboard, curves, answers. It loads no other file."""

from __future__ import annotations

from pathlib import Path

from components.conversations.target_bytes import BITS_PER_BYTE
from components.experiment.spec import GENERAL_LOSS
from components.experiment.varied import hyperparameters
from components.records.loss_views import LossViews, sides_of
from components.reports.leaderboard import front_sentence
from components.reports.loss_sides import ends_sentence
from components.reports.search_summary import SearchSummary
from components.visible import page_environment

PAGE = Path(__file__).with_name("html_page.html.jinja")


def search_page(summary: SearchSummary, *, curves: str, command: str) -> str:
    """Returns HTML. `curves` is an SVG picture; `command` is the command line that started the search, or empty."""
    template = page_environment().from_string(PAGE.read_text(encoding="utf-8"))
    # The one has a column; the other says what nats say, unless there are several base models.
    aside = {GENERAL_LOSS, *([] if summary.by_bytes else [BITS_PER_BYTE])} - {summary.metric.name}
    found = {name for trial in summary.trials for name in trial.scores} - aside
    names = sorted(found, key=lambda name: (name != summary.metric.name, name))
    views = _views(summary)
    return template.render(
        summary=summary,
        command=command,
        names=names,
        hyperparameters=hyperparameters,
        front_sentence=front_sentence,
        curves=curves[curves.index("<svg") :],
        has_general=any(trial.general_loss is not None for trial in summary.trials),
        views=views,
        sides=list(sides_of(list(views.values()))) if views else [],
        ends_sentence=ends_sentence,
    )


def _views(summary: SearchSummary) -> dict[str, LossViews]:
    """The candidate's views and, where it was looked at, the base's; nothing without a candidate."""
    if summary.registry is None or summary.registry.sides.candidate_views is None:
        return {}
    beside = summary.registry.sides.base_views
    own = {f"version {summary.registry.version}": summary.registry.sides.candidate_views}
    return own if beside is None else {**own, "base": beside}
