"""Which conversations belong together: those whose records have the same value in one field, e.g. of one user."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from components.conversations.readers.raw_message import RecordFormatError
from components.conversations.readers.record_formats import GROUP_KEY, RawConversation
from components.conversations.readers.unknown_keys import is_absent


def add_group(raw: RawConversation, record: Any, group_by: str | None) -> RawConversation:
    """Returns the conversation with its group: a text or a whole number in the field `group_by`, by default `group`.

    A field that was asked for must be there, for a misspelt one would group nothing; null or "" says that a conversation
    belongs to no other. Raises RecordFormatError.
    """
    field, keys = group_by or GROUP_KEY, record if isinstance(record, dict) else {}
    if group_by is not None and field not in keys:
        has = f"keys: {', '.join(map(str, keys)) or 'none'}" if isinstance(record, dict) else "it is a list of messages"
        raise RecordFormatError(
            f'has no "{field}", by which data.group_by groups conversations ({has}); name a field of every record, and'
            " give it null where a conversation belongs to no other"
        )
    unread = [GROUP_KEY] if field != GROUP_KEY and not is_absent(keys.get(GROUP_KEY)) else []
    return replace(
        raw,
        group=_group_of(keys, field),
        unknown=[key for key in raw.unknown if key.where != f"record.{field}"],
        notes=[*(key for key in raw.notes if key != field), *unread],
    )


def _group_of(keys: dict[str, Any], field: str) -> str | None:
    group = keys.get(field)
    if group is None or (isinstance(group, str) and not group.strip()):
        return None
    if isinstance(group, bool) or not isinstance(group, str | int):
        raise RecordFormatError(f'"{field}" must be a text or a whole number, not {type(group).__name__}')
    return str(group)
