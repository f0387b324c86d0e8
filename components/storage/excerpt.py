"""What a message quotes of a long text."""

from __future__ import annotations

from components.storage.uri import without_secrets

MAX_QUOTED = 150  # letters, e.g. of a value


def excerpt(text: str, most: int = MAX_QUOTED) -> str:
    """Returns a text of at most about `most` letters: its beginning, and if it is long its end."""
    if len(text) <= most:
        return text
    text = without_secrets(text)  # half of an address is no longer known as one
    return text if len(text) <= most else f"{text[: most * 3 // 4]} ... {text[-most // 4 :]}"
