"""What will be trained on, token by token, before anything starts: of an experiment, or of any model and file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.console import Console, ConsoleOptions
from rich.text import Text

from components.conversations.chat_formats import load_chat_format
from components.conversations.format_facts import date_remarks
from components.conversations.load_format import format_spec_in, load_format_of
from components.conversations.preview.data_summary import describe_conversations
from components.conversations.preview.mask_preview import (
    Decode,
    PreviewRecord,
    PreviewTotals,
    preview_html,
    preview_texts,
    verbatim,
)
from components.conversations.readers.read import OnUnknownKeys, ReadResult, read_conversations
from components.conversations.readers.record_count import count_records
from components.conversations.readers.unknown_keys import unused_keys_sentences
from components.conversations.tokenizers.load_tokenizer import load_tokenizer
from components.data.parallel_rendering import rendering
from components.data.prepare import prepare_experiment, prepared_before
from components.data.preview_records import rendered_records, stored_records, totals_of, totals_of_records
from components.data.process_pool import on_this_machine
from components.data.split import read_side
from components.errors import InputError
from components.experiment.spec import ChatFormatSpec, ExperimentSpec, ModelSpec
from components.models.base.context import context_of
from components.models.base.load_base import resolve_model
from components.notebook import html_of, text_of
from components.visible import visible

MAX_NAMED = 20
LARGE, SAMPLE = 20_000, 1_000  # conversations: of more than LARGE a sample is rendered, which takes seconds


@dataclass(frozen=True, kw_only=True)
class MaskPreview:
    """Conversations as a model is trained on them: which tokens are scored, and which are only read.

    `records` are those that were requested, `totals` and `remarks` are of all the data. In a terminal with colors scored
    tokens are green, and those of another weight than 1 yellow; without colors they are in brackets.
    """

    title: str
    records: Sequence[PreviewRecord]
    totals: PreviewTotals
    remarks: Sequence[str]
    decode: Decode

    def lines(self) -> list[str]:
        """What there is to say about all the data."""
        return [*self.remarks, self.totals.sentence()]

    def page(self, records: int | None = None) -> str:
        """One self-contained HTML page, with the first `records` conversations or all."""
        return preview_html(self.records[:records], self.decode, self.title, self.totals)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        yield from preview_texts(self.records, self.decode, colors=console.color_system is not None)
        yield from (Text(visible(line)) for line in self.lines())

    def __str__(self) -> str:
        return text_of(self)

    def _repr_html_(self) -> str:
        return html_of(self)


def preview_experiment(experiment: ExperimentSpec, records: int | None = 3) -> MaskPreview:
    """What a search of the experiment will train on. The data is prepared as the search prepares it, and kept for it.

    Of more than LARGE conversations a sample of data.train is rendered instead, unless they have been prepared before.

    Args:
        records: how many conversations; None for all.

    Raises:
        ValueError: the model or the data cannot be used.
    """
    directory = resolve_model(experiment.model, weights=False)
    data, title = experiment.data, f"{experiment.name}: what is trained on"
    total = 0 if records is None else count_records([data.train])
    if total > LARGE and prepared_before(experiment, directory, context=context_of(directory)) is None:
        read = read_conversations(
            data.train,
            format=data.format,
            on_bad_row=data.on_bad_row,
            unknown_keys=data.unknown_keys,
            group_by=data.group_by,
            tag=data.tag,
            every=_every(total),
        )
        return _rendered(read, directory, experiment.format_spec, title, records, data.max_tokens, total)
    try:
        dataset = prepare_experiment(experiment, directory, context=context_of(directory))
    except InputError as error:
        raise InputError(f"{error}{_what_the_data_has(experiment)}") from None
    return MaskPreview(
        title=title,
        records=stored_records(dataset.train, records),
        totals=totals_of(dataset),
        remarks=[
            *date_remarks(load_format_of(directory, experiment.format_spec)),
            dataset.summary(),
            *filter(None, [dataset.verdict_note]),
            *_first(dataset.left_out),
            *_first(dataset.mended),
        ],
        decode=verbatim(load_tokenizer(directory)),
    )


def preview_data(
    model: str,
    data: str,
    *,
    records: int | None = 3,
    chat_format: ChatFormatSpec | str = "auto",
    format: str = "auto",
    unknown_keys: OnUnknownKeys = "fail",
    max_tokens: int | None = None,
) -> MaskPreview:
    """What a model would be trained on if it were given this data. Nothing is stored.

    Of more than LARGE conversations a sample is read.

    Args:
        model: a directory or hub id; its tokenizer is enough.
        data: a file, a glob or hf:DATASET[:SPLIT][@REVISION].
        records: how many conversations; None for all.
        chat_format: auto, template, chatml, ...
        format: of the data.
        unknown_keys: as data.unknown_keys of an experiment.
        max_tokens: longer conversations lose their last turns; by default none does.

    Raises:
        ValueError: the model or the data cannot be used.
    """
    total = 0 if records is None else count_records([data])
    every = _every(total)
    read = read_conversations(data, format=format, unknown_keys=unknown_keys, every=every)
    directory = resolve_model(ModelSpec(path=model), weights=False)
    title = f"{data} as {model} sees it"
    return _rendered(read, directory, chat_format, title, records, max_tokens, total if every > 1 else None)


def _every(total: int) -> int:
    """Returns n where every n-th record is a sample of SAMPLE or a little more; 1 where all are looked at."""
    return max(total // SAMPLE, 1) if total > LARGE else 1


def _rendered(
    read: ReadResult,
    directory: Path,
    chat_format: ChatFormatSpec | str,
    title: str,
    records: int | None,
    max_tokens: int | None,
    sampled_of: int | None,
) -> MaskPreview:
    tokenizer = load_tokenizer(directory)
    spec = format_spec_in(directory, chat_format)
    try:
        loaded = load_chat_format(tokenizer, spec)
        # To start other processes takes longer than to render a sample in this one.
        processes = None if sampled_of is None else 1
        with rendering(tokenizer, spec, loaded, partial(on_this_machine, processes=processes)) as renderer:
            rendered = rendered_records(read.conversations, renderer, max_tokens)
    except InputError as error:
        raise InputError(f"{error}\n{describe_conversations(read.conversations)}") from None
    sample = (
        [] if sampled_of is None else [f"a sample of {len(rendered):,} of {sampled_of:,} records; --json takes all"]
    )
    unused = unused_keys_sentences(read.unused_keys, read.ignored_keys)
    dropped = [f"{record.source}: {record.note}" for record in rendered if not record.token_ids]
    left_out = [f"{problem.file}, {problem}" for problem in read.dropped]
    return MaskPreview(
        title=title,
        records=rendered[:records],
        totals=totals_of_records(rendered, len(read.dropped)),
        remarks=[*date_remarks(loaded), *sample, *unused, *_first([*left_out, *dropped])],
        decode=verbatim(tokenizer),
    )


def _what_the_data_has(experiment: ExperimentSpec) -> str:
    """Returns a line about conversations that could be read, but not rendered; "" if they could not be read."""
    data = experiment.data
    try:
        read = read_side(data.train, data, drop=True)
    except InputError:
        return ""
    return f"\n{describe_conversations(read.conversations)}"


def _first(sentences: Sequence[str]) -> list[str]:
    more = [f"... and {len(sentences) - MAX_NAMED} more"] if len(sentences) > MAX_NAMED else []
    return [*sentences[:MAX_NAMED], *more]
