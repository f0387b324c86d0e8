"""Generates the replies to many prompts, greedily, several at a time with one cache of keys and values.

Prompts of a batch end together: the shorter ones are padded on the left. A model that padding would change gets prompts of
one length together instead, or one at a time (padding.py tries it). So a prompt has the same reply in any company, up to
rounding: where two tokens are equally likely to the last bits, another shape of the matrices may choose the other one.

B prompts, T tokens in the longest of them. These letters are used in this file only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch

from components.models.load_trained import LoadedModel
from components.models.precision import computing
from components.scoring.padding import Company
from components.scoring.reply import Reply, reply_of, until_stop
from components.scoring.running_batch import ALONE, Row, RunningBatch

MAX_PROMPTS_AT_ONCE = 64
# Of the longest prompt of its batch. Padding is read as slowly as text, and each batch more reads all weights once more for
# every token: 64 conversations of the quickstart are fastest in one batch, though that pads 7,032 tokens to 11,328.
SHORTEST = 0.25


def generate_replies(
    loaded: LoadedModel, prompts: Sequence[Sequence[int]], *, max_new_tokens: int, max_batch_tokens: int
) -> list[Reply]:
    """Returns the greedy reply to each prompt, in order. The model must be in eval mode.

    Args:
        prompts: token ids, as a chat format's `prompt` returns them.
        max_batch_tokens: of a batch, padding and replies included: what its cache holds. A prompt may have more, alone.

    Raises:
        InputError: a token that the model has no row for.
    """
    for prompt in prompts:
        loaded.check_token_ids(dict.fromkeys(prompt, "is in the prompt"))
    lengths = [len(prompt) for prompt in prompts]
    running = RunningBatch(loaded, ALONE if len(prompts) == 1 else None)  # for one prompt nothing is tried
    company = running.abilities.company
    replies: dict[int, Reply] = {}
    batches = _batches(lengths, max_new_tokens=max_new_tokens, max_batch_tokens=max_batch_tokens, company=company)
    # Around all of them, or each stretch of a batch would cast the weights again.
    with torch.no_grad(), computing(loaded.precision, loaded.device):
        for batch in batches:
            said = _generate(running, [prompts[index] for index in batch], max_new_tokens=max_new_tokens)
            replies.update(zip(batch, said, strict=True))
    return [replies[index] for index in range(len(prompts))]


def _batches(
    lengths: Sequence[int], *, max_new_tokens: int, max_batch_tokens: int, company: Company
) -> Iterator[list[int]]:
    """Yields indices of prompts, the longest first: what does not fit fails at once."""
    longest_first = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    batch: list[int] = []
    for index in longest_first:
        longest = lengths[batch[0]] if batch else lengths[index]
        full = len(batch) == MAX_PROMPTS_AT_ONCE or (len(batch) + 1) * (longest + max_new_tokens) > max_batch_tokens
        apart = company == "none" or lengths[index] < longest * (SHORTEST if company == "any" else 1)
        if batch and (full or apart):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _generate(running: RunningBatch, prompts: Sequence[Sequence[int]], *, max_new_tokens: int) -> list[Reply]:
    chat_format = running.loaded.chat_format
    said: list[list[int]] = [[] for _ in prompts]

    def taker(place: int) -> Callable[[int], bool]:
        def take(token: int) -> bool:
            said[place].append(token)
            return token not in chat_format.stop_token_ids

        return take

    rows = [
        Row(prompt=prompt, max_new_tokens=max_new_tokens, take=taker(place)) for place, prompt in enumerate(prompts)
    ]
    running.add(rows)
    while running.rows:
        running.go_on()
    replies = []
    for row, tokens in zip(rows, said, strict=True):
        if row.error is not None:
            raise row.error
        words = until_stop(tokens, chat_format)
        replies.append(reply_of(chat_format, words, prompt_tokens=len(row.prompt), stopped=len(words) < len(tokens)))
    return replies
