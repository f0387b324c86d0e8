"""What a table of rich looks like in a terminal."""

from __future__ import annotations

import io

from rich.console import Console, RenderableType


def shown(renderable: RenderableType) -> str:
    console = Console(file=(text := io.StringIO()), width=140)
    console.print(renderable)
    return text.getvalue()
