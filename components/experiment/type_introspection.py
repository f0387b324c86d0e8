"""What the annotation of a field allows: the types in spec/ decide how files and search spaces are read."""

from __future__ import annotations

import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel


def members(annotation: Any) -> tuple[Any, ...]:
    """Returns the members of a union, or the annotation itself; Annotated is stripped."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return members(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return tuple(member for part in get_args(annotation) for member in members(part))
    return (annotation,)


def sections(annotation: Any) -> tuple[type[BaseModel], ...]:
    """Returns the models among the members: several for a tagged union, none for a plain value."""
    return tuple(each for each in members(annotation) if isinstance(each, type) and issubclass(each, BaseModel))


def options(annotation: Any) -> tuple[Any, ...]:
    """Returns the values of the literals among the members."""
    return tuple(value for each in members(annotation) if get_origin(each) is Literal for value in get_args(each))


def is_numeric(annotation: Any) -> bool:
    """Whether the field accepts numbers but no booleans, also inside a tuple."""
    parts = members(annotation)
    if bool in parts:
        return False
    inside = (part for each in parts if get_origin(each) is tuple for part in get_args(each))
    return bool({int, float} & set(parts)) or any(is_numeric(part) for part in inside if part is not Ellipsis)
