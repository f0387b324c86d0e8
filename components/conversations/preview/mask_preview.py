"""Shows what a model is trained on, token by token: in a terminal, and as one self-contained page."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from components.conversations.chat_formats.rendered import Fork, labels_of, sequences_of
from components.conversations.preview.tree_text import Seen, shown_tokens
from components.visible import page_environment, visible

PAGE = Path(__file__).with_name("mask_preview.html.jinja")
MAX_TOKENS_OF_A_CHARACTER = 4  # tokens may be single bytes, and UTF-8 has four at most
INCOMPLETE = "\ufffd"
CONTEXT = ("none", "dim")  # two shades each, to distinguish neighboring tokens; every terminal has these
SCORED = ("black on green", "black on bright_green")
WEIGHTED = ("black on yellow", "black on bright_yellow")
MARKS: dict[Seen, tuple[str, str]] = {"always": ("", ""), "once": ("⌊", "⌋"), "later": ("⌈", "⌉")}
LEGEND = "⌊ ⌋ only its own turn sees it, ⌈ ⌉ only later turns do"

Decode = Callable[[list[int]], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class PreviewRecord:
    """One conversation as it is trained on. `note` says if it was truncated, or why it is empty."""

    source: str
    token_ids: Sequence[int]
    target_weights: Sequence[float]
    forks: Sequence[Fork] = ()
    note: str = ""

    @property
    def num_targets(self) -> int:
        return sum(weight > 0 for weight in self.target_weights)

    @property
    def num_turns(self) -> int:
        """The number of scored turns of the assistant."""
        before = [0.0, *self.target_weights]
        return sum(weight > 0 and not past > 0 for past, weight in zip(before, self.target_weights, strict=False))

    @property
    def num_separate_tokens(self) -> int:
        """The number of tokens if each sequence were a row of its own."""
        return sum(sequence.length for sequence in sequences_of(len(self.token_ids), self.forks))

    def labels(self) -> list[int]:
        return labels_of(self.token_ids, self.target_weights)

    def sentence(self) -> str:
        turns = f"{self.num_turns} turn" + ("s" if self.num_turns != 1 else "")
        note = f"; {self.note}" if self.note else ""
        return f"{_share(len(self.token_ids), self.num_targets)} in {turns}{_saved(self)}{note}"


@dataclass(frozen=True, slots=True, kw_only=True)
class PreviewTotals:
    """Totals of all the data, not only of the records that are shown.

    `trees` are conversations whose turns are no one path; `separate_tokens` would be the tokens of all in separate rows.
    """

    conversations: int
    tokens: int
    trees: int = 0
    separate_tokens: int = 0
    targets: int
    dropped: int
    truncated: int

    def sentence(self) -> str:
        return (
            f"{self.conversations:,} conversations, {_share(self.tokens, self.targets)};"
            f" {self.dropped:,} dropped, {self.truncated:,} truncated{self._trees_sentence()}"
        )

    def _trees_sentence(self) -> str:
        if not self.trees:
            return ""
        return (
            f"; the chat template rewrites earlier turns in {self.trees:,} of them:"
            f" {self.tokens:,} tokens in one pass, {self.separate_tokens:,} in separate rows"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """The visible text of one token, or of several tokens that together are one character."""

    text: str
    token_ids: tuple[int, ...]
    weight: float
    seen: Seen = "always"


def verbatim(tokenizer: PreTrainedTokenizerBase) -> Decode:
    """Returns a decoder that keeps control tokens and blanks."""
    return lambda token_ids: str(
        tokenizer.decode(token_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    )


def pieces(record: PreviewRecord, decode: Decode) -> Iterator[Piece]:
    """Yields the record's tokens in order, as they read within the whole text."""
    tokens = shown_tokens(record.token_ids, record.target_weights, record.forks)
    token_ids = [token.token_id for token in tokens]
    start = 0
    while start < len(tokens):
        text, end = _readable(token_ids, start, decode)
        first = tokens[start]
        yield Piece(text=visible(text), token_ids=tuple(token_ids[start:end]), weight=first.weight, seen=first.seen)
        start = end


