"""What a careful user of datasets.map writes: render, mask, prove, split. Each function is one contestant's whole work."""

from __future__ import annotations

import hashlib
import json
import os
from functools import partial
from pathlib import Path
from typing import Any

END = "<|im_end|>"
BATCH = 64
HELD_OUT, JUDGED = 0.1, 0.2  # eval below the first, the verdict below the second


def with_proof(file: Path, model: Path, out: Path, processes: int) -> int:
    return _prepare(file, model, out, processes, proves=True)


def without_proof(file: Path, model: Path, out: Path, processes: int) -> int:
    """One rendering of each conversation, and no check of anything."""
    return _prepare(file, model, out, processes, proves=False)


def _prepare(file: Path, model: Path, out: Path, processes: int, *, proves: bool) -> int:
    os.environ.update(HF_DATASETS_OFFLINE="1", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    import datasets
    from transformers import AutoTokenizer

    datasets.disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(str(model), trust_remote_code=False)
    rows = datasets.load_dataset("json", data_files=str(file), split="train", cache_dir=str(out / "cache"))
    rows = rows.map(
        partial(_render, tokenizer, proves),
        batched=True,
        batch_size=BATCH,
        num_proc=processes,
        remove_columns=rows.column_names,
    )
    sides: dict[str, list[int]] = {"train": [], "eval": [], "verdict": []}
    seen: set[str] = set()
    for number, (key, mark) in enumerate(zip(rows["key"], rows["mark"], strict=True)):
        if key not in seen:
            seen.add(key)
            sides["eval" if mark < HELD_OUT else "verdict" if mark < JUDGED else "train"].append(number)
    for name, numbers in sides.items():
        rows.select(numbers).save_to_disk(str(out / name))
    return sum(map(len, sides.values()))


def _render(tokenizer: Any, proves: bool, batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
    conversations = batch["messages"]
    write = partial(tokenizer.apply_chat_template, tokenize=False)
    texts = [write(messages) for messages in conversations]
    encoded = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
    made: dict[str, list[Any]] = {"input_ids": encoded["input_ids"], "labels": [], "key": [], "mark": []}
    for messages, text, ids, offsets in zip(
        conversations, texts, encoded["input_ids"], encoded["offset_mapping"], strict=True
    ):
        spans = _proven_spans(write, messages, text) if proves else _spans(write, messages, text)
        if proves:
            prompts = tokenizer([text[:start] for start, _ in spans], add_special_tokens=False)["input_ids"]
            if any(ids[: len(prompt)] != prompt for prompt in prompts):
                raise ValueError("a prompt's tokens are no prefix of the conversation's")
        made["labels"].append(_labels(ids, offsets, spans))
        key = hashlib.sha256(json.dumps(messages, sort_keys=True).encode()).hexdigest()
        made["key"].append(key)
        made["mark"].append(int(key[:13], 16) / 16**13)
    return made


def _proven_spans(write: Any, messages: list[dict[str, Any]], text: str) -> list[tuple[int, int]]:
    """Returns the letters of each answer up to the end of its stop, as the model sees it in use."""
    spans = []
    for number, message in enumerate(messages):
        if message["role"] == "assistant":
            prompt = write(messages[:number], add_generation_prompt=True)
            newest = write(messages[: number + 1])
            stop = newest.rfind(END, len(prompt))
            if not (text.startswith(newest[: stop + len(END)]) and newest.startswith(prompt) and stop > 0):
                raise ValueError("the template rewrites an earlier turn")
            if message["content"] not in newest[len(prompt) : stop]:
                raise ValueError("the template does not show what the assistant says")
            spans.append((len(prompt), stop + len(END)))
    return spans


def _spans(write: Any, messages: list[dict[str, Any]], text: str) -> list[tuple[int, int]]:
    spans, at = [], 0
    opens = "<|im_start|>assistant\n"
    while (found := text.find(opens, at)) >= 0:
        at = text.find(END, found) + len(END)
        spans.append((found + len(opens), at))
    return spans


def _labels(ids: list[int], offsets: list[tuple[int, int]], spans: list[tuple[int, int]]) -> list[int]:
    labels = [-100] * len(ids)
    waiting = iter(spans)
    start, end = next(waiting)
    for number, (first, last) in enumerate(offsets):
        if first >= end:
            start, end = next(waiting, (len(offsets) * 1000, len(offsets) * 1000))
        if first >= start and last <= end:
            labels[number] = ids[number]
    return labels
