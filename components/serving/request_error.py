"""The errors that a client gets, in the form of OpenAI's API."""

from __future__ import annotations

from http import HTTPStatus

from fastapi.responses import JSONResponse

from components.serving.chat_response import error_body


class RequestError(Exception):
    """A request that is answered by an error of this status."""

    def __init__(self, status: int, message: str, *, code: str | None = None, kind: str = "invalid_request_error"):
        super().__init__(message)
        self.status, self.code, self.kind = status, code, kind
        self.is_counted = False  # in the metrics of its model

    def response(self) -> JSONResponse:
        headers = {"Retry-After": "1"} if self.status == HTTPStatus.TOO_MANY_REQUESTS else None
        return JSONResponse(error_body(str(self), self.kind, self.code), self.status, headers)
