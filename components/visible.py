"""Text that came from outside, shown so that it can do nothing to a terminal, and hides nothing from its reader.

An escape sequence in a conversation, a name or an answer would move the cursor, change what is above, or ask a terminal to
write a file. A mark of direction shows letters in another order than they have, and a zero-width character is not seen.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from components.closed_pipe import end_by_sigpipe

# What acts or hides: control characters but for ends of lines and tabs, the soft hyphen, marks of direction, characters
# without width, separators of lines and paragraphs, fillers, notes between lines, halves of a surrogate pair, formats of
# shorthand and of music, tags.
_ACTING = (
    r"\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u115f\u1160\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\u3164\ufeff\uffa0"
    r"\ufff9-\ufffb\ud800-\udfff\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e007f"
)
# The two joiners stay between characters beyond ASCII: Persian words and families of emoji are written with them.
_FOUND = re.compile(rf"(?<=[^\x00-\x7f])[\u200c\u200d](?=[^\x00-\x7f])|([{_ACTING}])")


def visible(text: str) -> str:
    r"""Returns the text with every character that acts or hides as an escape, e.g. `\x1b` or `\u202e`; ends of lines stay."""
    return _FOUND.sub(lambda found: _escape(found[1]) if found[1] else found[0], text)


def visible_json(line: str) -> str:
    r"""Returns JSON that means the same, with every such character written as JSON writes it: `\u202e`."""
    return _FOUND.sub(lambda found: json.dumps(found[1])[1:-1] if found[1] else found[0], line)


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


class VisibleConsole(Console):
    """A console that shows what it is given as visible text, and takes no markup in it: "[/INST]" is what somebody wrote."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, highlight=False, emoji=False, **options)

    def on_broken_pipe(self) -> None:
        end_by_sigpipe()

    def render_str(self, text: str, **options: Any) -> Text:
        # Before rich, which drops some control characters without a word.
        return super().render_str(visible(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """What rich itself sends, such as the movements of a live table, stays as it is."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)


def page_environment() -> Environment:
    """Returns Jinja's environment for a page: all that is filled in is escaped, and made visible."""
    return Environment(autoescape=True, undefined=StrictUndefined, finalize=_visible_value)


def _visible_value(value: Any) -> Any:
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value
