"""The proof of a full winner: each of its phases has a process of its own, which holds one model."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from transformers import LlamaConfig

from components.planning.dry_run import MicroBatch, dry_run_step
from components.planning.memory import WorkerGroup, verification_plan
from experiments.benchmarks.gpu_kit.cases import release_memory, run_cases
from experiments.benchmarks.gpu_kit.checks import Check, passed_if, skipped
from experiments.benchmarks.gpu_kit.meters import in_gb, used_on_card
from experiments.benchmarks.gpu_kit.proof_memory import PhasePeaks, Watch, processes_on
from experiments.benchmarks.gpu_kit.settings import Settings

if TYPE_CHECKING:  # MLflow may not be here
    from components.registry.verification_messages import Phase, PhaseResult
    from experiments.benchmarks.gpu_kit.proof_winner import Winner

MODELS = 1.1  # one, and what it computes with
TINY_MODELS = 1.2  # the same of a small model, beside which two processes' libraries differ by some ten MB
OF_PLAN = 0.10  # beside what the plan says of a proof, without the process
APART = 1e-3  # two phases' scores of equal weights, as a share: a GPU may choose other kernels the second time
NEW_TOKENS = 4
PHASES: tuple[Phase, ...] = ("candidate", "base")
SECONDS = 25.0  # that a GPU takes for the winner and two phases at most


def run(settings: Settings) -> Iterator[Check]:
    if importlib.util.find_spec("mlflow") is None:
        yield skipped("the proof of a full winner takes one model's memory", "no package mlflow")
        return
    seconds = 0.0 if settings.tiny else SECONDS
    yield from run_cases([("the proof of a full winner", _Proof(settings).checks, seconds)], settings)


def config_of_winner(settings: Settings) -> LlamaConfig:
    """Layers of Llama-2-7B at half its width; or small ones, but so many that the model is most of its process."""
    sizes = (
        {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 6, "num_attention_heads": 16}
        if settings.tiny
        else {"hidden_size": 2048, "intermediate_size": 5504, "num_hidden_layers": 8, "num_attention_heads": 16}
    )
    return _llama(vocab_size=512 if settings.tiny else 8192, **sizes)


def config_of_nothing() -> LlamaConfig:
    """A model of almost no memory: what a phase of it takes, is the process's own."""
    return _llama(vocab_size=512, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4)


class _Proof:
    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def checks(self) -> Iterator[Check]:
        from experiments.benchmarks.gpu_kit.proof_winner import make_winner

        winner = make_winner(config_of_winner(self.settings), self.settings.scratch / "winner", self.settings)
        nothing = make_winner(config_of_nothing(), self.settings.scratch / "nothing", self.settings)
        release_memory()
        if self.settings.on_gpu:
            used_on_card()  # this process's own context, which no phase may be charged for
        # Side by side on a CPU, where each process is looked at alone; all that is known of a card is its sum.
        with processes_on(self.settings.device_name), ThreadPoolExecutor(1 if self.settings.on_gpu else 2) as pool:
            results = {}
            for phase in PHASES:
                alone = pool.submit(self.phase, nothing, phase)
                results[phase], peaks = pool.submit(self.phase, winner, phase).result()
                yield from self.compare(phase, winner, peaks, alone.result()[1])
        yield check_scores(results["candidate"].candidate_sums, results["base"].base_sums or ())

    def phase(self, winner: Winner, phase: Phase) -> tuple[PhaseResult, PhasePeaks]:
        """Runs a phase as the product does."""
        from components.registry.own_code import CODE
        from components.registry.verification_launcher import run_phase
        from components.registry.verification_messages import VerificationRequest
        from experiments.benchmarks.gpu_kit.proof_winner import TOKENS

        request = VerificationRequest(
            phase=phase,
            model=winner.version,
            incumbent=None,
            judged_store=winner.judged_store,
            max_tokens=TOKENS,
            rows_per_batch=1,
            probes=(),
            max_new_tokens=NEW_TOKENS,
        )
        with Watch(winner.version / CODE, on_gpu=self.settings.on_gpu) as watch:
            result = run_phase(request, timeout_seconds=max(60.0, self.settings.seconds_left()))
        return result, watch.peaks

    def compare(self, phase: Phase, winner: Winner, peaks: PhasePeaks, constant: PhasePeaks) -> Iterator[Check]:
        """
        Args:
            constant: of the same phase of a model of almost no memory.
        """
        of_model = peaks.of_model - constant.of_model
        models, planned = of_model / winner.weight_bytes, self.planned(winner)
        most_models = TINY_MODELS if self.settings.tiny else MODELS
        where = "of the card" if self.settings.on_gpu else "resident"
        yield passed_if(
            models <= most_models,
            f"the phase {phase} takes at most {most_models} models of {in_gb(winner.weight_bytes)}",
            f"{models:.2f}: {in_gb(peaks.of_model)} {where} at its peak, and {in_gb(constant.of_model)} for a model of almost"
            f" nothing; allocated in CPU memory {in_gb(peaks.anonymous)} and {in_gb(constant.anonymous)}",
            models=models,
            peak_bytes=peaks.of_model,
            constant_bytes=constant.of_model,
            anonymous_bytes=peaks.anonymous,
        )
        # On a CPU the import of libraries may have had the process's peak, which hides a part of the model's.
        least = 1 - OF_PLAN
        most = 1 + OF_PLAN if self.settings.on_gpu else float("inf")
        yield passed_if(
            least <= planned / of_model <= most,
            f"the phase {phase} takes no more than the plan says of a proof beside its process, within {OF_PLAN:.0%}"
            + (", and no less" if self.settings.on_gpu else ""),
            f"planned {in_gb(planned)}, taken {in_gb(of_model)}: {planned / of_model - 1:+.1%}",
            planned_bytes=planned,
            taken_bytes=of_model,
        )

    def planned(self, winner: Winner) -> int:
        """What plan.py says of the proof, without its constant for the process."""
        from experiments.benchmarks.gpu_kit.proof_winner import SPEC, TOKENS

        batch = MicroBatch(rows=1, tokens=TOKENS, targets=TOKENS // 2)
        dry_run = dry_run_step(winner.config, winner.model, SPEC, batch)
        group = WorkerGroup(on_gpu=self.settings.on_gpu)
        proof = verification_plan(dry_run, group, base_bytes=winner.weight_bytes)
        return proof.total - proof.parts["process"]


def check_scores(candidate: tuple[float, ...], base: tuple[float, ...]) -> Check:
    apart = max((abs(one / other - 1) for one, other in zip(candidate, base, strict=True)), default=float("inf"))
    return passed_if(
        apart <= APART,
        f"a winner with its base's weights scores what the base scores, within {APART:.1%}",
        f"{len(base)} conversations, at most {apart:.1e} apart",
        apart=apart,
    )


def _llama(**sizes: int) -> LlamaConfig:
    return LlamaConfig(max_position_embeddings=512, pad_token_id=0, bos_token_id=None, eos_token_id=3, **sizes)
