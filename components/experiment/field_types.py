"""What the annotation of a field allows. Files are read along the types of spec.py, and so is the search space."""

from __future__ import annotations

import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel


def members(annotation: Any) -> tuple[Any, ...]:
    """The members of a union, or the annotation alone. Annotated types count as what they annotate."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return members(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return tuple(member for part in get_args(annotation) for member in members(part))
    return (annotation,)


def sections(annotation: Any) -> tuple[type[BaseModel], ...]:
    """The models among the members: more than one for a tagged union, none for a plain value."""
    return tuple(each for each in members(annotation) if isinstance(each, type) and issubclass(each, BaseModel))


def options(annotation: Any) -> tuple[Any, ...]:
    """The values of the literals among the members."""
    return tuple(value for each in members(annotation) if get_origin(each) is Literal for value in get_args(each))


def is_numeric(annotation: Any) -> bool:
    """Whether numbers, and no booleans, may stand in the field, also inside a tuple."""
    parts = members(annotation)
    if bool in parts:
        return False
    inside = (part for each in parts if get_origin(each) is tuple for part in get_args(each))
    return bool({int, float} & set(parts)) or any(is_numeric(part) for part in inside if part is not Ellipsis)
