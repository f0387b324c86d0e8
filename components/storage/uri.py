"""What may name a place: a path, or a URI of an object store. Keys and passwords are no part of it."""

from __future__ import annotations

from urllib.parse import parse_qs, urlsplit

REMOTE = ("s3", "gs")
SECRETS = {"access_key", "secret_key", "session_token", "password", "token"}


def is_remote(place: str) -> bool:
    return place.partition("://")[0] in REMOTE and "://" in place


def checked(place: str) -> str:
    """The place itself. Raises ValueError, with the way out, for a URI that names no storage or tells a secret."""
    scheme, separator, _ = place.partition("://")
    if not separator:
        return place
    parts = urlsplit(place)
    if "@" in parts.netloc or SECRETS & {key.lower() for key in parse_qs(parts.query)}:
        raise ValueError(
            f"a {scheme}:// URI with a user, password or key in it would stand in logs and manifests; take it out, and give"
            " the key by the environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, GOOGLE_APPLICATION_CREDENTIALS) or by"
            " the machine's own role"
        )
    if scheme not in (*REMOTE, "file"):
        raise ValueError(f"{scheme}:// is no storage; name a folder, s3://BUCKET/PREFIX or gs://BUCKET/PREFIX")
    if scheme in REMOTE and not parts.netloc:
        raise ValueError(f"{place} names no bucket; write {scheme}://BUCKET/PREFIX")
    return place
