"""base.json of checkpoints and packages: the base model and the chat format with which they were trained."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, field_validator

from components.experiment.spec import ChatFormatSpec, ModelSpec
from components.models.base.bundled_models import BUNDLED_MODELS
from components.storage.foreign_files import explain_foreign, read_description

BASE_FILE = "base.json"


class BaseReference(BaseModel):
    """`digest` is that of components/models/digest.py. It identifies the base on other machines, in any directory."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: ModelSpec
    digest: str
    chat_format: ChatFormatSpec

    @field_validator("model")
    @classmethod
    def _make_path_absolute(cls, model: ModelSpec) -> ModelSpec:
        """Makes a directory's path absolute, because readers run in other directories. Hub ids are valid everywhere."""
        if model.path in BUNDLED_MODELS or not Path(model.path).expanduser().is_dir():
            return model
        return model.model_copy(update={"path": str(Path(model.path).expanduser().absolute())})

    @classmethod
    def read(cls, directory: Path) -> BaseReference:
        """Raises InputError if there is none, or it cannot be read."""
        with explain_foreign(directory / BASE_FILE):
            return cls.model_validate_json(read_description(directory / BASE_FILE))

    def write(self, directory: Path) -> None:
        (directory / BASE_FILE).write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")
