"""Checks what may name a location: a path, or a URI of an object store without keys and passwords."""

from __future__ import annotations

from urllib.parse import parse_qs, urlsplit

from components.errors import InputError

REMOTE_SCHEMES = ("s3", "gs")
SECRET_PARAMETERS = {"access_key", "secret_key", "session_token", "password", "token"}


def is_remote(location: str) -> bool:
    return location.partition("://")[0] in REMOTE_SCHEMES and "://" in location


def check_uri(location: str) -> str:
    """Returns the location. Raises InputError for a URI that names no storage or contains a secret."""
    scheme, separator, _ = location.partition("://")
    if not separator:
        return location
    parts = urlsplit(location)
    if "@" in parts.netloc or SECRET_PARAMETERS & {key.lower() for key in parse_qs(parts.query)}:
        raise InputError(
            f"a {scheme}:// URI with a user, password or key in it would appear in logs and manifests; take it out, and give"
            " the key by the environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, GOOGLE_APPLICATION_CREDENTIALS) or by"
            " the machine's own role"
        )
    if scheme not in (*REMOTE_SCHEMES, "file"):
        raise InputError(f"{scheme}:// is no storage; name a folder, s3://BUCKET/PREFIX or gs://BUCKET/PREFIX")
    if scheme in REMOTE_SCHEMES and not parts.netloc:
        raise InputError(f"{location} names no bucket; write {scheme}://BUCKET/PREFIX")
    return location
