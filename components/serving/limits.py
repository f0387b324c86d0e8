"""What one client may ask of a server, and all of them together."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Tokens of a prompt are bounded by the model's context, too.

    body_bytes: of one request.
    messages: of one conversation.
    prompt_tokens, reply_tokens: of one request.
    default_reply_tokens: if a request says nothing, as many clients do, whose long replies would be cut.
    choices: `n`, replies to one request.
    waiting: replies that wait for a place in a batch, of all models of one base together.
    rows: replies that are made at once, of one model.
    batch_tokens: in the cache of one model, prompts, padding and replies included.
    body_seconds: until the whole request has come.
    request_seconds: until its last token is made.
    """

    body_bytes: int = 2 * 2**20
    messages: int = 1000
    prompt_tokens: int = 2**15
    reply_tokens: int = 2**15
    default_reply_tokens: int = 4096
    choices: int = 8
    waiting: int = 128
    rows: int = 32
    batch_tokens: int = 2**17
    body_seconds: float = 20.0
    request_seconds: float = 600.0
