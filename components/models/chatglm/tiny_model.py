"""Writes a tiny ChatGLM3 in the original layout: random weights, and a SentencePiece model like the real one's.

It is for smoke runs and tests without the 12 GB of the real model. It is not trained. Run by hand:

    python -m components.models.chatglm.tiny_model DIRECTORY [CONVERSATIONS.jsonl [HIDDENxLAYERS]]

64x2 unless a size is given; 512x8, 19 million weights, give a GPU something to do.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

import sentencepiece
import torch
from transformers import GlmConfig, GlmForCausalLM

from components.conversations.chat_formats.chatglm3 import COMMANDS
from components.conversations.readers.read import read_conversations
from components.conversations.tokenizers.chatglm3 import MODEL_FILE
from components.models.chatglm.config import ROPE_BASE, ROTARY_SHARE
from components.models.chatglm.save import write_original

CONVERSATIONS = "experiments/data/quickstart.jsonl"
MAX_PIECES = 1200
SPARE_ROWS = 6  # the real model also has more rows of embeddings than tokens


def make_tiny(
    directory: Path, conversations: str = CONVERSATIONS, *, hidden_size: int = 64, layers: int = 2, seed: int = 0
) -> None:
    """Writes config.json, tokenizer.model and two or three float16 shards."""
    directory.mkdir(parents=True, exist_ok=True)
    texts = [message.content for chat in read_conversations(conversations).conversations for message in chat.messages]
    pieces = train_sentencepiece(texts, directory / MODEL_FILE)
    config = GlmConfig(
        vocab_size=pieces + len(COMMANDS) + SPARE_ROWS,
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=hidden_size // 4,
        rms_norm_eps=1e-5,
        max_position_embeddings=2048,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_BASE, "partial_rotary_factor": ROTARY_SHARE},
        pad_token_id=0,
        eos_token_id=2,
        bos_token_id=1,
    )
    torch.manual_seed(seed)
    weights = GlmForCausalLM(config).state_dict()
    size = sum(tensor.nbytes for tensor in weights.values()) // 2  # in float16
    write_original(weights, config, directory, base=None, dtype=torch.float16, shard_bytes=size // 2)


def train_sentencepiece(texts: list[str], file: Path, max_pieces: int = MAX_PIECES) -> int:
    """Trains a BPE with ChatGLM3's settings. Returns the number of its pieces."""
    trained = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=trained,
        model_type="bpe",
        vocab_size=max_pieces,
        hard_vocab_limit=False,
        byte_fallback=True,
        character_coverage=0.9999,
        normalization_rule_name="identity",
        add_dummy_prefix=True,
        remove_extra_whitespaces=False,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        num_threads=1,
        minloglevel=2,
    )
    file.write_bytes(trained.getvalue())
    return int(sentencepiece.SentencePieceProcessor(model_proto=trained.getvalue()).vocab_size())


def sizes(text: str) -> tuple[int, int]:
    """Reads HIDDENxLAYERS. Raises ValueError for anything else."""
    hidden, times, layers = text.partition("x")
    if not (times and hidden.isdecimal() and layers.isdecimal() and int(layers)) or int(hidden) % 8 or not int(hidden):
        raise ValueError(f"{text}: a size is HIDDENxLAYERS, e.g. 512x8; the four heads want a multiple of 8 as HIDDEN")
    return int(hidden), int(layers)


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3, 4):
        sys.exit(
            "usage: python -m components.models.chatglm.tiny_model DIRECTORY [CONVERSATIONS.jsonl [HIDDENxLAYERS]]"
        )
    try:
        hidden_size, layers = sizes(sys.argv[3] if len(sys.argv) == 4 else "64x2")
    except ValueError as error:
        sys.exit(str(error))
    make_tiny(Path(sys.argv[1]), *sys.argv[2:3], hidden_size=hidden_size, layers=layers)
    print(f"{sys.argv[1]}: a tiny ChatGLM3 in the original layout, with random weights")
