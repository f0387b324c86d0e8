"""An assistant's reasoning before its answer: separated from the content, and where a chat template shows it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from components.conversations.chat_formats.template_dialect import TemplateDialect
from components.conversations.chat_formats.template_probes import PROBE, THINKING
from components.conversations.messages import Message
from components.errors import InputError

TAG = re.compile(r"<(\w+)>")
DEFAULT_OPENER = "<think>\n"
Write = Callable[..., str]


@dataclass(frozen=True, slots=True, kw_only=True)
class ThoughtStyle:
    """`opener` comes before a thought, behind the prompt; `closer` between thought and answer.

    `is_hidden`: the template does not write the newest message's thought, so it is written here, as the model writes it.
    `opened` is then the end of a prompt that opens the thought itself; "" if none does.
    """

    opener: str
    closer: str
    is_hidden: bool = False
    opened: str = ""

    def separate(self, message: Message, where: str) -> Message:
        """Returns an assistant's message with the reasoning at the head of its content as its reasoning_content.

        Raises InputError, beginning with `where`, if it has reasoning in both.
        """
        thought, content = self.split(message.content)
        if message.role != "assistant" or thought is None:
            return message
        if message.reasoning_content.strip() not in ("", thought):
            raise InputError(f"{where} has a reasoning_content and another reasoning in its content; give it once")
        return replace(message, content=content, reasoning_content=thought)

    def split(self, text: str) -> tuple[str | None, str]:
        """Returns (thought, answer) of an answer's text; None as thought if there is none in it."""
        for opener, closer in dict.fromkeys([(self.opener, self.closer), ("<think>", "</think>")]):
            head, found, answer = text.partition(closer.strip())
            if found and closer.strip():
                # A prompt may have opened the thought already.
                return head.strip().removeprefix(opener.strip()).strip(), answer.lstrip()
        return None, text

    def answer_of(self, text: str) -> str:
        """Returns the answer in an unfinished text: "" while the thought goes on."""
        thought, answer = self.split(text)
        if thought is not None:
            return answer
        begun = text.lstrip()
        opener = self.opener.strip()
        thinks = bool(self.opened) or begun.startswith(opener) or opener.startswith(begun)
        return "" if thinks and opener else text


def learn_thoughts(write: Write, dialect: TemplateDialect, template: str) -> ThoughtStyle | None:
    """Returns how a template's model thinks; None if it does not, or the template cannot say so.

    Args:
        write: renders raw messages; `ask=True` ends the text at the start of the assistant's next turn.
    """
    asked = [dialect.raw(message) for message in THINKING[:1]]
    try:
        prompt = write(asked, ask=True)
        plain = write([*asked, dialect.raw(PROBE[1])])
        shown = write([*asked, dialect.raw(THINKING[1])]) if dialect.reasoning_key else ""
    except InputError:
        return None
    if shown.startswith(prompt):
        thought, answer = THINKING[1].reasoning_content, THINKING[1].content
        opener, _, rest = shown[len(prompt) :].partition(thought)
        return ThoughtStyle(opener=opener, closer=rest.partition(answer)[0])
    opened = "" if plain.startswith(prompt) else _opened(prompt, plain)
    if not opened and "</think>" not in template:
        return None
    tag = TAG.search(opened or DEFAULT_OPENER)
    if tag is None:
        return None
    opener = "" if opened else DEFAULT_OPENER
    return ThoughtStyle(opener=opener, closer=f"\n</{tag[1]}>\n\n", is_hidden=True, opened=opened)


def _opened(prompt: str, newest: str) -> str:
    """Returns what a prompt has beyond what the newest message is rendered behind."""
    shared = next((at for at in range(min(len(prompt), len(newest))) if prompt[at] != newest[at]), len(prompt))
    return prompt[shared:]
