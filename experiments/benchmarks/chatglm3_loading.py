"""What loading an original ChatGLM3 directory costs in memory and time, on a synthetic one of 1.4 GB in seven shards.

    python experiments/benchmarks/chatglm3_loading.py --write experiments/benchmarks/chatglm3_loading.md

Every way of loading runs in a process of its own. Its memory is the most that process ever held (VmHWM, pages of mapped
files counted) less what it held before, as a share of the model's own bytes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GlmConfig

from components.models.chatglm.convert import convert
from components.models.chatglm.load_original import load_original
from components.models.chatglm.read_weights import shapes_of
from components.models.chatglm.save import write_original

SHARD_BYTES = 205 * 10**6
LIMIT = 1.1
WAYS = {
    "streamed, .safetensors, fp16": ("safetensors", "stream", torch.float16),
    "streamed, .safetensors, bf16": ("safetensors", "stream", torch.bfloat16),
    "streamed, .safetensors, fp32": ("safetensors", "stream", torch.float32),
    "streamed, .bin, fp16": ("bin", "stream", torch.float16),
    "converted to a Glm directory, bf16": ("safetensors", "convert", torch.bfloat16),
    "from the converted one, bf16": ("glm", "plain", torch.bfloat16),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", type=Path, metavar="FILE", help="the table, as Markdown")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measured(arguments.folder, *WAYS[arguments.measure])))
        return
    with tempfile.TemporaryDirectory(prefix="turnwise-loading-") as folder:
        make_directories(Path(folder))
        rows = [(way, measure_in_fresh_process(Path(folder), way)) for way in WAYS]
    table = markdown(rows)
    print(table)
    if arguments.write:
        arguments.write.write_text(table, encoding="utf-8")
    over = [way for way, row in rows if row["share"] > LIMIT]
    sys.exit(f"more than {LIMIT} x the model: {', '.join(over)}" if over else 0)


def make_directories(folder: Path) -> None:
    """safetensors/ and bin/ in the original layout, with equal weights, and glm/."""
    config = GlmConfig(
        vocab_size=65024,
        hidden_size=2048,
        intermediate_size=6848,
        num_hidden_layers=8,
        num_attention_heads=16,
        num_key_value_heads=2,
        head_dim=128,
        rms_norm_eps=1e-5,
        max_position_embeddings=8192,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
        pad_token_id=0,
        eos_token_id=2,
        bos_token_id=1,
    )
    generator = torch.Generator().manual_seed(0)
    weights = {name: (torch.rand(shape, generator=generator) - 0.5).half() for name, shape in shapes_of(config).items()}
    original = folder / "safetensors"
    write_original(weights, config, original, base=None, dtype=torch.float16, shard_bytes=SHARD_BYTES)
    pickled = folder / "bin"
    pickled.mkdir()
    for shard in original.glob("*.safetensors"):
        torch.save(load_file(shard), pickled / f"{shard.stem}.bin")
    index = (original / "model.safetensors.index.json").read_text().replace(".safetensors", ".bin")
    (pickled / "pytorch_model.bin.index.json").write_text(index)
    (pickled / "config.json").write_bytes((original / "config.json").read_bytes())
    convert(original, folder / "glm", torch.bfloat16, source_digest="sha256:synthetic")


def measure_in_fresh_process(folder: Path, way: str) -> dict[str, float]:
    command = [sys.executable, __file__, "--measure", way, "--folder", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    row: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return row


def measured(folder: Path, kind: str, how: str, dtype: torch.dtype) -> dict[str, float]:
    """Bytes of the model, most bytes held beside what there was before, seconds."""
    torch.set_num_threads(1)
    model_bytes = sum(shape.numel() for shape in shapes_of(_config(folder)).values()) * dtype.itemsize
    before, began = held("VmRSS"), time.perf_counter()
    if how == "convert":
        convert(folder / kind, folder / "again", dtype, source_digest="sha256:synthetic")
    elif how == "plain":
        model = AutoModelForCausalLM.from_pretrained(folder / kind, dtype=dtype, trust_remote_code=False)
        sum(float(parameter.flatten()[::1000].sum()) for parameter in model.parameters())  # maps are read when used
    else:
        load_original(folder / kind, dtype=dtype, attention="sdpa")
    peak = held("VmHWM") - before
    return {
        "model": model_bytes,
        "peak": peak,
        "share": peak / model_bytes,
        "seconds": time.perf_counter() - began,
    }


def held(what: str) -> int:
    """Bytes of this process by Linux's count."""
    status = Path("/proc/self/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith(f"{what}:")]
    return int(line.split()[1]) * 1024


def markdown(rows: list[tuple[str, dict[str, float]]]) -> str:
    lines = [
        "# Loading ChatGLM3 in its original layout",
        "",
        f"{date.today():%Y-%m-%d}, {os.cpu_count()} cores ({platform.machine()}), no GPU, torch {torch.__version__},"
        f" transformers {transformers.__version__}.",
        "A synthetic directory of 0.7 billion parameters, 1.4 GB in fp16, seven shards; each way in a process of its own.",
        "Made by `python experiments/benchmarks/chatglm3_loading.py --write experiments/benchmarks/chatglm3_loading.md`.",
        "",
        "| way | model, GB | most held, GB | share | seconds |",
        "|---|---|---|---|---|",
    ]
    for way, row in rows:
        sizes = f"{row['model'] / 1e9:.2f} | {row['peak'] / 1e9:.2f} | {row['share']:.2f}"
        lines.append(f"| {way} | {sizes} | {row['seconds']:.1f} |")
    return "\n".join(lines) + "\n"


def _config(folder: Path) -> GlmConfig:
    return GlmConfig.from_pretrained(folder / "glm")


if __name__ == "__main__":
    main()
