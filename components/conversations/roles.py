"""The names of roles in other tools; data files and requests understand the same ones, in any case of letters."""

from __future__ import annotations

from typing import Any

from components.conversations.messages import ROLES, Role

NAMES: dict[Role, tuple[str, ...]] = {
    "system": ("system", "developer"),
    "user": ("user", "human"),
    "assistant": (
        *("assistant", "gpt", "model", "bot", "ai", "chatgpt", "bing", "bard"),
        *("tool_call", "function_call"),
    ),
    "tool": ("tool", "function", "observation", "function_response", "tool_response", "ipython"),
}
CALLING = ("tool_call", "function_call")  # an assistant's message whose content is what it calls
ROLES_ARE = f"roles are {', '.join(ROLES)}"
_ROLES = {name: role for role, names in NAMES.items() for name in names}


def role_of(name: Any) -> Any:
    """Returns the role that a name means. What is no name of a role is returned unchanged."""
    return _ROLES.get(name.lower(), name) if isinstance(name, str) else name


def is_calling(name: Any) -> bool:
    return isinstance(name, str) and name.lower() in CALLING
