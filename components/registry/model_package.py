"""A package as an MLflow model: the files that are uploaded and become a version."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import mlflow.pyfunc

from components.registry.chat_model import PACKAGE
from components.registry.own_code import INSTALLED, rename_package
from components.registry.skip_load_on_save import without_weights

SERVED_BY = (  # what a version needs where it is served, at the versions installed here
    "mlflow",
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "bitsandbytes",
    "safetensors",
    "sentencepiece",
    "gguf",
    "pydantic",
    "numpy",
    "jinja2",
)


def save_packaged(package_folder: Path, target: Path) -> None:
    """Writes an MLflow model of plain files: the package, this code under a name of its own, a signature and an example.

    Loads no weights.
    """
    with without_weights():
        mlflow.pyfunc.save_model(
            str(target),
            python_model=str(INSTALLED / "registry" / "chat_model.py"),
            artifacts={PACKAGE: str(package_folder)},
            code_paths=[str(INSTALLED)],
            input_example={
                "messages": [{"role": "user", "content": "Who are you?"}],
                "max_tokens": 16,
                "temperature": 0.0,
            },
            pip_requirements=[f"{package}=={version(package).partition('+')[0]}" for package in SERVED_BY],
        )
    rename_package(target)


def package_in(version: Path) -> Path:
    """The package's folder in that of a version."""
    return version / "artifacts" / PACKAGE
