"""Converts the tokenizer.model of an original ChatGLM3 directory: the same tokens, without running its code.

SentencePiece BPE repeatedly joins the two neighbors whose joined piece has the best score, the leftmost first. The same
is expressed by ranked merges: every way to cut a piece into two pieces is a merge, ranked by the score of the piece.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from google.protobuf.message import DecodeError
from tokenizers import Tokenizer, decoders, normalizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from components.conversations.chat_formats.chatglm3 import CHAT_TEMPLATE, COMMANDS
from components.errors import InputError
from components.storage.foreign_files import explain_foreign, read_object

if TYPE_CHECKING:
    from sentencepiece import sentencepiece_model_pb2

MODEL_FILE = "tokenizer.model"
SPACE = "▁"
NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6  # kinds of pieces
FIRST_PIECES = ("<unk>", "<s>", "</s>")
BPE_MODEL = 2


def is_original(path: str | Path) -> bool:
    """Whether a directory has the layout that ChatGLM's own code reads: its model_type is chatglm."""
    config = Path(path) / "config.json"
    return config.is_file() and read_object(config).get("model_type") == "chatglm"


def load_original_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    """Loads tokenizer.model and nothing else. Raises InputError if it is missing, or not of ChatGLM3's kind."""
    file = directory / MODEL_FILE
    if not file.is_file():
        raise InputError(f"{directory}: there is no {MODEL_FILE}, from which a ChatGLM3 tokenizer is made")
    with explain_foreign(file, "not a tokenizer of ChatGLM3's kind"):
        return convert_tokenizer(file)


def convert_tokenizer(file: Path) -> PreTrainedTokenizerBase:
    """Converts a tokenizer.model. Commands such as <|user|> follow the pieces; padding is <unk>, on the left."""
    model = _read(file)
    vocabulary = {piece.piece: number for number, piece in enumerate(model.pieces)}
    backend = Tokenizer(
        BPE(vocab=vocabulary, merges=_merges(model), unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    backend.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    backend.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<unk>",
        additional_special_tokens=list(COMMANDS),
        padding_side="left",
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )
    _check_commands(file, tokenizer, len(model.pieces))
    return tokenizer


def _merges(model: sentencepiece_model_pb2.ModelProto) -> list[tuple[str, str]]:
    """Returns merges, best score first; of one piece's cuts the shortest left part first, as in SentencePiece."""
    number = {piece.piece: i for i, piece in enumerate(model.pieces) if piece.type == NORMAL}
    ranked = []
    for text, i in number.items():
        score = -model.pieces[i].score
        for cut in range(1, len(text)):
            left, right = text[:cut], text[cut:]
            if left in number and right in number:
                ranked.append((score, i, cut, left, right))
    ranked.sort()
    return [(left, right) for _, _, _, left, right in ranked]


def _read(file: Path) -> sentencepiece_model_pb2.ModelProto:
    try:
        from sentencepiece import sentencepiece_model_pb2  # no other model needs this package
    except ImportError as error:
        raise InputError(
            f"{file}: is read by the package sentencepiece, which cannot be imported here ({error})"
        ) from None
    model = sentencepiece_model_pb2.ModelProto()
    with contextlib.suppress(DecodeError):
        model.ParseFromString(file.read_bytes())
    if not model.pieces:
        raise InputError(f"{file}: not a SentencePiece model, so not ChatGLM3's (GLM-4's is one of tiktoken)")
    if problems := _unsupported_settings(model):
        raise InputError(f"{file}: not a tokenizer of ChatGLM3's kind: {'; '.join(problems)}")
    return model


def _unsupported_settings(model: sentencepiece_model_pb2.ModelProto) -> list[str]:
    """Returns the rules of ChatGLM3's tokenizer that this model breaks: the conversion would not be exact."""
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    wrong = {
        "it must be a BPE": trainer.model_type != BPE_MODEL,
        "it must fall back to bytes": not trainer.byte_fallback,
        "spaces must stand before words": trainer.treat_whitespace_as_suffix,
        "a space must be put before the text": not normalizer.add_dummy_prefix,
        "spaces must be kept": normalizer.remove_extra_whitespaces,
        "text must not be normalized": bool(normalizer.precompiled_charsmap),
        "its first pieces must be <unk>, <s> and </s>": tuple(p.piece for p in model.pieces[:3]) != FIRST_PIECES,
        "it must have no pieces of a user's own": not {p.type for p in model.pieces}
        <= {NORMAL, UNKNOWN, CONTROL, BYTE},
    }
    return [rule for rule, broken in wrong.items() if broken]


def _check_commands(file: Path, tokenizer: PreTrainedTokenizerBase, num_pieces: int) -> None:
    found = tokenizer.convert_tokens_to_ids(list(COMMANDS))
    wanted = list(range(num_pieces, num_pieces + len(COMMANDS)))
    if found != wanted:
        raise InputError(f"{file}: a command is a piece already: {dict(zip(COMMANDS, found, strict=True))}")
