"""What follows from the deaths of worker groups for their trial, by evidence. The board is plain asyncio, without Ray."""

import asyncio
import errno
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from components.cluster.slots.death_witness import evidence_in
from components.cluster.slots.deaths import MAX_DEATHS, MAX_STRIKES, Evidence
from components.cluster.slots.known_trials import KnownTrials
from components.cluster.slots.oom_kills import oom_kills
from components.cluster.slots.protocol import Advance, Witness
from components.cluster.slots.slot_result import SlotResult
from components.experiment.spec import BatchSpec
from components.records.events import TrialProgressed, replay
from components.training.out_of_memory import RowsExceedMemory, is_out_of_memory
from tests.support.board import Board, answered, asked, done, reports, restarted, start
from tests.support.records import progress
from tests.support.records import started as trial_started

MEMORY = Evidence(reason="OutOfMemoryError: CUDA out of memory", out_of_memory=True)
OWN = Evidence(reason="FileNotFoundError: no such model")
SIX_ROWS = {"batch": BatchSpec(rows_per_step=6, rows_per_micro_batch=6)}


def run(scenario):
    return asyncio.run(asyncio.wait_for(scenario, timeout=30.0))


async def begun(known=None):
    """A board on which a trial with micro-batches of 6 rows has begun."""
    board = Board(known)
    await board.register_worker_group("slot")
    await answered(board, start("t", **SIX_ROWS), done)
    return board


def outcome_of(deaths, known=None):
    """What a trial with micro-batches of 6 rows comes to whose groups die so on the way to its first report.

    Each death is its evidence, or a step of the board's: (answers, rows of each new group).
    """

    async def scenario():
        board = await begun(known)
        call, rows = await asked(board, Advance()), []
        for evidence in deaths:
            await board.next_command("slot", None) if not call.done() else None
            resume = await restarted(board, evidence)
            rows.append(resume.start and resume.start.max_rows)
        await asyncio.sleep(0)
        answer = call.result() if call.done() else None
        call.cancel()
        return answer, rows

    return run(scenario())


def test_a_trial_out_of_memory_computes_half_the_rows_at_once_down_to_one():
    answer, rows = outcome_of([MEMORY, MEMORY, MEMORY])
    assert rows == [3, 1, None]
    assert answer.reason.startswith("out of memory with one row at a time: OutOfMemoryError: CUDA out of memory; set ")
    assert not answer.lost


def test_running_out_of_memory_is_no_strike_however_many_workers_say_so():
    async def scenario():
        board = await begun()
        call = await asked(board, Advance())
        for evidence in (OWN,) * MAX_STRIKES:
            await restarted(board, evidence)
        for _ in range(2):
            await board.testify("slot", MEMORY, number=2)
        await board.note_death("slot", MEMORY)
        resume = await restarted(board)
        still = not call.done()
        call.cancel()
        return still, resume.start.max_rows

    assert run(scenario()) == (True, 3)


def test_an_error_of_a_command_that_has_been_answered_is_no_evidence():
    async def scenario():
        board = await begun()
        await answered(board, Advance(), reports(1, 10))
        await board.testify("slot", MEMORY, number=2)
        return (await restarted(board)).start.max_rows

    assert run(scenario()) is None


def test_what_fits_is_kept_for_the_trial_in_another_slot_and_for_another_board():
    async def scenario(board):
        board.number = 0
        call = await asked(board, start("t", **SIX_ROWS))
        command = await board.next_command("slot", None)
        call.cancel()
        return command.max_rows

    reported = progress(3, 1.0, checkpoint="x", max_rows=3)
    told = TrialProgressed(trial_id="t", progress=reported, slot="s", time=3.0)
    known = KnownTrials.of(replay([trial_started("t"), told]))
    assert known.max_rows == {"t": 3}
    assert run(scenario(Board(known))) == 3
    assert KnownTrials(max_rows={"t": 6}).updated(known).max_rows == {"t": 3}
    assert outcome_of([MEMORY], known)[1] == [1]


def test_memory_that_runs_out_while_a_trial_is_started_is_not_mended_by_fewer_rows():
    async def scenario():
        board = Board()
        await board.register_worker_group("slot")
        call = await asked(board, start("t", **SIX_ROWS))
        for _ in range(MAX_STRIKES + 1):
            await restarted(board, MEMORY)
        return await call

    assert run(scenario()).reason.endswith("the last time: OutOfMemoryError: CUDA out of memory")


def test_deaths_from_outside_are_no_strikes_but_not_endless():
    answer, _ = outcome_of([None] * MAX_DEATHS)
    assert answer is None
    answer, _ = outcome_of([None] * (MAX_DEATHS + 1))
    assert answer.lost
    assert answer.reason.startswith("its workers died 9 times without a new report")
    assert not SlotResult(slot="s", failure=answer.reason, lost=True).is_impossible
    assert SlotResult(slot="s", failure="its own").is_impossible


def test_deaths_count_from_the_last_report_and_strikes_from_the_last_answer():
    async def scenario():
        board = await begun()
        for step in range(1, 4):
            call = await asked(board, Advance())
            for evidence in (OWN, OWN, *[None] * (MAX_DEATHS - 2)):
                await restarted(board, evidence)
            command = await board.next_command("slot", None)
            waiting = asyncio.ensure_future(board.next_command("slot", reports(step, 10 * step)(command)))
            answer = await call
            waiting.cancel()
        return answer

    assert run(scenario()).progress.step == 3


