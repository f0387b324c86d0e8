"""How conversations become tokens: the keys that begin with `chat_`, and two of `data`."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, JsonValue, model_validator

from components.experiment.spec.section import Spec

SystemPlace = Literal["native", "prepend"]


class ChatFormatSpec(Spec):
    """All that decides a conversation's tokens beside its tokenizer. Part of prepared data, checkpoints and packages.

    `end_token_ids` are those of the model's generation_config.json; None where nobody has looked yet.
    """

    name: str = "auto"
    template: str | None = None
    arguments: dict[str, JsonValue] = Field(default_factory=dict)
    system: SystemPlace = "native"
    train_on_reasoning: bool = True
    end_token_ids: tuple[int, ...] | None = None

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, values: Any) -> Any:
        """Earlier versions wrote the name alone."""
        return {"name": values} if isinstance(values, str) else values

    @classmethod
    def of(cls, given: ChatFormatSpec | str) -> Self:
        """Returns the spec; a name alone has every default."""
        return cls.model_validate(given)
