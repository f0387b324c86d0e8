"""An assistant's turn as text, as the model sees it in use: the prompt, then the newest message up to its stop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from components.conversations.chat_formats.template_dialect import Raw
from components.conversations.chat_formats.template_renderer import TemplateRenderer
from components.conversations.chat_formats.thoughts import ThoughtStyle
from components.conversations.chat_formats.turn_stops import TurnStops
from components.conversations.messages import REASONING_KEYS, hidden_reasoning_problem
from components.errors import InputError

THOUGHT = REASONING_KEYS[0]  # where a message has its reasoning if the template reads none


class NeverSaidError(InputError):
    """A turn that no model would say behind its prompt: it cannot be scored, but it can be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AssistantTurn:
    """Characters of `text`: the prompt ends at `start`, the thought at `answer`, and what is said at `end_of_words`.

    There its stop begins, and the last token of that at `stop`. Without a thought `answer` is `start`.
    """

    position: int
    text: str
    start: int
    answer: int
    end_of_words: int
    stop: int

    @property
    def prompt(self) -> str:
        return self.text[: self.start]


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnReader:
    """Finds the turns of one template by rendering it up to the start and up to the end of each."""

    renderer: TemplateRenderer
    stops: TurnStops
    thoughts: ThoughtStyle | None
    reasoning_key: str | None

    def turn(self, raw: Sequence[Raw], tools: list[Any], position: int, source: str) -> AssistantTurn:
        """Raises InputError if the template does not show all that the assistant said, in a way that a model can say it."""
        where = f"{source}: message {position + 1}"
        prompt = self.renderer.write(raw[:position], tools, source, ask=True)
        newest = self._in_use(prompt, raw, tools, position, source)
        written, stop = self._find_stop(newest, len(prompt), raw, position, where)
        self._check_words(written[len(prompt) : stop], raw[position], where)
        last_token = written.rfind(self.renderer.added.last_in(written[stop:]), stop)
        return AssistantTurn(
            position=position,
            text=written,
            start=len(prompt),
            answer=self._end_of_thought(written, len(prompt), raw[position]),
            end_of_words=stop,
            stop=last_token,
        )

    def _in_use(self, prompt: str, raw: Sequence[Raw], tools: list[Any], position: int, source: str) -> str:
        """Returns the prompt and what follows it in use. Raises NeverSaidError if nothing that the template writes does."""
        newest = self.renderer.write(raw[: position + 1], tools, source)
        thought = self._thought_of(raw[position])
        if newest.startswith(prompt) and thought in newest[len(prompt) :]:
            return newest
        where = f"{source}: message {position + 1}"
        self._check_thought_fits(newest.startswith(prompt), thought, where)
        written = self._behind_opened_thought(prompt, raw, tools, position, source) or self._behind_quiet_history(
            prompt, raw, tools, position, source
        )
        if written is None and not newest.startswith(prompt):
            raise NeverSaidError(
                f"{where}: chat_format {self.renderer.name} does not write it behind its own prompt, which ends in"
                f" {prompt[-20:]!r}"
            )
        return written or newest

    def _check_thought_fits(self, continues: bool, thought: str, where: str) -> None:
        """Raises NeverSaidError for a thought behind a prompt that ends it, and for none behind one that opens it."""
        style = self.thoughts
        if style is not None and thought and style.is_closed:
            raise NeverSaidError(
                f"{where} has reasoning, and the prompt says that there is none; take it out"
                f"{self.renderer.way_with_thoughts()}"
            )
        if style is not None and not (thought or continues or style.is_closed) and not style.opener:
            raise NeverSaidError(
                f"{where} has no reasoning, and the prompt opens one ({style.tag}); give its reasoning_content"
                f"{self.renderer.way_without_thoughts()}"
            )

    def _behind_opened_thought(
        self, prompt: str, raw: Sequence[Raw], tools: list[Any], position: int, source: str
    ) -> str | None:
        """Returns the prompt, the thought that the template does not write behind it, and the answer.

        None if the prompt is no beginning of the answer for another reason, or the thought does not fit the prompt.
        """
        style, thought = self.thoughts, self._thought_of(raw[position])
        if style is None or not prompt.endswith(style.opened) or bool(thought) == style.is_closed:
            return None
        shared = prompt.removesuffix(style.opened)
        answered = self.renderer.write([*raw[:position], _without_thought(raw[position])], tools, source)
        if not answered.startswith(shared):
            return None
        answer = answered[len(shared) :]
        if not thought or answer.lstrip().startswith(style.closer.strip()):  # of an empty thought, which this one fills
            return prompt + thought + answer
        return f"{prompt}{style.opener}{thought}{style.closer}{answer}"

    def _behind_quiet_history(
        self, prompt: str, raw: Sequence[Raw], tools: list[Any], position: int, source: str
    ) -> str | None:
        """Returns the prompt and what the template writes of the newest message behind messages without thoughts.

        An answer may hide the thoughts of the calls before it, which its own prompt shows. None if that is not the reason.
        """
        quiet = [_without_thought(message) for message in raw[:position]]
        asked = self.renderer.write(quiet, tools, source, ask=True)
        answered = self.renderer.write([*quiet, raw[position]], tools, source)
        return prompt + answered.removeprefix(asked) if answered.startswith(asked) else None

    def _find_stop(self, newest: str, start: int, raw: Sequence[Raw], position: int, where: str) -> tuple[str, int]:
        """Returns the text up to the end of its stop, and where the stop begins."""
        if behind := self.stops.added_behind(raw, position):
            return newest + behind, len(newest)
        wanted = self.stops.written_behind(raw[position])
        stop = newest.rfind(wanted, start)
        if stop < 0:
            raise InputError(f"{where}: no stop token {wanted} ends it")
        return newest[: stop + len(wanted)], stop

    def _check_words(self, said: str, message: Raw, where: str) -> None:
        calls = (call["function"]["name"] for call in message.get("tool_calls", ()))
        for words in (message["content"].strip(), *calls):
            if words not in said:
                raise InputError(f"{where}: {self.renderer.limitation(f'does not show {words!r}', 'does')}")
        if self._thought_of(message) not in said:
            raise InputError(f"{where}: {hidden_reasoning_problem(self.renderer.name)}")

    def _thought_of(self, message: Raw) -> str:
        return str(message.get(self.reasoning_key or THOUGHT, "")).strip()

    def _end_of_thought(self, text: str, start: int, message: Raw) -> int:
        """Returns where a thought ends, with what closes it; `start` if there is none."""
        if self.thoughts is None:
            return start
        style, thought = self.thoughts, self._thought_of(message)
        closer = (style.closer if message["content"].strip() else style.call_closer).strip()
        end = text.find(thought, start) + len(thought)
        closed = text.find(closer, end)
        if not thought and (closed < 0 or text[start:closed].strip() not in ("", style.opener.strip())):
            return start  # not even an empty one
        return closed + len(closer) if closed >= 0 else end


def _without_thought(message: Raw) -> Raw:
    return {key: value for key, value in message.items() if key not in REASONING_KEYS}
