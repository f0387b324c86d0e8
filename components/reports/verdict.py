"""The verdict in the terminal: the outcome, and how base and candidate answer the same questions."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from components.conversations.expected import places_of
from components.records.outcome import Outcome
from components.registry.probes import probes_answered
from components.registry.result import RegistryResult
from components.reports.search_summary import SearchSummary
from components.visible import visible


def print_verdict(console: Console, summary: SearchSummary) -> None:
    console.print()
    if summary.registry is not None and summary.registry.probes:
        console.print(answers_side_by_side(summary.registry))
        console.print()
    for sentence in summary.finalists.sentences() if summary.finalists else ():
        console.print(Text(visible(sentence)))
    style = "bold green" if summary.outcome is Outcome.CHAMPION else "bold yellow"
    console.print(Text(visible(summary.message), style=style))
    console.print(Text(summary.cost.sentence), soft_wrap=True)
    for sentence in summary.registry.sides.sentences() if summary.registry is not None else ():
        console.print(sentence, soft_wrap=True)


def answers_side_by_side(registry: RegistryResult) -> Table:
    """A table of held-out questions, with the answers of base and candidate; expected words are highlighted."""
    table = Table(title="Held-out questions", title_justify="left", show_lines=True, expand=False)
    heads = {"base": registry.base_answers, f"version {registry.version}": registry.candidate_answers}
    table.add_column("question", ratio=2)
    for name, answers in heads.items():
        right, wanted = probes_answered(answers, registry.probes)
        table.add_column(f"{name} ({right} of {wanted} as expected)" if wanted else name, ratio=3)
    for position, probe in enumerate(registry.probes):
        words = [Text(visible(said[position].strip() or "(nothing)")) for said in heads.values()]
        for text in words:
            if probe.expect:
                for start, end in places_of(probe.expect, text.plain):
                    text.stylize("bold green", start, end)
        table.add_row(probe.messages[-1]["content"], *words)
    return table