def print_preview(console: Console, records: Iterable[PreviewRecord], decode: Decode) -> None:
    """Prints records with scored tokens in color; without colors, in ⟦ ⟧."""
    for text in preview_texts(records, decode, colors=console.color_system is not None):
        console.print(text, soft_wrap=True)


def preview_texts(records: Iterable[PreviewRecord], decode: Decode, *, colors: bool) -> Iterator[Text]:
    """Two for each record: its heading, and its tokens with an empty line after them."""
    for record in records:
        yield Text(visible(f"{record.source}: {record.sentence()}"), style="bold")
        text = _color_tokens(record, decode) if colors else _bracket_targets(record, decode)
        yield text if text.plain.endswith("\n") else text.append("\n")


def preview_html(
    records: Iterable[PreviewRecord], decode: Decode, title: str, totals: PreviewTotals | None = None
) -> str:
    """Returns one page that loads nothing from elsewhere; hovering over a token shows its id and weight."""
    template = page_environment().from_string(PAGE.read_text(encoding="utf-8"))
    shown = [(record, list(pieces(record, decode))) for record in records]
    trees = any(record.forks for record, _ in shown)
    return template.render(title=title, totals=totals, shown=shown, trees=trees)


def _saved(record: PreviewRecord) -> str:
    """Returns what one pass over a tree saves, and how it is shown; "" for a path."""
    if not record.forks:
        return ""
    return f"; in separate rows they would be {record.num_separate_tokens:,} tokens ({LEGEND})"


def _share(tokens: int, targets: int) -> str:
    return f"{tokens:,} tokens, {targets:,} of them scored ({targets / max(1, tokens):.0%})"


def _readable(token_ids: list[int], start: int, decode: Decode) -> tuple[str, int]:
    """Returns (text, end) of the token at `start`, or of the tokens that make up its character.

    The token is decoded after its predecessor: some tokenizers drop the blank before a word that is decoded alone.
    """
    before = token_ids[start - 1 : start] if start else []
    said = decode(before) if before else ""
    for end in range(start + 1, min(start + MAX_TOKENS_OF_A_CHARACTER, len(token_ids)) + 1):
        together = decode(before + token_ids[start:end])
        text = together[len(said) :] if together.startswith(said) else decode(token_ids[start:end])
        if not text.endswith(INCOMPLETE):
            return text, end
    return INCOMPLETE, start + 1


def _color_tokens(record: PreviewRecord, decode: Decode) -> Text:
    text = Text()
    seen: Seen = "always"
    for number, piece in enumerate(pieces(record, decode)):
        text.append(_marks_between(seen, piece.seen), style="bold")
        seen = piece.seen
        shades = CONTEXT if not piece.weight > 0 else SCORED if piece.weight == 1 else WEIGHTED
        text.append(piece.text.replace("\n", "↵\n"), style=shades[number % 2])
    return text.append(_marks_between(seen, "always"), style="bold")


def _bracket_targets(record: PreviewRecord, decode: Decode) -> Text:
    text, weight = Text(), 0.0
    seen: Seen = "always"
    for piece in [*pieces(record, decode), Piece(text="", token_ids=(), weight=0.0)]:
        if (piece.weight, piece.seen) != (weight, seen):
            text.append(_closing(weight) + _marks_between(seen, piece.seen) + ("⟦" if piece.weight > 0 else ""))
            weight, seen = piece.weight, piece.seen
        text.append(piece.text)
    return text


def _marks_between(before: Seen, after: Seen) -> str:
    """Returns the mark that closes one kind of tokens, and the one that opens another."""
    return "" if before == after else MARKS[before][1] + MARKS[after][0]


def _closing(weight: float) -> str:
    return "" if not weight > 0 else "⟧" if weight == 1 else f"⟧×{weight:g}"
