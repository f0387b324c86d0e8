"""Workers that wait for one another sleep, wait for as long as it takes, and learn at once of one that dies."""

import os
import signal
import time

import pytest
import torch
import torch.distributed as dist

from components.cluster.private_session import interface_with
from components.cluster.slots.worker import _is_broken_collective
from components.training.workers import OneWorker, TorchWorkers
from tests.support.processes import run_together
from tests.support.sessions import FULL, curve, reports, session

IDLE_SECONDS, DEFAULT_TIMEOUT = 4.0, 2.0
CPU = torch.device("cpu")
MESSAGES = ("all_reduce", "barrier", "broadcast", "broadcast_object_list")


class Polling(TorchWorkers):
    """Waits as a kernel of NCCL does: awake."""

    def from_first(self, value):
        box = torch.tensor([float(value or 0)])
        waiting = dist.broadcast(box, src=0, group=self.control, async_op=True)
        while not waiting.is_completed():
            pass
        return float(box)


class OnTheDefaultGroup(TorchWorkers):
    """Waits in the group of the gradients."""

    def __init__(self, device):
        super().__init__(device)
        self.control = dist.group.WORLD


def wait_for_the_first(rank, kinds):
    """By kind of workers: what arrived and the share of a core that the waiting took, or the error."""
    return {kind.__name__: _wait_for_the_first(rank, kind(CPU)) for kind in kinds}


def _wait_for_the_first(rank, workers):
    TorchWorkers.barrier(workers)
    if rank == 0:
        time.sleep(IDLE_SECONDS)
        return workers.from_first(7.0)
    began, used = time.perf_counter(), time.process_time()
    try:
        value = workers.from_first(None)
    except RuntimeError as error:
        return str(error)
    return value, (time.process_time() - used) / (time.perf_counter() - began)


def test_a_waiting_worker_sleeps_and_outlasts_the_default_groups_timeout(tmp_path):
    kinds = (TorchWorkers, Polling, OnTheDefaultGroup)
    _, found = run_together(wait_for_the_first, kinds, folder=tmp_path, group_timeout=DEFAULT_TIMEOUT)
    value, share_of_a_core = found["TorchWorkers"]
    assert value == 7.0
    assert share_of_a_core < 0.2
    assert found["Polling"][1] > 2 * share_of_a_core  # what is measured is there, on a busy machine too
    assert "Timed out waiting 2000ms" in found["OnTheDefaultGroup"]


def lose_the_first(rank):
    """The first worker dies while the other one waits: of each wait (the error, whether it is known for what it is)."""
    workers = TorchWorkers(CPU)
    workers.barrier()
    if rank == 0:
        time.sleep(1.0)
        os.kill(os.getpid(), signal.SIGKILL)
    waits = (lambda: workers.from_first(None)), (lambda: workers.sum([1.0])), workers.barrier
    return [_error_of(wait) for wait in waits]


def _error_of(wait):
    try:
        wait()
    except RuntimeError as error:
        return str(error), _is_broken_collective(error)
    return "it waited for nobody", False


def test_a_worker_that_dies_ends_the_wait_of_the_others_at_once(tmp_path):
    dead, errors = run_together(lose_the_first, folder=tmp_path, seconds=60.0)
    assert dead is None
    assert len(errors) == 3
    assert [error for error, known in errors if not known] == []


def train_and_note(rank, toy, folder):
    """By `parallel`: the losses of a trial, and the groups over which its workers sent each other messages."""
    return {parallel: _train_and_note(toy, folder / parallel, parallel) for parallel in ("ddp", "fsdp")}


def _train_and_note(toy, folder, parallel):
    of, asked = session(toy, folder, workers := TorchWorkers(CPU, parallel=parallel)), set()
    with pytest.MonkeyPatch.context() as patch:
        for name in MESSAGES:
            patch.setattr(dist, name, _noting(name, workers, asked))
        losses = curve(reports(of, FULL))
        workers.from_first({"any": "thing"})
    return losses, asked


def _noting(name, workers, asked):
    call = getattr(dist, name)

    def noted(*arguments, **named):
        asked.add((name, "control" if named.get("group") is workers.control else "data"))
        return call(*arguments, **named)

    return noted


def test_messages_go_over_a_group_of_their_own_and_gradients_arrive(toy, tmp_path):
    first, second = run_together(train_and_note, toy, tmp_path / "runs", folder=tmp_path)
    alone = curve(reports(session(toy, tmp_path / "alone"), FULL))
    for parallel in ("ddp", "fsdp"):
        losses, asked = first[parallel]
        assert (losses, asked) == second[parallel]
        assert losses == pytest.approx(alone, abs=2e-5)
        assert asked == {(name, "control") for name in ("all_reduce", "barrier", "broadcast_object_list")}


def test_one_worker_of_a_group_has_itself_to_talk_to(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        workers = TorchWorkers(CPU, parallel="fsdp")
        workers.barrier()
        assert (workers.from_first("value"), workers.sum([0.25])) == ("value", [0.25])
    finally:
        dist.destroy_process_group()
    assert OneWorker().from_first("value") == "value"


def test_the_interface_of_an_address_is_found_and_no_other_address_has_one():
    assert interface_with("127.0.0.1") == "lo"
    assert interface_with("203.0.113.7") is None  # of the addresses that exist in documents only
