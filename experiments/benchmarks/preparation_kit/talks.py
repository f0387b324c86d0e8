"""Conversations for the benchmark of preparation: of one to six turns, in words as frequent as those of Python's manual."""

from __future__ import annotations

import json
import random
import re
from bisect import bisect
from collections import Counter
from itertools import accumulate
from pathlib import Path
from pydoc_data.topics import topics

NAMES = 20_000  # that no manual has: one word of twenty
SYLLABLES = [consonant + vowel for consonant in "bdfghklmnprstvw" for vowel in ("a", "e", "i", "o", "u", "ai", "er")]
SYSTEM = "You answer in few words, and say so where you do not know."
SAID_TWICE, NEARLY_TWICE = 0.02, 0.02  # shares of conversations


class Words:
    def __init__(self, drawn: random.Random) -> None:
        self.drawn = drawn
        counted = Counter(re.findall("[a-z]+", " ".join(topics.values()))).most_common()
        self.words = [word for word, _ in counted]
        self.ends = list(accumulate(count for _, count in counted))
        self.names = ["".join(drawn.choices(SYLLABLES, k=2 + drawn.randrange(3))).capitalize() for _ in range(NAMES)]

    def text(self, length: int) -> str:
        said = [self._word() for _ in range(length)]
        said[0] = said[0].capitalize()
        for place in range(6, length, 11):
            said[place] += self.drawn.choice([",", ".", ";", f" {self.drawn.randrange(1000)}"])
        return " ".join(said) + self.drawn.choice([".", "?", "!"])

    def _word(self) -> str:
        if self.drawn.random() < 0.05:
            return self.drawn.choice(self.names)
        return self.words[bisect(self.ends, self.drawn.random() * self.ends[-1])]


def write_talks(path: Path, count: int) -> None:
    """Writes `count` records in OpenAI's form, the same ones each time."""
    drawn = random.Random(0)
    words = Words(drawn)
    kept: list[list[dict[str, str]]] = []
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            chance = drawn.random()
            if kept and chance < SAID_TWICE:
                messages = drawn.choice(kept)
            elif kept and chance < SAID_TWICE + NEARLY_TWICE:
                messages = [dict(message) for message in drawn.choice(kept)]
                messages[-1]["content"] += f" {words.text(1)}"
            else:
                messages = _talk(drawn, words)
                if number % 50 == 0:
                    kept.append(messages)
            file.write(json.dumps({"messages": messages, "id": number}, ensure_ascii=False) + "\n")


def _talk(drawn: random.Random, words: Words) -> list[dict[str, str]]:
    messages = [{"role": "system", "content": SYSTEM}] if drawn.random() < 0.3 else []
    for _ in range(drawn.randint(1, 6)):
        messages.append({"role": "user", "content": words.text(drawn.randint(4, 30))})
        messages.append({"role": "assistant", "content": words.text(drawn.randint(10, 60))})
    return messages
