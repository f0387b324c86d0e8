"""What a verification is asked and what it finds: plain records, which travel as JSON between processes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from components.registry.probes import Probe
from components.storage.folder import Folder

OUT_OF_MEMORY = 12  # exit status of a process whose allocator says so; the kernel says it by SIGKILL
Phase = Literal["candidate", "base", "incumbent"]
ABOUT_INCUMBENT = (  # fields of VerificationReport
    *("incumbent_sums", "incumbent_problem", "incumbent_unseen"),
    *("incumbent_by_bytes", "incumbent_note"),
)


@dataclass(frozen=True, kw_only=True)
class VerificationSettings:
    """How a search verifies its candidate.

    `prepared` is the folder of the search's prepared data, whose eval split is scored. `rows_per_batch` is the trial's, so
    that sums are alike. `timeout_seconds` is for each of candidate, base and incumbent.
    """

    prepared: Folder
    max_tokens: int
    rows_per_batch: int
    probes: tuple[Probe, ...]
    timeout_seconds: float = 1800.0


class VerificationRequest(BaseModel):
    """What one process is asked. `model` and `incumbent` are folders of downloaded versions.

    `digest` is that of the candidate's chat format, which the incumbent's is compared with. `context` is that of the
    prepared data. `scores_thoughts`: whether reasoning is scored in it.
    """

    model_config = ConfigDict(frozen=True)

    phase: Phase = "candidate"
    model: Path
    incumbent: Path | None
    digest: str = ""
    eval_store: Path
    max_tokens: int
    context: int | None = None
    scores_thoughts: bool = True
    rows_per_batch: int
    probes: tuple[Probe, ...]
    max_new_tokens: int = 64


class PhaseResult(BaseModel):
    """What one process found. The fields of VerificationReport that are not of its phase are absent.

    A candidate whose adapter can be switched off is scored as its base too, in the same phase: the base needs no process.
    """

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="constants")

    code: Path
    digest: str = ""
    scores_thoughts: bool = True
    reply: str = ""
    candidate_sums: tuple[float, ...] = ()
    base_sums: tuple[float, ...] | None = None
    incumbent_sums: tuple[float, ...] | None = None
    incumbent_problem: str | None = None
    incumbent_unseen: tuple[int, ...] | None = None
    incumbent_by_bytes: tuple[int, ...] | None = None
    incumbent_note: str | None = None
    num_targets: tuple[int, ...] = ()
    target_bytes: tuple[int, ...] = ()
    parameters: int = 0
    weight_bytes: int = 0
    candidate_answers: tuple[str, ...] = ()
    base_answers: tuple[str, ...] = ()


class VerificationReport(BaseModel):
    """Loss sums are nats per conversation of the eval split, in order.

    `incumbent_sums` is None if there is no incumbent, or it cannot be compared; then `incumbent_problem` says why.
    `incumbent_unseen` are the conversations that the incumbent was not trained on, None if the version does not say.
    `incumbent_by_bytes`: its chat format gives other tokens, so it is compared in bits per byte, on these conversations;
    `incumbent_note` counts the others. None if it is compared by targets. `target_bytes` are empty in earlier reports.
    `parameters` are the candidate's, its adapter included, and `weight_bytes` what they take in memory where it is served.
    `code` is the folder of the code that ran, `digest` that of the candidate's chat format, and
    `scores_thoughts` whether that one scores reasoning.
    """

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="constants")

    code: Path
    digest: str = ""
    scores_thoughts: bool = True
    reply: str
    candidate_sums: tuple[float, ...]
    base_sums: tuple[float, ...]
    incumbent_sums: tuple[float, ...] | None
    incumbent_problem: str | None
    incumbent_unseen: tuple[int, ...] | None = None
    incumbent_by_bytes: tuple[int, ...] | None = None
    incumbent_note: str | None = None
    num_targets: tuple[int, ...]
    target_bytes: tuple[int, ...] = ()
    parameters: int = 0
    weight_bytes: int = 0
    candidate_answers: tuple[str, ...]
    base_answers: tuple[str, ...]

    @property
    def candidate_loss(self) -> float:
        """Nats per target over the whole eval split."""
        return sum(self.candidate_sums) / sum(self.num_targets)
