"""A real tokenizer of single letters, a real tiny model and small conversations: fast, and their answers are known."""

from __future__ import annotations

import json
import random
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from components.conversations.messages import Conversation, Message

PAD, UNKNOWN, START, STOP = "<pad>", "<unk>", "<|im_start|>", "<|im_end|>"
LETTERS = string.ascii_letters + string.digits + " .,;:!?'\"-_/\\|<>[](){}=+*&^%$#@~`\n\t你我他是谁好的吗在哪里"


def letter_tokenizer(chat_template: str | None = None) -> PreTrainedTokenizerFast:
    """One letter, one token; <|im_start|> and <|im_end|> are one token each."""
    vocabulary = {token: i for i, token in enumerate([PAD, UNKNOWN, START, STOP, *dict.fromkeys(LETTERS)])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = Fuse()
    return with_chat_tokens(tokenizer, chat_template)


def with_chat_tokens(tokenizer: Tokenizer, chat_template: str | None = None) -> PreTrainedTokenizerFast:
    """A tokenizer for transformers, with the special tokens of the toys."""
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNKNOWN,
        eos_token=STOP,
        additional_special_tokens=[START],
        chat_template=chat_template,
    )


def pair_tokenizer() -> PreTrainedTokenizerFast:
    """As letter_tokenizer, but two of the letters a, b, c and d are one token: other tokens of the same words."""
    pairs = [one + two for one in "abcd" for two in "abcd"]
    vocabulary = {token: i for i, token in enumerate([PAD, UNKNOWN, START, STOP, *dict.fromkeys(LETTERS), *pairs])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = Split(Regex(r"[abcd]{2}|[\s\S]"), "isolated")
    tokenizer.decoder = Fuse()
    return with_chat_tokens(tokenizer)


def save_letter_tokenizer(directory: Path, chat_template: str | None = None) -> None:
    letter_tokenizer(chat_template).save_pretrained(directory)


def tiny_llama(rows: int, **config: Any) -> LlamaForCausalLM:
    """A random two-layer Llama with so many rows of embeddings, the same one each time."""
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=rows,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            **config,
        )
    )


def tiny_model_directory(
    directory: Path,
    chat_template: str | None = None,
    *,
    tied: bool = True,
    least_rows: int = 0,
    tokenizer: PreTrainedTokenizerFast | None = None,
) -> None:
    """A random two-layer Llama and the letter tokenizer, loadable by AutoModelForCausalLM and AutoTokenizer.

    Args:
        tokenizer: another one.
        least_rows: of the embeddings, for another tokenizer with more tokens.
    """
    tokenizer = tokenizer or letter_tokenizer(chat_template)
    model = tiny_llama(
        max(len(tokenizer), least_rows),
        tie_word_embeddings=tied,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def user(content: str) -> Message:
    return Message(role="user", content=content)


def assistant(content: str, loss_weight: float = 1.0) -> Message:
    return Message(role="assistant", content=content, loss_weight=loss_weight)


def toy_conversations(count: int, seed: int = 0) -> list[Conversation]:
    """Two or three turns each, of the kind `say ab` -> `ab ab`: something a tiny model can learn."""
    generator = random.Random(seed)
    conversations = []
    for _ in range(count):
        messages = []
        for _ in range(generator.randint(2, 3)):
            word = "".join(generator.choice("abcd") for _ in range(generator.randint(2, 4)))
            messages += [user(f"say {word}"), assistant(f"{word} {word}")]
        conversations.append(Conversation(messages=tuple(messages)))
    return conversations


def write_messages_jsonl(path: Path, conversations: Sequence[Conversation]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for conversation in conversations:
            messages = [{"role": message.role, "content": message.content} for message in conversation.messages]
            file.write(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")
