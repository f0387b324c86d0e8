"""How objects show themselves: what rich prints in a terminal, as HTML for a notebook or as plain text."""

from __future__ import annotations

import io

from rich.console import RenderableType

from components.visible import VisibleConsole

WIDTH = 140  # columns; a notebook scrolls sideways
HTML = '<pre style="white-space: pre; line-height: normal; font-family: monospace">{code}</pre>'


def html_of(renderable: RenderableType) -> str:
    """One <pre> element with inline styles."""
    # In a kernel, rich would display instead of writing.
    console = VisibleConsole(
        file=io.StringIO(), record=True, width=WIDTH, color_system="truecolor", force_terminal=True, force_jupyter=False
    )  # fmt: skip
    console.print(renderable)
    return console.export_html(inline_styles=True, code_format=HTML).rstrip()


def text_of(renderable: RenderableType) -> str:
    """Without colors."""
    file = io.StringIO()
    console = VisibleConsole(file=file, width=WIDTH, color_system=None, force_jupyter=False)
    console.print(renderable)
    return file.getvalue().rstrip("\n")
