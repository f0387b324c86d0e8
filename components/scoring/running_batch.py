"""Replies that are made together: a row joins the batch between two tokens, and leaves it when its reply has ended.

A batch goes on to its longest reply; what is computed for the others until then is for nothing, and on a CPU most of the
time of a step is that of its rows. A row joins and leaves by its place in the cache of keys and values. Models with another
kind of cache keep their rows to the end, and take new ones when all have ended. Tokens are made by transformers' `generate`.

B rows, T tokens in each so far, V vocabulary. These letters are used in this file only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache, LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from components.models.load_trained import LoadedModel
from components.models.precision import computing
from components.models.token_id_check import rows_of
from components.scoring.padding import Company, company_of
from components.scoring.reply import clear_generation_config, generation_config

# Tokens. To begin again costs some milliseconds, so a row that has ended stays for up to so many.
STRETCH = 8
# Their subclasses hold more than keys and values: states that batch_select_indices does not know.
LEAVING = (DynamicLayer, DynamicSlidingWindowLayer)
JOINING = (DynamicLayer,)  # a window's layer keeps the last tokens only, and not whose padding they were

Choose = Callable[[Tensor], int]


def never() -> bool:
    return False


@dataclass(eq=False, kw_only=True, slots=True)
class Row:
    """One reply that is being made.

    Args:
        prompt: token ids.
        take: gets each token, in order; returns whether the reply goes on.
        choose: gets the logits of the next token, float32 [1, V], and returns it; by default it is the likeliest.

    `error` is what one of these two functions raised, which ends this reply and no other.
    """

    prompt: Sequence[int]
    max_new_tokens: int
    take: Callable[[int], bool]
    choose: Choose | None = None
    made: int = 0
    ended: bool = False
    error: Exception | None = None

    def next_token(self, logits_1V: Tensor) -> int | None:
        """Returns the token that `choose` chooses; None where it fails."""
        try:
            return self.choose(logits_1V) if self.choose else None
        except Exception as error:  # noqa: BLE001 - whatever a model's numbers lead to, other rows go on
            self.ended, self.error = True, error
            return None

    def add(self, token: int) -> None:
        self.made += 1
        try:
            self.ended = not self.take(token) or self.made >= self.max_new_tokens
        except Exception as error:  # noqa: BLE001 - the same
            self.ended, self.error = True, error


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchAbilities:
    """What a model's batches can do, tried on a few tokens.

    `leave`: rows leave while others go on. `join`: others come while rows are at work, which padding must not change.
    """

    company: Company
    leave: bool
    join: bool

    @classmethod
    def of(cls, loaded: LoadedModel) -> BatchAbilities:
        company = company_of(loaded)
        kinds = _cache_kinds(loaded) if company != "none" else set()
        return cls(
            company=company,
            leave=bool(kinds) and all(kind in LEAVING for kind in kinds),
            join=company == "any" and bool(kinds) and all(kind in JOINING for kind in kinds),
        )


ALONE = BatchAbilities(company="none", leave=False, join=False)


class RunningBatch:
    """The rows of one model. Its calls belong to one thread at a time; the model must be in eval mode."""

    def __init__(self, loaded: LoadedModel, abilities: BatchAbilities | None = None) -> None:
        clear_generation_config(loaded.model)
        self.loaded = loaded
        self.abilities = abilities or BatchAbilities.of(loaded)
        self._group: _Group | None = None

    @property
    def rows(self) -> Sequence[Row]:
        """Those whose replies go on."""
        return [] if self._group is None else [row for row in self._group.rows if not row.ended]

    @property
    def takes_rows(self) -> bool:
        """Whether rows may be added now."""
        return self.abilities.join or not self.rows

    def fits(self, rows: Sequence[Row], max_batch_tokens: int) -> bool:
        """Whether these can be added without more than so many tokens in the cache at their ends, padding included."""
        both = [*self.rows, *rows]
        return len(both) * max(len(row.prompt) + row.max_new_tokens for row in both) <= max_batch_tokens

    def add(self, rows: Sequence[Row]) -> None:
        """Reads the prompts of new rows, and makes their first tokens. They fail together, and those at work go on."""
        added = _Group.of(self.loaded, rows)
        if self.abilities.leave:
            self._advance(added, resumable=True, interrupted=lambda: True)
            added = added.without_ended()
        if self._group is None or not self._group.rows:
            self._group = added
        elif added.rows:
            self._group = self._group.joined(added, self.loaded.chat_format.pad_token_id)

    def go_on(self, interrupted: Callable[[], bool] = never) -> None:
        """Makes tokens until replies have ended, or until `interrupted`, which is asked after every token of a batch.

        Where a model cannot go on from its cache, it makes all replies to their ends.
        """
        if self._group is None or not self.rows:
            return
        self._advance(self._group, resumable=self.abilities.leave, interrupted=interrupted)
        if self.abilities.leave:
            self._group = self._group.without_ended(crop=self.abilities.join)
        if not self.rows:
            self._group = None

    def drop(self) -> None:
        """Forgets all rows."""
        self._group = None

    @torch.no_grad()
    def _advance(self, group: _Group, *, resumable: bool, interrupted: Callable[[], bool]) -> None:
        with computing(self.loaded.precision, self.loaded.device):
            group.advance(self.loaded, resumable=resumable, interrupted=interrupted)


@dataclass
class _Group:
    """Rows with one cache, which holds all of their tokens but the last. Shorter ones are padded on the left."""

    rows: list[Row]
    input_ids_BT: Tensor
    mask_BT: Tensor
    cache: DynamicCache | None = field(default=None)

    @classmethod
    def of(cls, loaded: LoadedModel, rows: Sequence[Row]) -> _Group:
        input_ids_BT, mask_BT = left_padded(
            [row.prompt for row in rows], loaded.chat_format.pad_token_id, loaded.device
        )
        return cls(list(rows), input_ids_BT, mask_BT)

    def advance(self, loaded: LoadedModel, *, resumable: bool, interrupted: Callable[[], bool]) -> None:
        going = [row for row in self.rows if not row.ended]
        config = generation_config(
            loaded.chat_format, max_new_tokens=max(row.max_new_tokens - row.made for row in going)
        )
        config.update(return_dict_in_generate=True, eos_token_id=None)  # _Progress ends each row
        output = loaded.model.generate(
            input_ids=self.input_ids_BT,
            attention_mask=self.mask_BT,
            generation_config=config,
            logits_processor=LogitsProcessorList([_Choice(self.rows)]),
            stopping_criteria=StoppingCriteriaList([_Progress(self.rows, resumable, interrupted)]),
            **({} if self.cache is None else {"past_key_values": self.cache}),
        )
        made = output.sequences.shape[1] - self.input_ids_BT.shape[1]
        cache = getattr(output, "past_key_values", None)
        self.input_ids_BT, self.mask_BT = output.sequences, pad(self.mask_BT, (0, made), value=1)
        self.cache = cache if isinstance(cache, DynamicCache) else None

    def without_ended(self, *, crop: bool = False) -> _Group:
        """Returns the rows that go on.

        Args:
            crop: what is padding in all of them is left out.
        """
        staying = [place for place, row in enumerate(self.rows) if not row.ended]
        if len(staying) == len(self.rows) or not staying:
            return self if staying else _Group([], self.input_ids_BT[:0], self.mask_BT[:0])
        if self.cache is not None:
            self.cache.batch_select_indices(torch.tensor(staying, device=self.input_ids_BT.device))
        mask_BT = self.mask_BT[staying]
        padding = int(mask_BT.argmax(dim=1).min()) if crop else 0
        if padding and self.cache is not None:
            for layer in self.cache.layers:
                layer.keys, layer.values = layer.keys[..., padding:, :], layer.values[..., padding:, :]
        rows = [self.rows[place] for place in staying]
        return _Group(rows, self.input_ids_BT[staying, padding:], mask_BT[:, padding:], self.cache)

    def joined(self, added: _Group, pad_token_id: int) -> _Group:
        """Returns the rows of both."""
        longest = max(self.input_ids_BT.shape[1], added.input_ids_BT.shape[1])
        missing = [longest - group.input_ids_BT.shape[1] for group in (self, added)]
        groups = list(zip((self, added), missing, strict=True))
        input_ids_BT = torch.cat([pad(group.input_ids_BT, (left, 0), value=pad_token_id) for group, left in groups])
        mask_BT = torch.cat([pad(group.mask_BT, (left, 0)) for group, left in groups])
        assert self.cache is not None  # BatchAbilities.join
        assert added.cache is not None
        for layer, other in zip(self.cache.layers, added.cache.layers, strict=True):
            for name in ("keys", "values"):
                both = [
                    pad(getattr(one, name), (0, 0, left, 0)) for one, left in zip((layer, other), missing, strict=True)
                ]
                setattr(layer, name, torch.cat(both))
        return _Group([*self.rows, *added.rows], input_ids_BT, mask_BT, self.cache)


class _Choice(LogitsProcessor):  # type: ignore[misc]
    """Lets each row choose its token: all others become impossible."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows

    def __call__(self, input_ids_BT: Tensor, logits_BV: Tensor) -> Tensor:
        chosen = {
            place: token
            for place, row in enumerate(self.rows)
            if not row.ended and (token := row.next_token(logits_BV[place : place + 1])) is not None
        }
        if not chosen:
            return logits_BV
        places, tokens = list(chosen), list(chosen.values())
        only_BV = logits_BV.clone()
        only_BV[places] = -torch.inf
        only_BV[places, tokens] = 0.0
        return only_BV


