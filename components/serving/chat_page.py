"""The chat page: three files that are the same for everybody, and what a browser may do with them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import Response

FOLDER = Path(__file__).with_name("page")
# path -> (file, media type)
FILES = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}
# A browser runs the page's own script only, lets it reach this server only and make no HTML of text, and shows it in no
# frame of another page. Its icon is in the page itself.
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # after an update of the server, a script of before would meet a page of after
}


def add_page(app: FastAPI) -> None:
    """Adds the page's paths to the server's."""
    for path, (name, kind) in FILES.items():
        app.get(path)(_shows((FOLDER / name).read_bytes(), kind))


def _shows(content: bytes, kind: str) -> Callable[[], Awaitable[Response]]:
    async def show() -> Response:
        return Response(content, media_type=kind, headers=HEADERS)

    return show
