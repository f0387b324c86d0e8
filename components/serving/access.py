"""Which secret clients must bring, by the address that a server listens on."""

from __future__ import annotations

import ipaddress
import os

from components.errors import InputError

TOKEN_VARIABLE = "TURNWISE_SERVE_TOKEN"
SHORTEST_TOKEN = 16


def token_for(host: str) -> str | None:
    """Returns the token that clients must bring. Raises InputError if they need one and there is none."""
    token = os.environ.get(TOKEN_VARIABLE)
    if token is None:
        if not is_loopback(host):
            raise InputError(
                f"--host {host}: others could use the models; set {TOKEN_VARIABLE} to a secret that clients must bring"
            )
        return None
    if len(token.strip()) < SHORTEST_TOKEN:
        raise InputError(f"{TOKEN_VARIABLE}: must have at least {SHORTEST_TOKEN} characters")
    return token.strip()


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
