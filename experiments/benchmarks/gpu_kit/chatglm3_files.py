"""A ChatGLM3 in its authors' layout, with random weights and the real model's sizes, and conversations in its format."""

from __future__ import annotations

import hashlib
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from components.conversations.chat_formats import load_chat_format
from components.conversations.readers.read import read_conversations
from components.conversations.tokenizers.chatglm3 import MODEL_FILE
from components.conversations.tokenizers.load_tokenizer import load_tokenizer
from components.data.prepare import PreparedDataset, prepare
from components.experiment.spec import DataSpec
from components.models.chatglm.save import write_original
from components.models.chatglm.tiny_model import make_tiny, train_sentencepiece
from components.storage.open_folder import folder_at
from components.storage.size import GB
from experiments.benchmarks.gpu_kit.settings import Settings
from experiments.benchmarks.gpu_kit.shapes import config_of, random_model
from experiments.benchmarks.gpu_kit.speed_peak import synchronize

CONVERSATIONS = Path(__file__).parents[2] / "data" / "quickstart.jsonl"
HELD_OUT = 4  # conversations
PROBE_BYTES = 2**29
# How often the part writes, digests and loads all weights before QLoRA: original and converted, both, at first and again.
WRITES, DIGESTS, LOADS = 2, 2, 2
OTHERS = 18.0  # seconds of the part in which no weights are moved, on one H100: steps, generation, libraries
SPARE_BYTES = 2 * GB  # of the disk
LEAST_LAYERS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """Seconds a byte of this machine's disk and processor."""

    write: float
    digest: float
    load: float

    @property
    def whole_part(self) -> float:
        return WRITES * self.write + DIGESTS * self.digest + LOADS * self.load


def measured_pace(settings: Settings) -> Pace:
    """Of half a gigabyte from the device to the disk and back."""
    file, tensor = settings.scratch / "probe.safetensors", torch.zeros(PROBE_BYTES // 2, dtype=torch.float16)
    tensor.to(settings.device)  # begins CUDA, which takes seconds
    synchronize(settings.device)
    began = time.perf_counter()
    save_file({"probe": tensor.to(settings.device).cpu()}, file)
    written = time.perf_counter()
    with file.open("rb") as opened:
        hashlib.file_digest(opened, "sha256")
    digested = time.perf_counter()
    load_file(file)["probe"].to(torch.bfloat16).to(settings.device)
    synchronize(settings.device)
    loaded = time.perf_counter()
    file.unlink()
    seconds = (written - began, digested - written, loaded - digested)
    return Pace(**dict(zip(("write", "digest", "load"), (part / PROBE_BYTES for part in seconds), strict=True)))


def layers_that_fit(pace: Pace, *, layer_bytes: int, other_bytes: int, layers: int, seconds: float, free: float) -> int:
    """How many layers can be written, converted and loaded in the time, and on the disk; at least LEAST_LAYERS."""
    by_time = (seconds - OTHERS) / pace.whole_part
    by_disk = (free - SPARE_BYTES) / WRITES
    fitting = int((min(by_time, by_disk) - other_bytes) // layer_bytes)
    return max(LEAST_LAYERS, min(layers, fitting))


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """`layers` of `all_layers`; `bytes` of weights."""

    directory: Path
    layers: int
    all_layers: int
    bytes: int
    seconds: float

    def sentence(self) -> str:
        less = f", with {self.layers} of its {self.all_layers} layers, for want of time or disk"
        size = f"{self.bytes / GB:.3g} GB in {self.seconds:.1f} s"
        return size + (less if self.layers < self.all_layers else f", all {self.layers} layers")


def write_model(settings: Settings) -> Written:
    """Writes as many layers as there is time for; each has its real size. With tiny shapes, a tiny model."""
    directory = settings.scratch / "chatglm3"
    layers, all_layers = (2, 2) if settings.tiny else _layers(settings)
    began = time.perf_counter()
    if settings.tiny:
        make_tiny(directory, str(CONVERSATIONS))
    else:
        _write_real(directory, layers, settings)
    return Written(
        directory=directory,
        layers=layers,
        all_layers=all_layers,
        bytes=sum(file.stat().st_size for file in directory.glob("*.safetensors")),
        seconds=time.perf_counter() - began,
    )


def _layers(settings: Settings) -> tuple[int, int]:
    """Returns (layers to write, layers of the real model)."""
    config = config_of("chatglm3-6b", settings)
    width, keys = config.hidden_size, config.num_key_value_heads * config.head_dim
    layer = width * (2 * width + 2 * keys + 3 * config.intermediate_size)
    layers = layers_that_fit(
        measured_pace(settings),
        layer_bytes=2 * layer,
        other_bytes=2 * 2 * config.vocab_size * width,
        layers=config.num_hidden_layers,
        seconds=settings.seconds_left(),
        free=shutil.disk_usage(settings.scratch).free,
    )
    return layers, config.num_hidden_layers


def _write_real(directory: Path, layers: int, settings: Settings) -> None:
    directory.mkdir()
    texts = [
        message.content for chat in read_conversations(str(CONVERSATIONS)).conversations for message in chat.messages
    ]
    train_sentencepiece(texts, directory / MODEL_FILE)
    config = config_of("chatglm3-6b", settings)
    config.num_hidden_layers = layers
    weights = random_model(config, settings.device, dtype="bf16").state_dict()
    write_original(weights, config, directory, base=None, dtype=torch.float16)


def write_data(model: Path, settings: Settings, tokens: int) -> PreparedDataset:
    """Prepares as many conversations as one row of so many tokens holds, and a few to hold out."""
    chat_format = load_chat_format(load_tokenizer(model))
    lengths = [len(chat_format.render(chat).token_ids) for chat in read_conversations(str(CONVERSATIONS)).conversations]
    count = next(number for number in range(len(lengths)) if sum(lengths[: number + 1]) > tokens)
    lines = CONVERSATIONS.read_text(encoding="utf-8").splitlines(keepends=True)
    files = {"train": lines[:count], "eval": lines[count : count + HELD_OUT]}
    for name, chosen in files.items():
        (settings.scratch / f"{name}.jsonl").write_text("".join(chosen), encoding="utf-8")
    data = DataSpec(
        train=str(settings.scratch / "train.jsonl"), eval=str(settings.scratch / "eval.jsonl"), max_tokens=tokens
    )
    return prepare(
        data, model_path=model, chat_format="auto", storage=folder_at(settings.scratch / "data"), processes=1
    )
