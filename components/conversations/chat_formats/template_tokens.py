"""The control tokens that a chat template writes itself: at the start of a role, inside assistant turns, and anywhere."""

from __future__ import annotations

from dataclasses import dataclass, field

from components.conversations.chat_formats.control_tokens import AddedTokens
from components.conversations.chat_formats.template_dialect import Raw, TemplateDialect
from components.conversations.chat_formats.template_probes import LAST_OF_CALL, PROBES
from components.conversations.chat_formats.template_renderer import TemplateRenderer
from components.conversations.chat_formats.turn_stops import TurnStops
from components.errors import InputError

SOURCE = "a trial conversation"


@dataclass(slots=True)
class TemplateTokens:
    begins: set[str] = field(default_factory=set)
    inside: set[str] = field(default_factory=set)
    anywhere: set[str] = field(default_factory=set)

    def forbidden_to_assistants(self, stops: TurnStops, added: AddedTokens, template: str) -> set[str]:
        """Returns the control texts that an assistant's text must not contain as tokens.

        Allowed are those inside the assistant's own turns, and special tokens without a purpose that the template never
        uses.
        """
        known = {text for text in added.special if text in self.anywhere or text in template}
        ends = {token for text in stops.texts() for token in added.find(text)}
        return ends | self.begins | added.with_purpose | (known - self.inside)


def learn_tokens(renderer: TemplateRenderer, dialect: TemplateDialect, stops: TurnStops) -> TemplateTokens:
    """Renders trial conversations, whose messages contain no control token, and collects those in the text."""
    found = TemplateTokens()
    for messages, tools in PROBES:
        try:
            _add_tokens(found, renderer, [dialect.raw(message) for message in messages], tools, stops)
        except InputError:
            continue
    return found


def _add_tokens(
    found: TemplateTokens, renderer: TemplateRenderer, raw: list[Raw], tools: list[Raw], stops: TurnStops
) -> None:
    added = renderer.added
    text = renderer.write(raw, tools, SOURCE)
    found.anywhere |= added.find(text)
    found.begins |= {token for token in added.texts if text.lstrip().startswith(token)}
    said, answered = 0, False  # where the message before ends, without its stop
    for position, message in enumerate(raw):
        words = message["content"].strip() or LAST_OF_CALL
        if message["role"] != "assistant":
            found.begins |= added.find(text[said : text.find(words, said)]) if answered else set()
            said = text.find(words, said) + len(words)
            continue
        before = renderer.write(raw[:position], tools, SOURCE)
        prompt = renderer.write(raw[:position], tools, SOURCE, ask=True)
        newest = renderer.write(raw[: position + 1], tools, SOURCE)
        wanted = stops.written_behind(message)
        stop = newest.rfind(wanted) if wanted else len(newest)
        found.begins |= added.find(prompt[len(before) :])
        found.inside |= added.find(newest[len(prompt) : stop] if newest.startswith(prompt) else "")
        found.anywhere |= added.find(prompt) | added.find(newest)
        said = text.find(words, said) + len(words)
        closing = newest[newest.rfind(words) + len(words) : stop]
        said += len(closing) if text.startswith(closing, said) else 0
        answered = True
