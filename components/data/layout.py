"""How conversations whose sequences only begin alike are laid out."""

from __future__ import annotations

from typing import Literal

Layout = Literal["trees", "separate"]  # one pass over all that they share, or a row for each sequence
