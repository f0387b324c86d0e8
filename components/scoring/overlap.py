"""How much of a reference is in an answer: chrF and BLEU by sacrebleu, ROUGE-L by rouge-score, as papers have them.

The libraries are imported when a score is first asked for: rouge-score brings nltk, whose import takes a second.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from components.scoring.writing import HAN, WITHOUT_SPACES, main_script, words_of


def chrf(answer: str, reference: str) -> float:
    """chrF2, 0 to 100: letters without spaces, so every language is counted alike."""
    return float(_chrf().sentence_score(answer, [reference]).score)


def bleu(answer: str, reference: str) -> float:
    """Sentence BLEU, 0 to 100, smoothed ("exp") and up to the order that the answer has.

    Words are sacrebleu's (13a); a Chinese reference is cut by its `zh`, another one without spaces into characters.
    """
    script = main_script(reference)
    tokenizer = "zh" if script == HAN else "char" if script in WITHOUT_SPACES else "13a"
    return float(_bleu(tokenizer).sentence_score(answer, [reference]).score)


def rouge_l(answer: str, reference: str) -> float:
    """ROUGE-L's F1, 0 to 1. rouge-score's own words are a-z and 0-9 only: it gets words and characters of all scripts."""
    return float(_rouge().score(reference, answer)["rougeL"].fmeasure)


@cache
def _chrf() -> Any:
    from sacrebleu.metrics.chrf import CHRF

    return CHRF()


@cache
def _bleu(tokenizer: str) -> Any:
    from sacrebleu.metrics.bleu import BLEU

    return BLEU(tokenize=tokenizer, effective_order=True)


class _Words:
    def tokenize(self, text: str) -> list[str]:
        return words_of(text)


@cache
def _rouge() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], tokenizer=_Words())
