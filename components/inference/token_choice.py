"""Chooses a reply's tokens, greedily or by drawing, and notes how likely they were.

V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

MOST_ALTERNATIVES = 20  # as in OpenAI's API


@dataclass(frozen=True, slots=True)
class TokenChance:
    """How likely the model found a token, as the natural logarithm, before temperature and top_p."""

    token: int
    logprob: float
    alternatives: tuple[tuple[int, float], ...] = ()


class TokenChoice:
    """Called with the logits of the next token, float32 [1, V], it returns the token.

    Args:
        temperature, top_p: as ReplyOptions has them.
        seed: the same one leads to the same tokens, in any company.
        alternatives: how many of the likeliest tokens `chances` has beside each; None notes nothing.

    Raises ValueError if the logits are not numbers.
    """

    def __init__(
        self, device: torch.device, *, temperature: float, top_p: float, seed: int, alternatives: int | None = None
    ) -> None:
        self.chances: list[TokenChance] = []
        self._alternatives = alternatives
        self._generator = torch.Generator(device).manual_seed(seed) if temperature else None
        self._warpers = LogitsProcessorList()
        if temperature:
            self._warpers.append(TemperatureLogitsWarper(float(temperature)))
            if top_p < 1:
                self._warpers.append(TopPLogitsWarper(float(top_p)))

    def __call__(self, logits_1V: Tensor) -> int:
        if torch.isnan(logits_1V).any():
            raise ValueError("the model's output is not a number")
        token = int(self._draw(logits_1V) if self._generator else logits_1V.argmax())
        if self._alternatives is not None:
            self.chances.append(self._chance(logits_1V[0].log_softmax(-1), token))
        return token

    def _draw(self, logits_1V: Tensor) -> Tensor:
        chances_1V = self._warpers(torch.empty(1, 0, dtype=torch.long), logits_1V).softmax(-1)
        return torch.multinomial(chances_1V, 1, generator=self._generator)

    def _chance(self, logprobs_V: Tensor, token: int) -> TokenChance:
        likeliest = torch.topk(logprobs_V, self._alternatives or 0)
        pairs = zip(likeliest.indices.tolist(), likeliest.values.tolist(), strict=True)
        return TokenChance(token, float(logprobs_V[token]), tuple(pairs))
