"""Checks what may name a location: a path, or a URI without keys and passwords, and hides those of others."""

from __future__ import annotations

import re
from urllib.parse import SplitResult, parse_qs, urlsplit

from components.errors import InputError

REMOTE_SCHEMES = ("s3", "gs")
SERVER_SCHEMES = ("http", "https")
SECRET_PARAMETERS = {
    "access_key",
    "api_key",
    "key",
    "password",
    "passwd",
    "pwd",
    "secret",
    "secret_key",
    "session_token",
    "sig",
    "sslpassword",
    "token",
}
# How else the secret may be given, by the kind of URI.
OF_STORAGE = (
    "the key by the environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, GOOGLE_APPLICATION_CREDENTIALS) or by"
    " the machine's own role"
)
OF_SERVER = (
    "an MLflow server's by the environment (MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or"
    " MLFLOW_TRACKING_TOKEN), a judge's by the variable that registry.judge.key_env names"
)
OF_DATABASE = (
    "a database's password by its driver's own file or variable (~/.pgpass, PGPASSWORD, ?read_default_file=), or name an"
    " MLflow server in front of it"
)
_USER_INFO = re.compile(r"//(?:[^/\s]*|[^/\s:@]*:(?!\d*(?:/|\s|$))\S*)@")
_PARAMETER = re.compile(rf"([?&](?:{'|'.join(sorted(SECRET_PARAMETERS))})=)[^&\s'\"]*", re.IGNORECASE)


def is_remote(location: str) -> bool:
    return location.partition("://")[0] in REMOTE_SCHEMES and "://" in location


def check_uri(location: str) -> str:
    """Returns the location. Raises InputError for a URI that names no storage or contains a secret."""
    scheme, separator, _ = location.partition("://")
    if not separator:
        return location
    check_no_secret(location)
    if scheme not in (*REMOTE_SCHEMES, "file"):
        raise InputError(f"{scheme}:// is no storage; name a folder, s3://BUCKET/PREFIX or gs://BUCKET/PREFIX")
    if scheme in REMOTE_SCHEMES and not _split(location).netloc:
        raise InputError(f"{location} names no bucket; write {scheme}://BUCKET/PREFIX")
    return location


def check_no_secret(uri: str) -> str:
    """Returns the URI, of whatever kind. Raises InputError, which does not show it, if there is a key or password in it.

    A database's URI may name its user.
    """
    scheme, separator, rest = uri.partition("://")
    if not separator or not scheme or any(letter.isspace() for letter in uri):
        return uri
    parts = _split(uri)
    user, at, _ = parts.netloc.rpartition("@")
    if scheme in SERVER_SCHEMES:
        at = at or ("@" if _USER_INFO.match(f"//{rest}") else "")  # a password with a slash in it ends the host's part
    elif scheme not in REMOTE_SCHEMES:
        at = at if ":" in user else ""
    if at or SECRET_PARAMETERS & {key.lower() for key in parse_qs(parts.query)}:
        way = OF_STORAGE if scheme in REMOTE_SCHEMES else OF_SERVER if scheme in SERVER_SCHEMES else OF_DATABASE
        raise InputError(
            f"a {scheme}:// URI with a user, password or key in it would appear in logs and manifests; take it out, and"
            f" give {way}"
        )
    return uri


def without_secrets(text: str) -> str:
    """Removes users, passwords and keys from all URIs in a text, for logs and messages."""
    return _PARAMETER.sub(r"\1***", _USER_INFO.sub("//", text))


def _split(uri: str) -> SplitResult:
    try:
        return urlsplit(uri)
    except ValueError:  # its message would show the host's part, with what is in it
        raise InputError("no URI: what is between // and the next / cannot be read as a host") from None
