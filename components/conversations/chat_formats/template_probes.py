"""Trial conversations, by which a chat template shows how it writes turns. Their words occur once each."""

from __future__ import annotations

from typing import Any

from components.conversations.messages import Message

PROBE = (
    Message(role="user", content="one"),
    Message(role="assistant", content="two"),
    Message(role="user", content=" three\n"),
    Message(role="assistant", content="four"),
)
PROBE_TOOL: dict[str, Any] = {"type": "function", "function": {"name": "probe", "parameters": {"type": "object"}}}
PROBE_CALL: dict[str, Any] = {
    "id": "call00001",
    "type": "function",
    "function": {"name": "probe", "arguments": {"key": "value"}},
}
LAST_OF_CALL = "value"  # the last word of the call
SYSTEM = Message(role="system", content="zero")
CALLING = (
    PROBE[0],
    Message(role="assistant", content="", tool_calls=(PROBE_CALL,)),
    Message(role="tool", content="five", tool_call_id="call00001", name="probe"),
    PROBE[3],
)
THINKING = (PROBE[0], Message(role="assistant", content="two", reasoning_content="six"))
# A template may refuse or ignore some of them.
PROBES: tuple[tuple[tuple[Message, ...], list[dict[str, Any]]], ...] = (
    (PROBE, []),
    ((SYSTEM, *PROBE), []),
    (CALLING, []),
    (CALLING, [PROBE_TOOL]),
    (THINKING, []),
    ((SYSTEM, *CALLING), [PROBE_TOOL]),
)
