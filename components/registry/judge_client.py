"""Asks an OpenAI-compatible chat endpoint which of two answers is better. The key stays in the environment and here.

No error of this file has the text of a reply: an endpoint may repeat the key in it.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, Literal

from components.experiment.spec import JudgeSpec

Choice = Literal["A", "B", "T"]
TRIES = 3
WAITS = (1.0, 4.0)  # seconds before another try
MAX_WAIT = 30.0  # seconds, whatever an endpoint asks for
FINAL = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND)
WORTH_A_RETRY = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.REQUEST_TIMEOUT)
INSTRUCTION = (
    "You compare two answers to the last message of a conversation. Which one helps its writer more: is right, complete,"
    " to the point and in the writer's language? Length alone is no merit. Reply with one letter and nothing else: A or B,"
    " or T if they are equally good."
)


class JudgeError(Exception):
    """Why a question was not judged, without a word of the reply. `final`: no other question will be judged either."""

    def __init__(self, reason: str, *, final: bool = False) -> None:
        super().__init__(reason)
        self.final = final


class MalformedReplyError(JudgeError):
    """The endpoint answered, and not with one of the letters."""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect would take the key to another host."""

    def redirect_request(self, *_: Any) -> None:
        return None


class JudgeClient:
    """One endpoint. Its methods may be called from several threads."""

    def __init__(self, spec: JudgeSpec, *, waits: Sequence[float] = WAITS) -> None:
        self.spec, self.waits = spec, waits
        self._opener = urllib.request.build_opener(_NoRedirects)
        self._temperature: dict[str, float] = {"temperature": 0.0}

    def choose(self, conversation: str, first: str, second: str) -> Choice:
        """Returns A for the first answer, B for the second, T for neither. Raises JudgeError."""
        asked = (
            f"<conversation>\n{conversation}\n</conversation>\n\n<answer_A>\n{first}\n</answer_A>\n\n"
            f"<answer_B>\n{second}\n</answer_B>\n\nWhich answer is better: A, B or T?"
        )
        messages = [{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": asked}]
        return _choice_in(self._ask(messages))

    def _ask(self, messages: list[dict[str, str]]) -> bytes:
        """Returns the body of the reply. Tries again what may pass."""
        for wait in (*self.waits[: TRIES - 1], None):
            temperature = self._temperature
            try:
                return self._post({"model": self.spec.model, "messages": messages, **temperature})
            except urllib.error.HTTPError as error:
                error.close()
                reason = f"HTTP {error.code} {_phrase(error.code)}".strip()
                if error.code == HTTPStatus.BAD_REQUEST and temperature and wait is not None:
                    self._temperature = {}  # models that reason take none
                    continue
                passes = error.code in WORTH_A_RETRY or error.code >= HTTPStatus.INTERNAL_SERVER_ERROR
                if wait is None or not passes:
                    raise JudgeError(reason, final=error.code in FINAL) from None
                time.sleep(max(wait, _asked_wait(error.headers.get("Retry-After"))))
            except (OSError, http.client.HTTPException) as error:
                if wait is None:
                    raise JudgeError(f"no reply ({type(error).__name__})") from None
                time.sleep(wait)
        raise AssertionError("the last try has returned or raised")

    def _post(self, content: dict[str, Any]) -> bytes:
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(self.spec.key_env, "").strip():
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(
            f"{self.spec.url.rstrip('/')}/chat/completions",
            data=json.dumps(content).encode(),
            headers=headers,
            method="POST",
        )
        with self._opener.open(request, timeout=self.spec.timeout_seconds) as reply:
            return bytes(reply.read())


def _choice_in(body: bytes) -> Choice:
    """The letter that a reply ends with, behind a thought if it has one."""
    try:
        content = json.loads(body)["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError):
        raise MalformedReplyError("a reply that is no chat completion") from None
    said = str(content or "").rpartition("</think>")[2].strip().strip("*`\"'()[].:").strip()
    letters = set(re.findall(r"\b[ABT]\b", said.splitlines()[-1] if said else ""))
    if len(letters) != 1:
        raise MalformedReplyError("a reply without one of the letters A, B and T")
    letter: Choice = letters.pop()
    return letter


def _phrase(code: int) -> str:
    return HTTPStatus(code).phrase if code in HTTPStatus.__members__.values() else ""


def _asked_wait(retry_after: str | None) -> float:
    return min(float(retry_after), MAX_WAIT) if retry_after and retry_after.isdigit() else 0.0
