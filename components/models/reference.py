"""Which base model, and which chat format, something trained belongs to: base.json of checkpoints and packages."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from components.experiment.spec import ModelSpec

BASE_FILE = "base.json"


class BaseReference(BaseModel):
    """`digest` is components/models/digest.py's; wherever the base lies on another machine, this is how it is known."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: ModelSpec
    digest: str
    chat_format: str

    @classmethod
    def read(cls, directory: Path) -> BaseReference:
        return cls.model_validate_json((directory / BASE_FILE).read_text(encoding="utf-8"))

    def write(self, directory: Path) -> None:
        (directory / BASE_FILE).write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")
