"""What a verification is asked and what it finds: plain records, which travel as JSON between processes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from components.records.evaluation_record import ConversationScores
from components.records.general_scores import GeneralScores
from components.records.loss_views import LossViews
from components.registry.probes import Probe
from components.scoring.generation_plan import GenerationPlan
from components.storage.folder import Folder

OUT_OF_MEMORY = 12  # exit status of a process whose allocator says so; the kernel says it by SIGKILL
Phase = Literal["candidate", "base", "incumbent"]
ABOUT_INCUMBENT = (  # fields of VerificationReport
    "incumbent_sums",
    "incumbent_problem",
    "incumbent_unseen",
    "incumbent_by_bytes",
    "incumbent_note",
    "incumbent_general",
    "incumbent_said",
    "incumbent_replies",
    "incumbent_answers",
)
ABOUT_BASE = (
    "base_sums",
    "base_answers",
    "base_views",
    "base_general",
    "base_said",
    "base_replies",
)  # fields of the same


@dataclass(frozen=True, kw_only=True)
class VerificationSettings:
    """How a search verifies its candidate.

    `prepared` is the folder of the search's prepared data, whose held-out splits are scored. `rows_per_batch` is the
    trial's, so that sums are alike. `timeout_seconds` is for each of candidate, base and incumbent. `general` are texts that
    show what was forgotten. `generation` is what the gate judges or guards by in what the models say. If answers are to be
    `judged`, `more_questions` are asked after the probes.
    """

    prepared: Folder
    max_tokens: int
    rows_per_batch: int
    probes: tuple[Probe, ...]
    timeout_seconds: float = 1800.0
    general: tuple[str, ...] = ()
    generation: GenerationPlan | None = None
    more_questions: tuple[Probe, ...] = ()
    judged: bool = False


class VerificationRequest(BaseModel):
    """What one process is asked. `model` and `incumbent` are folders of downloaded versions.

    All three models are scored on `judged_store`: the verdict split, or eval where there is none. `eval_store` is scored by
    the candidate too, as it was in training; None where it is the one that judges.
    `digest` is that of the candidate's chat format, which the incumbent's is compared with. `context` is that of the
    prepared data. `scores_thoughts`: whether reasoning is scored in it.
    """

    model_config = ConfigDict(frozen=True)

    phase: Phase = "candidate"
    model: Path
    incumbent: Path | None
    digest: str = ""
    judged_store: Path
    eval_store: Path | None = None
    max_tokens: int
    context: int | None = None
    scores_thoughts: bool = True
    rows_per_batch: int
    probes: tuple[Probe, ...]
    max_new_tokens: int = 64
    general: tuple[str, ...] = ()
    generation: GenerationPlan | None = None
    more_questions: tuple[Probe, ...] = ()
    judged: bool = False


class _Findings(BaseModel):
    """What both a phase and the whole report may have; VerificationReport has the meanings."""

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="constants")

    code: Path
    digest: str = ""
    scores_thoughts: bool = True
    incumbent_unseen: tuple[int, ...] | None = None
    incumbent_by_bytes: tuple[int, ...] | None = None
    incumbent_note: str | None = None
    target_bytes: tuple[int, ...] = ()
    parameters: int = 0
    weight_bytes: int = 0
    eval_sums: tuple[float, ...] = ()
    eval_targets: tuple[int, ...] = ()
    candidate_views: LossViews | None = None
    base_views: LossViews | None = None
    candidate_general: GeneralScores | None = None
    base_general: GeneralScores | None = None
    incumbent_general: GeneralScores | None = None
    candidate_said: tuple[str, ...] = ()
    base_said: tuple[str, ...] = ()
    candidate_replies: dict[str, ConversationScores] = {}
    base_replies: dict[str, ConversationScores] = {}
    incumbent_replies: dict[str, ConversationScores] | None = None
    incumbent_answers: tuple[str, ...] | None = None
    incumbent_said: tuple[str, ...] | None = None


class PhaseResult(_Findings):
    """What one process found. The fields of VerificationReport that are not of its phase are absent.

    A candidate whose adapter can be switched off is scored as its base too, in the same phase: the base needs no process.
    """

    reply: str = ""
    candidate_sums: tuple[float, ...] = ()
    base_sums: tuple[float, ...] | None = None
    incumbent_sums: tuple[float, ...] | None = None
    incumbent_problem: str | None = None
    num_targets: tuple[int, ...] = ()
    candidate_answers: tuple[str, ...] = ()
    base_answers: tuple[str, ...] = ()


class VerificationReport(_Findings):
    """Loss sums are nats per conversation of the split that judges, in order: the verdict split, or eval without one.

    `eval_sums` and `eval_targets` are the candidate's on eval, for its loss in training was found there; empty where eval
    judges, and the other fields have them.

    `incumbent_sums` is None if there is no incumbent, or it cannot be compared; then `incumbent_problem` says why.
    `incumbent_unseen` are the conversations that the incumbent was not trained on, None if the version does not say.
    `incumbent_by_bytes`: its chat format gives other tokens, so it is compared in bits per byte, on these conversations;
    `incumbent_note` counts the others. None if it is compared by targets. `target_bytes` are empty in earlier reports.
    `code` is the folder of the code that ran, `digest` that of the candidate's chat format; `scores_thoughts`: whether that
    one scores reasoning. `parameters` are the candidate's, its adapter included, and `weight_bytes` what they take in memory
    where it is served. `..._general` are losses on general text, None where they were not asked for. `..._said` are answers
    to the probes and to `more_questions`, none where no judge is asked. `..._replies` are the scores of what is said on the
    split that judges (or to probes), by name.
    """

    reply: str
    candidate_sums: tuple[float, ...]
    base_sums: tuple[float, ...]
    incumbent_sums: tuple[float, ...] | None
    incumbent_problem: str | None
    num_targets: tuple[int, ...]
    candidate_answers: tuple[str, ...]
    base_answers: tuple[str, ...]

    @property
    def eval_loss(self) -> float:
        """The candidate's, in nats per target over the whole eval split."""
        return sum(self.eval_sums or self.candidate_sums) / self.num_eval_targets

    @property
    def num_eval_targets(self) -> int:
        return sum(self.eval_targets or self.num_targets)
