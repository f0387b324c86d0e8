"""The base class of every section of an experiment file, and the types that several sections share."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from components.experiment.type_introspection import is_numeric
from components.storage.uri import check_no_secret, check_uri

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Share = Annotated[float, Field(gt=0.0, lt=1.0)]
# Ends that nothing real exceeds: a slip of the keyboard or 1e308 is refused in words, before anything counts up to it.
Count = Annotated[int, Field(ge=1, le=1_000_000)]
Trials = Annotated[int, Field(ge=1, le=100_000)]
Evaluations = Annotated[int, Field(ge=1, le=10_000)]
Repeats = Annotated[int, Field(ge=1, le=1_000)]
Tokens = Annotated[int, Field(ge=1, le=10**15)]
Amount = Annotated[float, Field(gt=0.0, le=1e30)]
NonNegativeAmount = Annotated[float, Field(ge=0.0, le=1e30)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # numpy's have 32 bits, and torch's are made of these and the step
Dtype = Literal["fp32", "bf16"]
HALF_CHARACTER = re.compile("[\ud800-\udfff]")
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]


class Spec(BaseModel):
    """Base of all sections: frozen, and strict about what it accepts.

    An unknown key is an error (experiment_errors.py names the nearest valid one). Numbers are finite, and a
    boolean is not a number.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _refuse_odd_texts_and_booleans(cls, values: Any) -> Any:
        """Refuses a URI with a password in it in any field: the experiment is written into records and reports. So is every
        text, as UTF-8, which half a character (of a name that is no UTF-8, or an escape) cannot be.

        Turns booleans in numeric fields into text, which pydantic refuses. It would read `true` as 1.
        """
        if not isinstance(values, dict):
            return values
        for name, value in values.items():
            _check_texts(name, value)
        numeric = {name for name, field in cls.model_fields.items() if is_numeric(field.annotation)}
        return {name: _booleans_as_text(value) if name in numeric else value for name, value in values.items()}


def _check_texts(field: str, value: Any) -> None:
    """Of the whole section: in the error of a field pydantic would show the value."""
    for each in value if isinstance(value, list | tuple) else (value,):
        if isinstance(each, str):
            if HALF_CHARACTER.search(each):
                raise ValueError(f"{field}: holds half a character, or a byte that is no UTF-8; write it as text")
            try:
                check_no_secret(each)
            except ValueError as error:
                raise ValueError(f"{field}: {error}") from None


def _booleans_as_text(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(map(_booleans_as_text, value))
    return str(value).lower() if isinstance(value, bool) else value


def check_uris(**fields: str | tuple[str, ...] | None) -> None:
    """Raises ValueError for a URI that cannot be used, e.g. one that holds a password.

    A section calls this from a validator of the whole section: in the error of a field's own validator pydantic would
    show the value, which may be a secret.
    """
    for field, value in fields.items():
        for uri in (value,) if isinstance(value, str) else value or ():
            try:
                check_uri(uri)
            except ValueError as error:
                raise ValueError(f"{field}: {error}") from None


def fill_in_tag(values: Any, field: str, tag: str, default: str) -> Any:
    """Adds the missing tag of a tagged union to `values`, so that `--set trial.method.rank=8` needs no `kind: lora`."""
    if isinstance(values, dict) and isinstance(values.get(field), dict) and tag not in values[field]:
        return {**values, field: {tag: default, **values[field]}}
    return values
