"""An incumbent whose chat format or tokenizer gives other tokens: both sides by bits and bytes, on what both can render."""

from __future__ import annotations

from dataclasses import replace

from components.conversations.target_bytes import to_bits
from components.registry.verification_messages import VerificationReport
from components.statistics.paired_bootstrap import BITS, Comparison
from components.statistics.selection import Selection


def in_comparable_units(report: VerificationReport) -> VerificationReport:
    """Returns the report for the comparison with the incumbent: unchanged if losses per target can be compared.

    Else it is about the conversations of `incumbent_by_bytes` only, its sums are bits, and bytes stand for targets.
    """
    chosen = report.incumbent_by_bytes
    if chosen is None or report.incumbent_sums is None:
        return report
    new = {
        name: tuple(to_bits(getattr(report, name)[index]) for index in chosen)
        for name in ("candidate_sums", "base_sums", "incumbent_sums")
    }
    unseen = report.incumbent_unseen
    places = None if unseen is None else tuple(place for place, index in enumerate(chosen) if index in unseen)
    num_bytes = tuple(report.target_bytes[index] for index in chosen)
    return report.model_copy(update={**new, "num_targets": num_bytes, "incumbent_unseen": places})


def all_in_bits(report: VerificationReport) -> VerificationReport:
    """Returns the report with candidate and base in bits, and bytes in place of targets, on all conversations."""
    new = {name: tuple(map(to_bits, getattr(report, name))) for name in ("candidate_sums", "base_sums")}
    return report.model_copy(update={**new, "num_targets": report.target_bytes})


def in_units_of(report: VerificationReport, selection: Selection | None, *, in_bits: bool = False) -> Selection | None:
    """Returns what the candidate was chosen from, in the units of in_comparable_units; `in_bits`: it is in bits already."""
    if selection is None or report.incumbent_by_bytes is None:
        return selection
    chosen = selection.on(report.incumbent_by_bytes)
    return chosen if in_bits else replace(chosen, sums_CN=chosen.sums_CN * to_bits(1.0))


def with_unit(comparison: Comparison, report: VerificationReport) -> Comparison:
    """Returns the comparison with the incumbent with what its numbers are, and with what was left out of it."""
    if report.incumbent_by_bytes is None:
        return comparison
    note = "; ".join(filter(None, [comparison.note, report.incumbent_note]))
    return comparison.model_copy(update={"unit": BITS, "note": note})