def test_a_count_of_kills_by_the_kernel_that_has_risen_is_evidence_on_that_node_only():
    async def scenario(counts):
        board = Board()
        await board.register_worker_group("slot")
        await board.bear_witness("slot", Witness(worker=None, node="here", oom_kills=1))
        await board.take_over("slot")
        await answered(board, start("t", **SIX_ROWS), done)
        await board.register_worker_group("slot")
        for node, count in counts:
            await board.bear_witness("slot", Witness(worker=None, node=node, oom_kills=count))
        return (await board.take_over("slot")).start.max_rows

    assert run(scenario([("here", 2)])) == 3
    assert run(scenario([("here", 1), ("there", 5)])) is None
    assert run(scenario([("here", None)])) is None


def test_what_ended_a_process_by_its_own_fault_is_a_strike_with_the_place():
    fault = Witness(worker=None, node="here", faults=["Segmentation fault in score (tone.py, line 3)"])

    async def scenario():
        board = await begun()
        call = await asked(board, Advance())
        for _ in range(MAX_STRIKES + 1):
            await board.register_worker_group("slot")
            await board.bear_witness("slot", fault)
            await board.take_over("slot")
        return await call

    assert run(scenario()).reason.endswith("the last time: Segmentation fault in score (tone.py, line 3)")


def test_a_group_that_dies_before_it_takes_over_is_counted_once():
    async def scenario():
        board = await begun()
        call = await asked(board, Advance())
        for _ in range(MAX_DEATHS):
            await board.register_worker_group("slot")
        await board.take_over("slot")
        enough = call.done()
        await restarted(board)
        return enough, await call

    enough, answer = run(scenario())
    assert not enough
    assert answer.lost


def test_ray_s_memory_monitor_is_known_by_its_words_and_other_deaths_are_not():
    killed = (
        "6 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 10.0.0.1) was 6.8GB"
    )
    assert evidence_in([RuntimeError("gone"), RuntimeError(f"A worker health check failed.\n{killed}")]).out_of_memory
    assert evidence_in([RuntimeError("The actor died unexpectedly before finishing this task."), None]) is None


V1 = "9:name=systemd:/\n4:cpu,memory:/pod/one\n0::/unused\n"
V2 = "0::/pod/one\n"


@pytest.mark.parametrize(
    ("own", "file", "text", "count"),
    [
        (V2, "pod/one/memory.events", "low 0\noom 4\noom_kill 3\noom_group_kill 7\n", 3),
        (V2, "memory.events", "oom 4\noom_kill 3\n", 3),  # in a container that sees its own group at the top
        (V1, "memory/pod/one/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n", 2),
        (V1, "memory/memory.oom_control", "oom_kill_disable 0\noom_kill 2\n", 2),
        (V2, "pod/one/memory.events", "low 0\n", None),
        (V2, "pod/one/other", "oom_kill 3\n", None),
        ("odd\n", "memory.events", "oom_kill 3\n", None),
    ],
)
def test_the_kernels_count_is_read_in_both_versions_of_control_groups(tmp_path, own, file, text, count):
    (tmp_path / "own").write_text(own)
    (tmp_path / "groups" / file).parent.mkdir(parents=True)
    (tmp_path / "groups" / file).write_text(text)
    assert oom_kills(tmp_path / "own", tmp_path / "groups") == count


CHILD = """
import json, subprocess, sys
from components.cluster.slots.oom_kills import oom_kills
open(sys.argv[1], "w").write("0")  # this process joins the group
before = oom_kills()
eater = subprocess.run([sys.executable, "-c", "held = [bytes([1]) * 2**20 for _ in range(400)]"])
print(json.dumps([before, eater.returncode, oom_kills()]))
"""


def test_a_process_that_the_kernel_kills_for_memory_is_counted(tmp_path):
    """In a real control group of this test's own, with 100 MiB."""
    group, limit = _new_group()
    try:
        limit.write_text(str(100 * 2**20))
        child = subprocess.run(
            [sys.executable, "-c", CHILD, str(group / "cgroup.procs")], capture_output=True, text=True, timeout=60
        )
    finally:
        group.rmdir()
    before, status, after = json.loads(child.stdout)
    assert (status, after - before) == (-9, 1)


def _new_group():
    """A new control group and its memory limit's file, below this process's own."""
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    paths = {names: path.lstrip("/") for _, names, path in (line.split(":", 2) for line in lines)}
    for place, name in (
        (Path("/sys/fs/cgroup") / paths.get("", ""), "memory.max"),
        (Path("/sys/fs/cgroup/memory") / paths.get("memory", ""), "memory.limit_in_bytes"),
    ):
        group = place / f"turnwise-test-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        if (group / name).exists() and os.access(group / name, os.W_OK):
            return group, group / name
        group.rmdir()
    pytest.skip("no control group of its own can be made here: it takes root, and a writable /sys/fs/cgroup")


def test_memory_that_runs_out_is_told_from_other_errors_by_real_ones():
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (2**36, hard))
    try:
        for allocate in (lambda: bytearray(2**40), lambda: torch.empty(2**40)):
            with pytest.raises((MemoryError, RuntimeError)) as caught:
                allocate()
            assert is_out_of_memory(caught.value)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(OSError(errno.ENOMEM, "Cannot allocate memory"))
    for other in (OSError(errno.ENOSPC, "full"), RuntimeError("mat1 and mat2"), RowsExceedMemory("x")):
        assert not is_out_of_memory(other)
