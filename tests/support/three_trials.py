"""A search of three trials as its journal records it, written by hand: one completed, one stopped, one failed."""

from components.experiment.spec import FullMethod, LoraMethod, TrialSpec
from components.records.events import (
    Clone,
    TrialEnded,
    TrialInstructed,
    TrialProgressed,
)
from tests.support import records


def started(number, method, workers=1, **varied):
    fields = {"branch": method.kind, "spec": TrialSpec(method=method), "workers": workers, "varied": varied}
    return records.started(f"t{number}", number=number, time=0.0, **fields)


def progressed(number, tokens, loss, workers=1, checkpoint="somewhere"):
    seconds = {"seconds": tokens / 100, "workers": workers, "worker_seconds": workers * tokens / 100}
    fields = {"target_tokens": tokens, "train_loss": loss + 0.1, "eval_num_targets": 50, "tokens_per_second": 100.0}
    progress = records.progress(tokens // 10, loss, epoch=0.5, checkpoint=checkpoint, **seconds, **fields)
    return TrialProgressed(trial_id=f"t{number}", progress=progress, slot="s", time=1.0)


def ended(number, state, reason=""):
    return TrialEnded(trial_id=f"t{number}", state=state, reason=reason, time=2.0)


RECORDS = [
    started(1, LoraMethod(rank=8), **{"method.rank": 8, "optimizer.learning_rate": 0.00012345}),
    started(2, FullMethod(), workers=2, **{"optimizer.learning_rate": 0.5}),
    started(3, FullMethod(), workers=2),
    progressed(1, 500, 0.9),
    progressed(2, 500, 0.7, workers=2),
    progressed(1, 1000, 0.95),
    ended(1, "completed"),
    ended(2, "stopped", "the scheduler gave its place to others"),
    ended(3, "failed", "ValueError: impossible"),
]


def instructed(number, instruction, request_id):
    return TrialInstructed(
        trial_id=f"t{number}", instruction=instruction, request_id=request_id, by="ann@desk", time=3.0
    )


CLONE = Clone(
    trial_id="t4", number=4, branch="full", spec=TrialSpec(method=FullMethod()), varied={"seed": 1}, warm_from="a"
)
