"""A package as an MLflow model: the files that are uploaded and become a version."""

from __future__ import annotations

from pathlib import Path

import mlflow.pyfunc
from mlflow.models import Model
from mlflow.models.model import MLMODEL_FILE_NAME

from components.experiment.spec import LoraMethod
from components.models.base.bundled_models import BUNDLED_MODELS
from components.models.base.reference import BaseReference
from components.models.load_trained import read_spec
from components.registry.chat_model import PACKAGE
from components.registry.own_code import INSTALLED, rename_package
from components.registry.skip_load_on_save import without_weights
from components.tracking.library_versions import installed_version

SERVED_BY = (  # what every version needs where it is served
    "mlflow",
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "safetensors",
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
            pip_requirements=requirements_of(package_folder),
        )
    rename_package(target)
    _forget_this_machine(target)


def _forget_this_machine(version: Path) -> None:
    """Names what a version brings by its place inside, where MLflow looks for it: it has noted where it was copied from."""
    model = Model.load(str(version))
    facts = model.flavors[mlflow.pyfunc.FLAVOR_NAME]
    for artifact in facts["artifacts"].values():
        artifact["uri"] = artifact["path"]
    facts["model_code_path"] = Path(facts["model_code_path"]).name
    model.save(str(version / MLMODEL_FILE_NAME))


def requirements_of(package_folder: Path) -> list[str]:
    """What a version needs where it is served, at the versions installed here; what is not installed has none.

    An adapter needs its base beside it, which may have to be quantized, or converted from another format.
    """
    spec = read_spec(package_folder)
    needed = list(SERVED_BY)
    if isinstance(spec.method, LoraMethod):
        is_bundled = BaseReference.read(package_folder).model.path in BUNDLED_MODELS
        has_sentencepiece = installed_version("sentencepiece") is not None  # else its base is no ChatGLM3
        needed += ["bitsandbytes"] * (spec.method.quantize is not None)
        needed += ["gguf"] * is_bundled + ["sentencepiece"] * has_sentencepiece
    versions = {name: installed_version(name) for name in needed}
    return [name if version is None else f"{name}=={version.partition('+')[0]}" for name, version in versions.items()]


def package_in(version: Path) -> Path:
    """The package's folder in that of a version."""
    return version / "artifacts" / PACKAGE
