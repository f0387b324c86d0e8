"""What a Ray Train worker of a slot runs: it takes command after command, and keeps the base model all the while."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ray
import ray.train.torch
import torch
import torch.distributed as dist

from components.cluster.ray_session import this_node
from components.cluster.slots.command_board import Answer, Command, Resume
from components.cluster.slots.context import SearchContext
from components.cluster.slots.preemption import Interruptions
from components.cluster.slots.resume import furthest_whole
from components.data.prepare import PreparedDataset
from components.experiment.base_variants import base_variants
from components.experiment.spec import TrialSpec, WorkersSpec
from components.records.events import Extension, Interim
from components.storage.open import folder_at
from components.training.checkpoint_names import reported_step
from components.training.trainer import TrainingData
from components.training.trial_runner import Session
from components.training.workers import OneWorker, TorchWorkers, UnfitWorkersError, Workers


def serve_commands(config: dict[str, Any]) -> None:
    """The train loop of a slot. config: context (SearchContext), board (actor handle), slot (str), workers (WorkersSpec)."""
    board, slot = config["board"], config["slot"]
    first = ray.train.get_context().get_world_rank() == 0
    # Before anything can fail, so that the board knows of every group that was tried.
    resume = ray.get(board.attach.remote(slot)) if first else None
    try:
        workers = workers_of_this_run(config["workers"])
        session = _ready(config["context"], config["workers"], workers, _from_first(resume, workers))
    except Exception as error:
        ray.get(board.complain.remote(slot, f"{type(error).__name__}: {error}"))
        raise
    interruptions = Interruptions(board, slot, first=first)
    answer: Answer | None = None
    while True:
        command = _from_first(ray.get(board.next.remote(slot, answer)) if first else None, workers)
        if command.kind == "exit":
            session.settle()
            if first:
                ray.get(board.next.remote(slot, Answer(number=command.number)))
            return
        answer = None if command.kind == "wait" else _obey(command, session, workers, interruptions, board, slot)


def workers_of_this_run(spec: WorkersSpec) -> Workers:
    """The Ray Train run this process is a worker of, as the training loop wants to know it."""
    torch.set_num_threads(max(1, int(spec.cpus_per_worker)))
    device = ray.train.torch.get_device() if spec.gpus_per_worker else torch.device("cpu")
    if spec.gpus_per_worker and device.type != "cuda":
        raise RuntimeError("gpus_per_worker is above 0, but torch sees no CUDA device here: is its build the CPU's?")
    if device.type == "cuda":
        torch.cuda.set_device(device)  # FSDP and NCCL go by the current one
    if ray.train.get_context().get_world_size() == 1 and spec.parallel == "ddp":
        return OneWorker(device)
    return TorchWorkers(device, parallel=spec.parallel, cpu_offload=spec.cpu_offload)


def session_of(context: SearchContext, workers: Workers) -> Session:
    data = TrainingData(
        dataset=PreparedDataset.open(context.prepared),
        max_tokens=context.experiment.data.max_tokens,
        pad_token_id=context.pad_token_id,
    )
    return Session(context.experiment.model, data, workers, context.base, context.checkpoints)


def _from_first(value: Any, workers: Workers) -> Any:
    """The first worker's value, on every worker."""
    if workers.count == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def _ready(context: SearchContext, spec: WorkersSpec, workers: Workers, resume: Resume) -> Session:
    """A session with its base model; where this group replaces one that died, at the trial's last known checkpoint."""
    session = session_of(context, workers)
    kinds = base_variants(context.experiment, spec)
    if len(kinds) == 1:  # else the first trial says which one it wants
        session.warm_up(*kinds)
    if resume.start is not None:
        _start(session, resume.start)
        if resume.checkpoint is not None:
            _go_on(session, resume.checkpoint, workers, resume.extensions)
    return session


def _go_on(session: Session, checkpoint: str, workers: Workers, extensions: Sequence[Extension]) -> None:
    """From a checkpoint, or, where that has not arrived, from one before it and again up to its report."""
    wanted = folder_at(checkpoint)
    place = _from_first(furthest_whole(wanted) if workers.worker_rank == 0 else None, workers)
    if place is not None:
        session.load(place)
    session.catch_up(reported_step(wanted.name), extensions)


def _obey(
    command: Command, session: Session, workers: Workers, interruptions: Interruptions, board: Any, slot: str
) -> Answer:
    """Does what the command says. A trial's own fault becomes an answer; anything else ends this worker group.

    ValueError is ours: a spec that cannot be, the same on every worker, which therefore stay in step. Any other error may
    have hit this worker alone, so with several of them the group must restart; a broken collective means that a *peer*
    died, and that is nobody's fault here.
    """
    try:
        return _do(command, session, workers, interruptions)
    except dist.DistError:
        raise
    except ValueError as error:
        unfit = isinstance(error, UnfitWorkersError)
        return Answer(number=command.number, error=str(error), ends_search=unfit)
    except (RuntimeError, OSError, ArithmeticError, LookupError, TypeError, AttributeError, AssertionError) as error:
        if _is_broken_collective(error):
            raise
        reason = f"{type(error).__name__}: {error}"
        if workers.count == 1 and not isinstance(error, torch.OutOfMemoryError):
            return Answer(number=command.number, error=reason)
        ray.get(board.blame.remote(slot, command.number, reason))
        raise


def _do(command: Command, session: Session, workers: Workers, interruptions: Interruptions) -> Answer:
    match command.kind:
        case "start":
            _start(session, command)
        case "load":
            assert command.checkpoint is not None
            _go_on(session, command.checkpoint, workers, command.extensions)
        case "advance":
            ended = lambda: interruptions.ends(session.trial_id)  # noqa: E731
            reached = session.advance(interruptions, command.extensions, ended)
            if isinstance(reached, Interim):
                return Answer(number=command.number, leave=interruptions.reason, interim=reached.checkpoint)
            return Answer(number=command.number, progress=reached.model_dump(mode="json"), node=this_node())
    return Answer(number=command.number)


def _start(session: Session, command: Command) -> None:
    warm_from = None if command.warm_from is None else folder_at(command.warm_from)
    session.start(command.trial_id, TrialSpec.model_validate(command.spec), warm_from)


def _is_broken_collective(error: BaseException) -> bool:
    """gloo reports a dead peer as a bare RuntimeError; only its text tells."""
    return any(word in str(error) for word in ("gloo", "NCCL", "Connection closed by peer", "Connection reset"))
