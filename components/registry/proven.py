"""The tag that says a version was proven: what was seen of it, and when. No alias is given by this house without it."""

from __future__ import annotations

from components.registry.alias_moves import now_in_words
from components.registry.verification_messages import VerificationReport

PROVEN_TAG = "turnwise.proven"


def proven_in_full(report: VerificationReport, trained_loss: float) -> str:
    """What a whole verification has shown."""
    return _dated(
        "loads through MLflow in a fresh process, answers, and scores the eval loss of training: "
        f"{report.eval_loss:.4f}, there {trained_loss:.4f}"
    )


def proven_in_part(missing: str) -> str:
    """What is shown where the data of the search are not to be found. `missing`: the reason."""
    return _dated(f"loads through MLflow in a fresh process, and answers; its eval loss was not measured: {missing}")


def _dated(text: str) -> str:
    return f"{now_in_words()}: {text}"
