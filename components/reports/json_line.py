"""Results as JSON that every reader takes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping


def json_line(result: object) -> str:
    """JSON on one line. Numbers that are not finite become null: JSON has none."""
    return json.dumps(_finite(result), ensure_ascii=False, allow_nan=False)


def _finite(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
