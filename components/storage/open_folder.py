"""Opens the folder that a path or a URI names."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from components.storage.folder import Folder
from components.storage.local import LocalFolder
from components.storage.uri import check_uri, is_remote


def folder_at(location: str | Path) -> Folder:
    """Raises InputError for a URI that names no storage."""
    uri = check_uri(str(location))
    if is_remote(uri):
        from components.storage.object_store import ObjectStoreFolder  # pyarrow is imported only where it is needed

        parts = urlsplit(uri)
        return ObjectStoreFolder(parts._replace(path=parts.path.rstrip("/")).geturl())
    path = unquote(urlsplit(uri).path) if uri.startswith("file:") else uri
    return LocalFolder(str(Path(path).expanduser().absolute()))
