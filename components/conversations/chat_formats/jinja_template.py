"""The chat format of any tokenizer with a chat template.

Targets are found by segments: the template is rendered up to the start and up to the end of each assistant turn, as the
model sees it in use. What lies between, including its stop, is scored. A template that only appends makes one path of
tokens; of one that rewrites earlier turns, the turns become the sequences of a prefix tree.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from components.conversations.canonical_tools import canonicalize
from components.conversations.chat_formats.assistant_turns import AssistantTurn, NeverSaidError, TurnReader
from components.conversations.chat_formats.bounded_template import TemplateCall
from components.conversations.chat_formats.calls_ahead import calls_ahead
from components.conversations.chat_formats.chatml import knows_chatml
from components.conversations.chat_formats.control_tokens import AddedTokens, ControlTokenEncoder
from components.conversations.chat_formats.conversation_bounds import check_size, check_turns_one_by_one
from components.conversations.chat_formats.listed_arguments import learn_listed_arguments
from components.conversations.chat_formats.named_templates import templates_of
from components.conversations.chat_formats.rendered import RenderedConversation, merge_sequences
from components.conversations.chat_formats.segment_encoder import SegmentEncoder, TemplateText
from components.conversations.chat_formats.template_arguments import with_arguments
from components.conversations.chat_formats.template_date import dates_of, pin_date
from components.conversations.chat_formats.template_dialect import Raw, learn_dialect
from components.conversations.chat_formats.template_probes import PROBE, THINKING
from components.conversations.chat_formats.template_renderer import TemplateRenderer
from components.conversations.chat_formats.template_tokens import SOURCE, learn_tokens
from components.conversations.chat_formats.thoughts import ThoughtStyle, learn_thoughts
from components.conversations.chat_formats.tool_call_parser import learn_tool_calls
from components.conversations.chat_formats.turn_borders import MAX_TURNS_RENDERED, find_turns, sample
from components.conversations.chat_formats.turn_stops import TurnStops, learn_stops
from components.conversations.messages import REASONING_KEYS, Conversation, Message, prepend_system
from components.errors import InputError
from components.experiment.spec import ChatFormatSpec

VERSION = 4  # raise it when a change here renders anything differently: it is part of the digest of prepared data
OWN_TEXT_KEYS = ("content", *REASONING_KEYS)  # the keys of an assistant's own text


@dataclass(frozen=True, slots=True)
class _Prepared:
    """Messages for the template. `mark` is inside every control text that they contain; "" if there is none."""

    raw: list[Raw]
    tools: list[Any]
    weights: list[float]
    mark: str


class TemplateFormat:
    """Renders a Jinja chat template in transformers' sandbox.

    `template` has a fixed date if it writes the date, and the experiment's arguments as its defaults.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, spec: ChatFormatSpec, *, name: str, template: str) -> None:
        """Raises InputError if no control token ends an assistant's turn, or the template cannot be read."""
        self.tokenizer, self.spec, self.name = tokenizer, spec, name
        self.template = with_arguments(_pinned(template, name, tokenizer), spec.arguments, name)
        added = AddedTokens(tokenizer)
        self.renderer = TemplateRenderer(
            tokenizer,
            name=name,
            template=self.template,
            added=added,
            templates=tuple(templates_of(tokenizer)),
            prepends_system=spec.system == "prepend",
        )
        self.dialect = learn_dialect(self._write_trial, self.template)
        self.renderer.inline_thoughts = self.dialect.inline
        self.stops = self._learn_stops(added)
        self.thoughts = learn_thoughts(self._write_trial, self.dialect, self.template)
        self.turns = TurnReader(
            renderer=self.renderer,
            stops=self.stops,
            thoughts=self.thoughts,
            reasoning_key=self.dialect.reasoning_key,
        )
        tokens = learn_tokens(self.renderer, self.dialect, self.stops)
        self.control = ControlTokenEncoder(
            tokenizer, added, tokens.anywhere, tokens.forbidden_to_assistants(self.stops, added, self.template)
        )
        self.encoder = SegmentEncoder(self.control, last_token_of=added.last_in, stops=self.stops.texts())
        self.stop_token_ids = self._stop_token_ids(added, tokens.inside)
        self.pad_token_id = int(
            tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self.stop_token_ids[0]
        )
        self._before, self._after = self._around_answer()
        self._marked = self._thoughts_in_control_tokens()
        self._ahead: dict[int, _Prepared] = {}
        self.calls = learn_tool_calls(self._write_calls) or learn_listed_arguments(self._write_calls)

    @property
    def scores_thoughts(self) -> bool:
        return self.thoughts is None or self.spec.train_on_reasoning

    @property
    def written_date(self) -> str | None:
        text = self._write_trial([self.dialect.raw(PROBE[0])], ask=True)
        return max((date for date in dates_of(self.template, self.name) if date in text), key=len, default=None)

    def digest(self) -> str:
        # Templates refer to special tokens by their purpose: {{ bos_token }}.
        special = json.dumps(self.tokenizer.special_tokens_map, sort_keys=True, default=str)
        hashed = hashlib.sha256(f"template {VERSION}\n{self.template}\n{self.pad_token_id}\n{special}\n".encode())
        hashed.update(f"{self.spec.system} {self.spec.train_on_reasoning} {self.stops}\n".encode())
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        vocabulary = backend.to_str() if backend is not None else repr(sorted(self.tokenizer.get_vocab().items()))
        hashed.update(vocabulary.encode())
        return hashed.hexdigest()

    @contextlib.contextmanager
    def ahead(self, conversations: Sequence[Conversation]) -> Iterator[None]:
        asked: list[tuple[TemplateCall, str]] = []
        for conversation in conversations:
            with contextlib.suppress(Exception):  # `render` raises it again, and says whose it is
                prepared = self._prepare(conversation.messages, conversation.tools, conversation.source)
                asked += [(call, prepared.mark) for call in calls_ahead(prepared.raw, prepared.tools)]
                self._ahead[id(conversation)] = prepared
        try:
            written = zip(self.renderer.write_ahead([call for call, _ in asked]), asked, strict=True)
            texts = [TemplateText(text, mark) for text, (call, mark) in written if text and not call.ask]
            self.encoder.encode_ahead(texts)
            yield
        finally:
            self._ahead.clear()
            self.renderer.write_ahead([])
            self.encoder.encode_ahead([])

    def render(self, conversation: Conversation) -> RenderedConversation:
        source = conversation.source or "conversation"
        self.encoder.forget()  # segments are shared within a conversation
        prepared = self._ahead.get(id(conversation)) or self._prepare(conversation.messages, conversation.tools, source)
        whole = self._whole(prepared, source)
        check_size(whole, prepared.raw, source)
        turns = self._turns(prepared, source)
        scored = [turn for turn in turns if prepared.weights[turn.position] > 0]
        if not scored:
            raise InputError(f"{source}: no token is scored, so there is nothing to train on")
        if all(whole.startswith(turn.text) for turn in scored):
            rendered = self._path(whole, turns, prepared, source)
        else:
            rendered = merge_sequences([self._sequence(turn, turns, prepared, source) for turn in scored])
        self._prove(rendered, scored, turns, prepared, source)
        return rendered

    def prompt(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] = ()) -> list[int]:
        prepared = self._prepare(messages, tools, "prompt")
        text = self.renderer.write(prepared.raw, prepared.tools, "prompt", ask=True)
        if tools and text == self.renderer.write(prepared.raw, [], "prompt", ask=True):
            raise InputError(f"prompt: {self.renderer.hides_tools()}")
        return self._prompt_ids(text, self._turns(prepared, "prompt", in_use=True), prepared, "prompt")

    def decode(self, token_ids: Sequence[int]) -> str:
        if self._marked is not None:
            shown = self._marked.for_people(self._without_stop(self.control.decode_all(token_ids)))
            if shown is not None:
                return self.control.without_hidden(shown)
        text = self.control.decode(token_ids)
        if self._before.startswith(text):
            return ""  # the answer's text has not begun
        return text.removeprefix(self._before).removesuffix(self._after)

    def words(self, token_ids: Sequence[int]) -> str:
        text = self._answer_text(token_ids)
        return self.calls.words(text) if self.calls else text

    def message(self, token_ids: Sequence[int]) -> Message:
        """Parses calls only if the template would render them as the same text."""
        thought, content = self._split(token_ids)
        words = Message(role="assistant", content=content, reasoning_content=thought)
        text = self._without_stop(self.control.decode_all(token_ids))
        read = self.calls.read(text) if self.calls else None
        if read is None:
            return words
        before, calls = read
        if self.thoughts is not None:
            thought, before = self.thoughts.read(before)
        before = before.removeprefix(self._before)
        nothing = [] if before.strip() else [""]
        for said in dict.fromkeys((*nothing, before, before.removesuffix("\n"), before.rstrip())):
            message = Message(role="assistant", content=said, tool_calls=tuple(calls), reasoning_content=thought)
            if self._round_trip(message) == text:
                return message
        return words

    def _prepare(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]], source: str) -> _Prepared:
        messages, tools = canonicalize(messages, tools)
        if self.spec.system == "prepend":
            messages = prepend_system(messages)
        if self.thoughts is not None:
            messages = [
                self.thoughts.separate(message, f"{source}: message {number}")
                for number, message in enumerate(messages, start=1)
            ]
        raw = [self.dialect.raw(message) for message in messages]
        own = [
            {key: message[key] for key in OWN_TEXT_KEYS if key in message} if message["role"] == "assistant" else {}
            for message in raw
        ]
        own, (raw, tools), mark = self.control.mark(own, (raw, tools), source)
        return _Prepared(
            raw=[{**message, **texts} for message, texts in zip(raw, own, strict=True)],
            tools=list(tools),
            weights=[message.loss_weight for message in messages],
            mark=mark,
        )

    def _whole(self, prepared: _Prepared, source: str) -> str:
        """Returns the whole conversation's text, with the stop of its last answer. Raises InputError if it lacks anything."""
        raw, tools = prepared.raw, prepared.tools
        text = self.renderer.write(raw, tools, source)
        if tools and text == self.renderer.write(raw, [], source):
            raise InputError(f"{source}: {self.renderer.hides_tools()}")
        for number, message in enumerate(raw, start=1):
            if message["role"] == "system" and message["content"].strip() not in text:
                raise InputError(f"{source}: message {number}: {self.renderer.hides_system()}")
            if message["role"] == "user" and message["content"].strip() not in text:
                raise InputError(f"{source}: message {number}: {self.renderer.limitation('does not show it')}")
        ends = raw[-1]["role"] == "assistant"
        return text + (self.stops.added_behind(raw, len(raw) - 1) if ends else "")

    def _turns(self, prepared: _Prepared, source: str, *, in_use: bool = False) -> list[AssistantTurn]:
        """Returns the assistant's turns. Those that are not scored may be what no model would say: they are left out then.

        Args:
            in_use: no turn is scored.
        """
        positions = [number for number, message in enumerate(prepared.raw) if message["role"] == "assistant"]
        if len(positions) > MAX_TURNS_RENDERED:
            with contextlib.suppress(NeverSaidError):
                if found := find_turns(self.turns, prepared.raw, prepared.tools, positions, source):
                    return found
        check_turns_one_by_one(len(positions), self.name, source)
        turns = []
        for position in positions:
            try:
                turns.append(self.turns.turn(prepared.raw, prepared.tools, position, source))
            except NeverSaidError:
                if prepared.weights[position] > 0 and not in_use:
                    raise
        return turns

    def _path(self, whole: str, turns: list[AssistantTurn], prepared: _Prepared, source: str) -> RenderedConversation:
        spans = [turn for turn in turns if whole.startswith(turn.text)]
        token_ids, ranges = self.encoder.encode(TemplateText(whole, prepared.mark), spans, source)
        weights = [0.0] * len(token_ids)
        ends = []
        for turn, span in zip(spans, ranges, strict=True):
            weight = prepared.weights[turn.position]
            if weight > 0:
                start = span.start if self.spec.train_on_reasoning else span.answer
                weights[start : span.end] = [weight] * (span.end - start)
                ends.append(span.end)
        return RenderedConversation(token_ids=tuple(token_ids), target_weights=tuple(weights), turn_ends=tuple(ends))

    def _sequence(
        self, turn: AssistantTurn, turns: list[AssistantTurn], prepared: _Prepared, source: str
    ) -> tuple[list[int], list[float]]:
        """Returns the token ids of a turn as the model sees it in use, and their weights."""
        spans = [*_earlier(turn.prompt, turns, turn.position), turn]
        token_ids, ranges = self.encoder.encode(TemplateText(turn.text, prepared.mark), spans, source)
        start = ranges[-1].start if self.spec.train_on_reasoning else ranges[-1].answer
        return token_ids, [0.0] * start + [prepared.weights[turn.position]] * (len(token_ids) - start)

    def _prompt_ids(self, text: str, turns: list[AssistantTurn], prepared: _Prepared, source: str) -> list[int]:
        """Returns the tokens of a prompt, as in use."""
        spans = _earlier(text, turns, len(prepared.raw))
        return self.encoder.encode(TemplateText(text, prepared.mark), spans, source)[0]

    def _prove(
        self,
        rendered: RenderedConversation,
        scored: list[AssistantTurn],
        turns: list[AssistantTurn],
        prepared: _Prepared,
        source: str,
    ) -> None:
        """Raises InputError unless each scored turn follows the tokens of its own prompt, and is scored up to one stop."""
        for number in sample(len(scored)):
            turn, end = scored[number], rendered.turn_ends[number]
            prompt = self._prompt_ids(turn.prompt, turns[: turns.index(turn)], prepared, source)
            token_ids = rendered.tokens_to(end)
            *said, stop = token_ids[len(prompt) :] or (None,)
            stops_once = stop in self.stop_token_ids and not any(token in said for token in self.stop_token_ids)
            if token_ids[: len(prompt)] != tuple(prompt) or not (stops_once and rendered.target_weights[end - 1] > 0):
                raise InputError(
                    f"{source}: message {turn.position + 1}: its tokens are not those of its prompt in use, followed by the"
                    " answer and one stop"
                )

    def _thoughts_in_control_tokens(self) -> ThoughtStyle | None:
        """Returns the style of thoughts whose marks are not shown; None if they are."""
        if self.thoughts is None or not self.thoughts.opener:
            return None
        marks = self.thoughts.opener + self.thoughts.closer
        return None if self.control.without_hidden(marks) == marks else self.thoughts

    def _split(self, token_ids: Sequence[int]) -> tuple[str, str]:
        """Returns (thought, content) of an answer."""
        if self.thoughts is None:
            return "", self.decode(token_ids)
        text = self._without_stop(self.control.decode_all(token_ids))
        thought, content = self.thoughts.read(text)
        if not thought and content == text:
            return "", self.decode(token_ids)
        return self.control.without_hidden(thought), self.control.without_hidden(content)

    def _answer_text(self, token_ids: Sequence[int]) -> str:
        if self.thoughts is None:
            return self.decode(token_ids)
        text = self.control.decode_all(token_ids)
        answer = self.thoughts.answer_of(text)
        return self.decode(token_ids) if answer == text else self.control.without_hidden(answer)

    def _without_stop(self, text: str) -> str:
        """Returns an answer's text without the first tokens of a stop of several, of which the last ended it."""
        firsts = (stop[: stop.rfind(self.renderer.added.last_in(stop))] for stop in self.stops.texts())
        return next((text.removesuffix(first) for first in firsts if first and text.endswith(first)), text)

    def _round_trip(self, message: Message) -> str | None:
        """Returns the text of a message's tokens; None if the template refuses the message."""
        try:
            return self.control.decode_all(self._answer_ids(message))
        except ValueError:
            return None

    def _answer_ids(self, message: Message) -> list[int]:
        """Returns the tokens of an answer, without its stop."""
        prepared = self._prepare([PROBE[0], message], (), "answer")
        turn = self.turns.turn(prepared.raw, [], 1, "answer")
        ids, (span,) = self.encoder.encode(TemplateText(turn.text, prepared.mark), [turn], "answer")
        return ids[span.start : span.stop]

    def _around_answer(self) -> tuple[str, str]:
        """Returns what the template writes between a prompt and an answer, and between the answer and its stop, decoded."""
        try:
            answer = self.control.decode(self._answer_ids(PROBE[1]))
        except InputError:  # it must think first
            return "", ""
        before, found, after = answer.partition(PROBE[1].content)
        return (before, after) if found else ("", "")

    def _write_calls(self, calls: Sequence[dict[str, Any]]) -> str:
        """Returns an assistant's turn with calls, without its stop; where it must think first, without its thought."""
        calling = Message(role="assistant", content="", tool_calls=tuple(calls))
        if self.thoughts is not None and self.thoughts.opened:
            calling = replace(calling, reasoning_content=THINKING[1].reasoning_content)
        turn = self.turns.turn([self.dialect.raw(message) for message in (PROBE[0], calling)], [], 1, SOURCE)
        return turn.text[turn.answer : turn.end_of_words]

    def _write_trial(self, raw: Sequence[Raw], *, ask: bool = False) -> str:
        return self.renderer.write(raw, [], SOURCE, ask=ask)

    def _learn_stops(self, added: AddedTokens) -> TurnStops:
        tokenizer = self.tokenizer
        ends = [tokenizer.eos_token, *map(tokenizer.convert_ids_to_tokens, self.spec.end_token_ids or ())]
        stops = learn_stops(self._write_trial, self.dialect, added, [str(text) for text in ends if text])
        if stops is None:
            raise InputError(self._no_stop())
        return stops

    def _no_stop(self) -> str:
        text = self._write_trial([self.dialect.raw(message) for message in PROBE])
        after = text[text.rfind(PROBE[-1].content) + len(PROBE[-1].content) :]
        way_out = "; chat_format: chatml adds one" if self.renderer.offers_chatml() else ""
        return (
            f"chat_format {self.name}: no stop token ends an assistant turn (after it comes {after!r}), so a model could not"
            f" learn to end its turn{way_out}"
        )

    def _stop_token_ids(self, added: AddedTokens, inside: set[str]) -> tuple[int, ...]:
        """Returns the last token of each stop, and the model's own end tokens but those inside of turns."""
        convert = self.tokenizer.convert_tokens_to_ids
        own = [int(convert(added.last_in(text))) for text in self.stops.texts()]
        within = {int(convert(text)) for text in inside}
        return tuple(dict.fromkeys([*own, *(end for end in self.spec.end_token_ids or () if end not in within)]))


def _pinned(template: str, name: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """Returns the template with a fixed date. Raises InputError if it has none to fix, with a way out that works here."""
    try:
        return pin_date(template, name)
    except InputError as error:
        raise InputError(f"{error}{'; chat_format: chatml does neither' if knows_chatml(tokenizer) else ''}") from None


def _earlier(text: str, turns: list[AssistantTurn], position: int) -> list[AssistantTurn]:
    """Returns the turns before a position with which a text begins, as they were in use."""
    return [turn for turn in turns if turn.position < position and text.startswith(turn.text)]
