"""A real model that says what it is given to say: each of its tokens leads to the next one, whatever was asked."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tests.support.template_kinds import KINDS
from tests.support.toy import START, STOP, UNKNOWN, letter_tokenizer, with_chat_tokens

# One that has thoughts and calls, in the tokens of these models. A prompt ends with a space.
TEMPLATE = KINDS["thought_since_question"].template.replace("<|turn|>", START).replace("<|over|>", STOP)
BEFORE_A_REPLY = " "


def speaking_model_directory(directory: Path, words: list[str], *, again: bool = False, positions: int = 4096) -> None:
    """Saves a model whose replies are these words, each of which is one token.

    Args:
        words: no two are the same, and none is a single letter.
        again: after the last word comes the first one, until somebody ends it.
    """
    tokenizer = _tokenizer_with(words)
    one, *others = [tokenizer.convert_tokens_to_ids(word) for word in words]
    rows = len(tokenizer)
    hidden = 64 * (rows // 64 + 1)
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=rows,
            hidden_size=hidden,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=positions,
            tie_word_embeddings=False,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
        )
    )
    before = [tokenizer.convert_tokens_to_ids(BEFORE_A_REPLY), one, *others]
    after = [one, *others, one if again else tokenizer.eos_token_id]
    with torch.no_grad():
        for layer in model.model.layers:  # they add nothing: a token goes through as it is
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(rows, hidden))
        model.lm_head.weight.zero_()
        model.lm_head.weight[after, before] = 1.0
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def _tokenizer_with(words: list[str]) -> PreTrainedTokenizerFast:
    """Returns the letter tokenizer with these words behind its own tokens. It reads none of them, but can say them."""
    letters = letter_tokenizer()
    kept = letters.backend_tokenizer
    vocabulary = kept.get_vocab()
    vocabulary |= {word: len(vocabulary) + number for number, word in enumerate(words)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer, tokenizer.decoder = kept.pre_tokenizer, kept.decoder
    return with_chat_tokens(tokenizer, TEMPLATE)