class _Progress(StoppingCriteria):  # type: ignore[misc]
    """Hands each row its tokens, and ends the batch's stretch."""

    def __init__(self, rows: Sequence[Row], resumable: bool, interrupted: Callable[[], bool]) -> None:
        self.rows, self.resumable, self.interrupted = rows, resumable, interrupted
        self.made = 0

    def __call__(self, input_ids_BT: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        self.made += 1
        for row, token in zip(self.rows, input_ids_BT[:, -1].tolist(), strict=True):
            if not row.ended:
                row.add(token)
        return torch.full((len(self.rows),), self._is_over(), device=input_ids_BT.device)

    def _is_over(self) -> bool:
        ended = [row.ended for row in self.rows]
        return all(ended) or (self.resumable and ((any(ended) and self.made >= STRETCH) or self.interrupted()))


def left_padded(prompts: Sequence[Sequence[int]], pad_token_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Returns (token ids, mask) of a batch of prompts that end together, both [B, T]."""
    longest = max(map(len, prompts))
    padding = [longest - len(prompt) for prompt in prompts]
    rows = [[pad_token_id] * pads + list(prompt) for pads, prompt in zip(padding, prompts, strict=True)]
    mask = [[0] * pads + [1] * (longest - pads) for pads in padding]
    return torch.tensor(rows, device=device), torch.tensor(mask, device=device)


def _cache_kinds(loaded: LoadedModel) -> set[type]:
    """Returns the classes of the layers of the model's cache, after one token; none if it is another kind of cache."""
    token = Row(prompt=[rows_of(loaded.model) // 4], max_new_tokens=1, take=lambda _: True)
    group = _Group.of(loaded, [token])
    with torch.no_grad(), computing(loaded.precision, loaded.device):
        group.advance(loaded, resumable=False, interrupted=never)
    return set() if group.cache is None else {type(layer) for layer in group.cache.layers}
