"""An assistant's reasoning before its answer: separated from the content, and where a chat template shows it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from components.conversations.chat_formats.shared_prefix import shared_prefix
from components.conversations.chat_formats.template_dialect import TemplateDialect
from components.conversations.chat_formats.template_probes import CALLING, PROBE, THINKING
from components.conversations.chat_formats.tool_call_parser import words_before
from components.conversations.messages import Message
from components.errors import InputError

TAG_AT_END = re.compile(r"<(?P<name>\w+)>\s*$")
# <think>\n\n</think>, or <|channel>thought\n<channel|>
EMPTY_AT_END = re.compile(r"<\|?(?P<name>\w+)\|?>[^<>]*(?P<end><[/|]?(?P=name)\|?>)\s*$")
DEFAULT_OPENER = "<think>\n"
Write = Callable[..., str]


@dataclass(frozen=True, slots=True, kw_only=True)
class ThoughtStyle:
    """`opener` comes before a thought, behind the prompt; `closer` between thought and answer, `call_closer` before calls.

    `is_hidden`: the template does not write the newest message's thought, so it is written here, as the model writes it.
    `is_closed`: prompts end a thought themselves, so there is none. `opened` is what a prompt has beyond the beginning of an
    answer without a thought. Without an opener the prompt opens every thought.
    """

    opener: str
    closer: str
    call_closer: str
    is_hidden: bool = False
    is_closed: bool = False
    opened: str = ""

    @property
    def tag(self) -> str:
        """What opens a thought, for people."""
        return self.opened.strip() or self.closer.strip().replace("</", "<")

    def separate(self, message: Message, where: str) -> Message:
        """Returns an assistant's message with the reasoning at the head of its content as its reasoning_content.

        Raises InputError, beginning with `where`, if it has reasoning in both.
        """
        thought, content = self.split(message.content)
        if message.role != "assistant" or thought is None:
            return message
        if message.reasoning_content.strip() not in ("", thought.strip()):
            raise InputError(f"{where} has a reasoning_content and another reasoning in its content; give it once")
        return replace(message, content=content, reasoning_content=thought)

    def split(self, text: str) -> tuple[str | None, str]:
        """Returns (thought, answer) of an answer in data, without blanks around; None as thought if there is none in it."""
        head, closer, answer = self._cut(text, (self.closer, "</think>", self.call_closer))
        thought = head.strip()
        tags = [tag for tag in (self.opener.strip(), self.opened.strip(), "<think>") if tag]
        # Words about the end of a thought are no thought, unless the prompt opens one before every answer.
        if not closer or (self.opener.strip() and not thought.startswith(tuple(tags))):
            return None, text
        # Data may open a thought that the prompt opens already.
        for tag in tags:
            thought = thought.removeprefix(tag).strip()
        return thought, _behind(answer, closer, keeps_blanks=False)

    def read(self, text: str) -> tuple[str, str]:
        """Returns (thought, answer) of what a model said, letter for letter; a thought that it did not end has no answer."""
        head, closer, answer = self._cut(text, (self.closer, "</think>", self.call_closer))
        if closer and self._thinks(head):
            return self._said_in(head, closer), _behind(answer, closer)
        if self._thinks(text) and text.lstrip().startswith(self.opener.strip()):
            return self._said_in(text, ""), ""
        return "", text

    def answer_of(self, text: str) -> str:
        """Returns the answer in an unfinished text: "" while the thought goes on."""
        head, closer, answer = self._cut(text, (self.closer, "</think>"))
        if closer and self._thinks(head):
            return _behind(answer, closer)
        return "" if self._thinks(text) else text

    def for_people(self, text: str) -> str | None:
        """Returns a text, which may be unfinished, with its thought in tags that people know; None if it has no thought."""
        if self.opener.startswith(text):
            return ""
        if not text.startswith(self.opener):
            return None
        said = text.removeprefix(self.opener)
        for closer in (self.closer, self.call_closer):
            thought, found, answer = said.partition(closer)
            # What ends a thought before calls may still become what ends one before an answer.
            if found and (closer == self.closer or not self.closer.startswith(closer + answer)):
                return f"<think>\n{thought}\n</think>\n\n{answer}"
        return f"<think>\n{words_before(said, self.closer)}"

    def _cut(self, text: str, closers: Sequence[str]) -> tuple[str, str, str]:
        """Returns the text before a closer, that closer, and the text behind it; "" as closer if there is none."""
        for closer in filter(str.strip, closers):
            head, found, behind = text.partition(closer.strip())
            if found:
                return head, closer, behind
        return text, "", ""

    def _thinks(self, text: str) -> bool:
        """Whether a text without the end of a thought is one, or may become one."""
        begun, opener = text.lstrip(), self.opener.strip()
        return bool(self.closer.strip()) and (begun.startswith(opener) or opener.startswith(begun))

    def _said_in(self, head: str, closer: str) -> str:
        """Returns the thought before a closer, with the blanks that are its own."""
        opener = self.opener if head.startswith(self.opener) else self.opener.strip()
        blanks = closer[: len(closer) - len(closer.lstrip())]
        thought = head.removeprefix(opener).removesuffix(blanks)
        return thought if thought.strip() else ""


def _behind(answer: str, closer: str, *, keeps_blanks: bool = True) -> str:
    """Returns what follows the end of a thought, without the blanks that the template writes there, or without any."""
    blanks = closer[len(closer.rstrip()) :]
    if answer.startswith(blanks) and (blanks or keeps_blanks):
        return answer.removeprefix(blanks)
    return answer.lstrip()


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
    thought = THINKING[1].reasoning_content
    if shown.startswith(prompt):
        opener, closer, call_closer = _around_thought(write, dialect, shown[len(prompt) :])
        return ThoughtStyle(opener=opener, closer=closer, call_closer=call_closer)
    opened = prompt[shared_prefix(prompt, plain) :]
    if thought in shown:
        opener, closer, call_closer = _around_thought(write, dialect, shown[len(prompt) - len(opened) :])
        if thought not in shown[len(prompt) - len(opened) :]:  # answers without a thought have the prompt's empty one
            before, _, behind = shown.rpartition(thought)
            opener, closer, call_closer = _around_thought(write, dialect, before[_opening(before) :] + thought + behind)
        is_closed = prompt.rstrip().endswith(closer.strip())
    else:
        tag, empty = TAG_AT_END.search(prompt), EMPTY_AT_END.search(prompt)
        if not (tag or empty) and "</think>" not in template:
            return None
        is_closed = empty is not None
        opener = "" if tag and not is_closed else DEFAULT_OPENER
        closer = call_closer = empty["end"] if empty else f"\n</{tag['name'] if tag else 'think'}>\n\n"
    return ThoughtStyle(
        opener=opener if is_closed or not opened else "",
        closer=closer,
        call_closer=call_closer,
        is_hidden=True,
        is_closed=is_closed,
        opened=opened,
    )


def _opening(text: str) -> int:
    """Returns where the tag begins with which a text ends."""
    tag = TAG_AT_END.search(text)
    return tag.start() if tag else len(text)


def _around_thought(write: Write, dialect: TemplateDialect, text: str) -> tuple[str, str, str]:
    """Returns what comes before the thought of a text, between it and the answer, and between it and calls."""
    opener, _, rest = text.partition(THINKING[1].reasoning_content)
    closer = rest.partition(THINKING[1].content)[0]
    return opener, closer, _call_closer(write, dialect, rest, closer)


def _call_closer(write: Write, dialect: TemplateDialect, rest: str, closer: str) -> str:
    """Returns what ends a thought before calls: the text behind it, as far as it is that before answers, too."""
    calling = replace(CALLING[1], reasoning_content=THINKING[1].reasoning_content)
    try:
        text = write([dialect.raw(CALLING[0]), dialect.raw(calling)])
    except InputError:
        return closer
    _, _, behind = text.rpartition(calling.reasoning_content)
    return rest[: shared_prefix(rest, behind)] or closer
