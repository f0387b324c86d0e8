"""What a request passes before anything reads it: host and origin, token, size, and time.

A web page that a person visits may send requests to servers on their machine. Such a request names the page's origin, or the
page's own host, and is refused: neither may be another one than the server's.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from components.serving.chat_page import FILES
from components.serving.chat_response import error_body
from components.serving.limits import Limits

LOOPBACK = ("127.0.0.1", "localhost", "::1")
IS_TRUSTED = "turnwise.is_trusted"  # of a request's scope: it may see more than that the server lives
FORGOTTEN = 8  # times the longest body
WITHOUT_TOKEN = (*FILES, "/health")  # the page, which holds no secret, and what a load balancer asks


class Guard:
    """An ASGI application around another one.

    Args:
        hosts: names by which clients may call the server; None for any, which needs a token.
        token: that every request must bring, as `Authorization: Bearer TOKEN`.
    """

    def __init__(self, app: ASGIApp, limits: Limits, *, hosts: Iterable[str] | None, token: str | None) -> None:
        if hosts is None and token is None:
            raise ValueError("a server for any host needs a token")
        self.app, self.limits = app, limits
        self.hosts = None if hosts is None else frozenset(hosts)
        self._token = None if token is None else token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        scope[IS_TRUSTED] = self._token is None or self._has_token(Headers(scope=scope))
        refusal = self._refusal(scope)
        if refusal is None and scope["type"] == "http":
            try:
                body = await asyncio.wait_for(self._body(scope, receive), self.limits.body_seconds)
            except TimeoutError:
                refusal = _refused(408, f"the request did not come within {self.limits.body_seconds:g} seconds")
            else:
                if body is not None:
                    await self.app(scope, _again(body, receive), send)
                    return
                refusal = _refused(413, f"the body has more than {self.limits.body_bytes:,} bytes, which is the limit")
        await (refusal or _refused(404, "there is nothing here but HTTP"))(scope, receive, send)

    def _refusal(self, scope: Scope) -> JSONResponse | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if self.hosts is not None and _name_of(host) not in self.hosts:
            return _refused(403, f"Host: {host[:100]!r} is not this server; call it {' or '.join(sorted(self.hosts))}")
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host:
            return _refused(403, f"Origin: {origin[:100]!r} is another site, whose pages may not use this server")
        if scope["path"] not in WITHOUT_TOKEN and not scope[IS_TRUSTED]:
            return _refused(
                401, "the token is missing, or another one; send it as Authorization: Bearer TOKEN", "invalid_api_key"
            )
        return None

    def _has_token(self, headers: Headers) -> bool:
        kind, _, given = headers.get("authorization", "").partition(" ")
        return kind.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), self._token or b"")

    async def _body(self, scope: Scope, receive: Receive) -> bytes | None:
        """Returns the body; None if it is too long.

        Of one that is too long a part is read and forgotten: a client that is answered while it sends may see no answer.
        """
        body, read = bytearray(), 0
        while read <= FORGOTTEN * self.limits.body_bytes:
            message = await receive()
            part = message.get("body", b"")
            read += len(part)
            if read <= self.limits.body_bytes:
                body += part
            if message["type"] == "http.disconnect" or not message.get("more_body", False):
                return bytes(body) if read <= self.limits.body_bytes else None
        return None


def _again(body: bytes, receive: Receive) -> Receive:
    """Returns a `receive` that first gives the body that was read."""
    given = False

    async def receive_again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive_again


def _name_of(host: str) -> str:
    """Returns the host without its port; of an IPv6 address without its brackets."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _refused(status: int, message: str, code: str | None = None) -> JSONResponse:
    headers = {"Connection": "close"} if status in (408, 413) else None  # what is still to come of it is not read
    return JSONResponse(error_body(message, code=code), status, headers)
