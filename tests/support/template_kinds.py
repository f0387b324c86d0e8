"""Chat templates of each kind, a tokenizer for each, and rendered conversations as people read them."""

from __future__ import annotations

import re
import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import Split
from transformers import PreTrainedTokenizerFast

from components.conversations.chat_formats.rendered import RenderedConversation

TEMPLATES = Path(__file__).parent / "chat_templates"
PAD, UNKNOWN = "<pad>", "<unk>"
LETTERS = string.ascii_letters + string.digits + string.punctuation + " \n"
# Each is one token. Other words are tokens of their letters.
WORDS = frozenset(
    """user assistant system developer tool tools functions function parameters parameter properties required name
    arguments type object integer add to commentary analysis final today is Jul May effort low medium hi yo ok bye be
    kind hm so now two five""".split()  # noqa: SIM905 - a page of quotes is harder to read
)
WORD = r"[A-Za-z]+|[\s\S]"
ACTION = ("<|action|>", "<|/action|>")
THOUGHT = ("<think>", "</think>")
CALL = ("<call>", "</call>")


@dataclass(frozen=True, slots=True)
class TemplateKind:
    """A chat template and the tokens of its model: the first ends a text. Those `added` are not special: <think>."""

    name: str
    special: tuple[str, ...]
    added: tuple[str, ...] = ()
    begin: str | None = None

    @property
    def template(self) -> str:
        return (TEMPLATES / f"{self.name}.jinja").read_text(encoding="utf-8")

    def tokenizer(self) -> PreTrainedTokenizerFast:
        return word_tokenizer(self.special, self.added, begin=self.begin, chat_template=self.template)


KINDS = {
    kind.name: kind
    for kind in (
        TemplateKind("appends", ("<|over|>", "<|turn|>")),
        TemplateKind("thought_in_newest", ("<|over|>", "<|turn|>"), THOUGHT),
        TemplateKind("thought_since_question", ("<|over|>", "<|turn|>"), THOUGHT + CALL),
        TemplateKind("thought_opened", ("<|done|>", "<|asks|>", "<|answers|>"), THOUGHT, begin="<|begin|>"),
        TemplateKind("thought_opened_by_switch", ("<|done|>", "<|asks|>", "<|answers|>"), THOUGHT),
        TemplateKind("end_at_end", ("</s>", "<|user|>", "<|assistant|>", "<|system|>")),
        TemplateKind(
            "next_role_stops",
            ("<|endoftext|>", "[begin]", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"),
            ("<key>", "<value>", *CALL),
        ),
        TemplateKind(
            "two_stops",
            ("<|over|>", "<|turn|>", "<|user|>", "<|system|>", "<|bot|>", "<|answer|>", "<|/answer|>"),
            begin="<|begin|>",
        ),
        TemplateKind("end_behind_stop", ("<|endoftext|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>")),
        TemplateKind("system_refused", ("<|over|>", "<|turn|>")),
        TemplateKind("dated", ("<|over|>", "<|turn|>")),
        TemplateKind("alternating", ("</s>", "[ask]", "[/ask]")),
        TemplateKind("tools_in_json", ("<|over|>", "<|turn|>"), CALL),
        TemplateKind("tools_in_xml", ("<|over|>", "<|turn|>"), CALL),
        TemplateKind("tools_in_python", ("<|over|>", "<|turn|>", "<|python|>", "<|calls|>")),
        TemplateKind("arguments_as_text", ("<|over|>", "<|turn|>"), CALL),
        TemplateKind("arguments_as_mapping", ("<|over|>", "<|turn|>"), CALL),
        TemplateKind("thinking_switch", ("<|over|>", "<|turn|>"), THOUGHT),
        TemplateKind("reasoning_effort", ("<|over|>", "<|turn|>")),
        TemplateKind("channels", ("<|return|>", "<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|call|>")),
        TemplateKind("generation_tags", ("<|over|>", "<|turn|>")),
        TemplateKind(
            "always_asks",
            ("<|over|>", "<|turn|>", "<|user|>", "<|system|>", "<|bot|>", "<|answer|>", "<|/answer|>", *ACTION),
        ),
        TemplateKind("thought_asked_for", ("<|over|>", "<|turn|>"), THOUGHT),
        TemplateKind("thought_opened_or_empty", ("<|over|>", "<|turn|>"), THOUGHT),
        TemplateKind("thought_in_content", ("<|done|>", "<|asks|>", "<|answers|>"), THOUGHT),
        TemplateKind("thought_always_empty", ("<|over|>", "<|turn|>"), THOUGHT),
        TemplateKind("parts", ("<|over|>", "<|turn|>")),
        TemplateKind("rewritten_start", ("<|over|>", "<|turn|>")),
    )
}


def word_tokenizer(
    special: Sequence[str], added: Sequence[str] = (), *, begin: str | None = None, chat_template: str | None = None
) -> PreTrainedTokenizerFast:
    """One word, one token, if it is in WORDS; else one letter, one token. The first special token ends a text."""
    vocabulary = {token: number for number, token in enumerate([PAD, UNKNOWN, *LETTERS, *sorted(WORDS)])}
    tokenizer = Tokenizer(BPE(vocabulary, [], unk_token=UNKNOWN, ignore_merges=True))
    tokenizer.pre_tokenizer = Split(Regex(WORD), "isolated")
    tokenizer.decoder = Fuse()
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNKNOWN,
        bos_token=begin,
        eos_token=special[0],
        additional_special_tokens=list(special[1:]),
        chat_template=chat_template,
    )
    made.add_tokens([AddedToken(token, special=False, normalized=False) for token in added])
    return made


def words(text: str) -> list[str]:
    """The tokens of a text without control tokens."""
    return re.findall(WORD, text)


Shown = list[str | int | list[str]]


def shown(tokenizer: PreTrainedTokenizerFast, rendered: RenderedConversation) -> Shown:
    """Token texts in order. A list is a stretch of targets; a number is the depth at which the tokens behind it go on."""
    texts = [tokenizer.decode([token]) for token in rendered.token_ids]
    depths = {fork.start: fork.depth for fork in rendered.forks}
    tokens: Shown = []
    for number, (text, weight) in enumerate(zip(texts, rendered.target_weights, strict=True)):
        if number in depths:
            tokens.append(depths[number])
        if weight == 0:
            tokens.append(text)
        elif tokens and isinstance(tokens[-1], list):
            tokens[-1].append(text)
        else:
            tokens.append([text])
    return tokens


def sequences(rendered: RenderedConversation) -> Iterator[tuple[int, ...]]:
    """What a model sees in use, turn by turn: the path from the first token to the end of each scored turn."""
    depths = {fork.start: fork.depth for fork in rendered.forks}
    ends = set(rendered.turn_ends)
    path: list[int] = []
    for number, token in enumerate(rendered.token_ids):
        if number in depths:
            del path[depths[number] :]
        path.append(token)
        if number + 1 in ends:
            yield tuple(path)
