"""A winner of full fine-tuning as the registry has it, made without a search: its weights are its base's."""

from __future__ import annotations

import shutil
import string
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Regex, Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import LlamaConfig, PreTrainedTokenizerFast

from components.experiment.spec import BatchSpec, FullMethod, ModelSpec, TrialSpec
from components.models.base.reference import BaseReference
from components.models.digest import model_digest
from components.models.load_trained import SPEC_FILE, package
from components.registry.chat_model import PACKAGE
from components.registry.model_package import save_packaged
from components.training.checkpoint import save_weights
from components.training.workers import OneWorker
from experiments.benchmarks.gpu_kit.rows import random_dataset
from experiments.benchmarks.gpu_kit.settings import Settings
from experiments.benchmarks.gpu_kit.shapes import random_model

PAD, UNKNOWN, START, STOP = "<pad>", "<unk>", "<|im_start|>", "<|im_end|>"
TOKENIZER_TOKENS = (PAD, UNKNOWN, START, STOP, *string.printable)
# As the product chooses: weights in float32, computed in bf16.
SPEC = TrialSpec(method=FullMethod(), batch=BatchSpec(rows_per_step=1, rows_per_micro_batch=1), precision="bf16")


TOKENS = 64  # in the longest conversation that is scored, and few: this is about the model


@dataclass(frozen=True, slots=True, kw_only=True)
class Winner:
    """`version`: the folder of the registered version. `weight_bytes`: of the model as it is loaded."""

    version: Path
    judged_store: Path
    config: LlamaConfig
    model: ModelSpec
    weight_bytes: int


def make_winner(config: LlamaConfig, folder: Path, settings: Settings) -> Winner:
    """Writes the base, a checkpoint, the package and the version as the product does; only base and version stay."""
    base, checkpoint = folder / "base", folder / "checkpoint"
    checkpoint.mkdir(parents=True)
    model = random_model(config, settings.device)
    weight_bytes = sum(weight.nbytes for weight in model.parameters())
    model.save_pretrained(base)
    letter_tokenizer().save_pretrained(base)
    named = ModelSpec(path=str(base)).for_trial(SPEC)
    BaseReference(model=named, digest=model_digest(base), chat_format="auto").write(checkpoint)
    (checkpoint / SPEC_FILE).write_text(SPEC.model_dump_json(), encoding="utf-8")
    save_weights(model, checkpoint, OneWorker())
    del model
    package(checkpoint, folder / PACKAGE)
    shutil.rmtree(checkpoint)
    save_packaged(folder / PACKAGE, folder / "version")
    shutil.rmtree(folder / PACKAGE)
    rows = random_dataset(folder / "rows", len(TOKENIZER_TOKENS), train=[TOKENS], evaluate=[TOKENS, TOKENS // 2])
    return Winner(
        version=folder / "version",
        judged_store=rows.eval.path,
        config=config,
        model=named,
        weight_bytes=weight_bytes,
    )


def letter_tokenizer() -> PreTrainedTokenizerFast:
    """One letter, one token, and ChatML's."""
    numbers = {token: number for number, token in enumerate(TOKENIZER_TOKENS)}
    tokenizer = Tokenizer(WordLevel(numbers, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNKNOWN,
        eos_token=STOP,
        additional_special_tokens=[START],
    )
