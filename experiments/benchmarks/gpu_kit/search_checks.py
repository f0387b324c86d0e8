"""What a recorded search must show. Each check is arithmetic over the journal and over what was seen from outside."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from components.records.events import TrialHistory, TrialProgressed, TrialState, replay
from components.records.outcome import Outcome
from components.storage.size import GB
from experiments.benchmarks.gpu_kit.checks import Check, failed, passed_if, skipped
from experiments.benchmarks.gpu_kit.search_recording import Look, Recording
from experiments.benchmarks.slot_times import first_step_began, last_reports_by_slot

# A warm slot makes a trial's adapters and optimizer, in hundredths of a second; a cold one starts processes, imports torch
# and loads the model, in many seconds. A tenth tells one from the other on a busy machine, too.
WARM_SHARE = 0.1
# A CUDA context alone is more than this, and what a driver keeps for itself is less.
NOTHING_BYTES = 0.2 * GB


@dataclass(frozen=True, slots=True, kw_only=True)
class Tracked:
    """What MLflow has: the version that holds the alias, and the largest value of each system metric."""

    champion: str | None
    system_metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """Unix seconds from the last report of a trial to the first step of the next one in its slot."""

    began: float
    ended: float

    @property
    def seconds(self) -> float:
        return self.ended - self.began


def ended_with_a_champion(recording: Recording, tracked: Tracked) -> Check:
    asked = "tune.py: status 0, and the best trial is the champion in MLflow"
    if recording.status != 0 or recording.summary is None:
        how = "was ended at its time limit" if recording.status is None else f"status {recording.status}"
        return failed(asked, f"{how}; its last words: {recording.last_words}")
    registry = recording.summary["registry"] or {}
    holds = (
        recording.summary["outcome"] == Outcome.CHAMPION
        and registry.get("promoted") is True
        and tracked.champion == registry.get("version")
        and recording.left == 0
    )
    left = f"; {recording.left} of its processes had to be ended" if recording.left else ""
    in_mlflow = f"in MLflow version {tracked.champion}" if tracked.champion else "no champion in MLflow"
    seconds = float(recording.summary["seconds"])
    return passed_if(
        holds, asked, f"{recording.summary['message']}; {in_mlflow}; {seconds:.0f} s{left}", seconds=seconds
    )


def shares_honoured(recording: Recording, shares: Mapping[str, float]) -> Check:
    """`shares` of the machine, by branch: of its one GPU, or of its cores."""
    asked = "shares: two LoRA trials side by side, at no moment more than the machine, a full trial alone"
    trials = _ended(recording)
    most, lora, strangers = 0.0, 0, 0
    for trial in trials:
        now = [other for other in trials if other.started.time <= trial.started.time < _end(other)]
        most = max(most, sum(shares[other.started.branch] for other in now))
        lora = max(lora, sum(other.started.branch == "lora" for other in now))
        if shares[trial.started.branch] + min(shares.values()) > 1 and trial.reports:
            strangers = max(strangers, _workers_beside(recording, trial))
    seen = (
        f"{lora} LoRA trials at once; at most {most:g} of the machine; {strangers} strange workers beside a full trial"
    )
    holds = lora >= 2 and most <= 1 + 1e-6 and strangers == 0
    return passed_if(holds, asked, seen, most=most, lora_at_once=lora)


def ran_on(recording: Recording, device: str) -> Check:
    asked = f"every trial ran on {device}"
    devices = {str(event.device) for event in recording.events if isinstance(event, TrialProgressed)}
    return passed_if(devices == {device}, asked, f"on {', '.join(sorted(devices)) or 'nothing'}")


def slots_stay_warm(recording: Recording) -> Check:
    asked = f"slots stay warm: from trial to trial at most {WARM_SHARE:.0%} of what the first one waits"
    cold, warm = list(cold_starts(recording)), list(gaps(recording))
    if not warm:
        return failed(asked, "no slot served two trials")
    longest, shortest_cold = max(gap.seconds for gap in warm), min(cold)
    seen = f"{len(warm)} times from trial to trial, {longest:.2f} s at most; a first trial waits {shortest_cold:.1f} s"
    return passed_if(
        longest <= WARM_SHARE * shortest_cold, asked, seen, longest_gap_s=longest, shortest_cold_start_s=shortest_cold
    )


def killed_worker_is_replaced(recording: Recording) -> Check:
    asked = "a killed worker: a new one takes its place, and the trial goes on to the end of its budget"
    kill = recording.kill
    if kill is None:
        return failed(asked, "none was killed: no full trial had a report with more to come")
    new = _first_new_worker(recording.looks, kill.time)
    hit = [trial for trial in replay(recording.events).values() if trial.started.time < kill.time < _end(trial)]
    whole = [trial for trial in hit if trial.state is TrialState.COMPLETED and trial.last and trial.last.done]
    if new is None or not hit or len(whole) < len(hit):
        states = ", ".join(f"trial {trial.started.number} {trial.state}" for trial in hit) or "no trial ran then"
        return failed(
            asked, f"process {kill.pid} was killed; {'no new one' if new is None else 'a new one'} came; {states}"
        )
    lost = max(_pause(trial, kill.time) for trial in hit)
    numbers = ", ".join(str(trial.started.number) for trial in hit)
    seen = f"trial {numbers} completed; a new process after {new - kill.time:.1f} s, the next step after {lost:.1f} s"
    return passed_if(True, asked, seen, to_next_step_s=lost)


def memory_comes_back(recording: Recording) -> Check:
    """After the kill, before a new worker is there, and after the search: what the card holds is what it held before."""
    asked = f"the card's memory comes back: within {NOTHING_BYTES / GB:g} GB, after a kill and after the search"
    kill, looks = recording.kill, [look for look in recording.looks if look.used_bytes is not None]
    if not looks or kill is None:
        return skipped(asked, "no card" if not looks else "no worker was killed")
    used = {look.time: look.used_bytes or 0 for look in looks}
    rest, held = used[looks[0].time], max(size for when, size in used.items() if when <= kill.time)
    before = [size for when, size in used.items() if when <= kill.time][-1]
    new = _first_new_worker(looks, kill.time) or looks[-1].time
    after_kill = min((size for when, size in used.items() if kill.time < when < new), default=before)
    at_end = used[looks[-1].time]
    holds = (
        before - rest > NOTHING_BYTES and after_kill - rest <= NOTHING_BYTES and at_end - rest <= NOTHING_BYTES
    )  # fmt: skip
    seen = (
        f"{(before - rest) / GB:.2f} GB before the kill, {(after_kill - rest) / GB:.2f} GB after it,"
        f" {(at_end - rest) / GB:.2f} GB at the end; {(held - rest) / GB:.2f} GB at most"
    )
    return passed_if(holds, asked, seen, before_kill_bytes=before - rest, after_kill_bytes=after_kill - rest)


def system_metrics_logged(tracked: Tracked) -> Check:
    asked = "the machine's metrics are in the search's MLflow run"
    found = sorted(name for name in tracked.system_metrics if name.startswith("system/"))
    return passed_if("system/cpu_utilization_percentage" in found, asked, f"{len(found)} metrics")


def gpu_metrics_logged(tracked: Tracked) -> Check:
    asked = "the card's metrics are in the search's MLflow run: memory, utilization, power"
    metrics = tracked.system_metrics
    memory, busy = (
        metrics.get(f"system/gpu_0_{name}") for name in ("memory_usage_megabytes", "utilization_percentage")
    )
    if memory is None or busy is None:
        return failed(asked, f"there are {', '.join(sorted(metrics)) or 'none'}")
    power = metrics.get("system/gpu_0_power_usage_watts")
    seen = f"at most {memory:,.0f} MB, {busy:.0f} % busy, {power or 0:.0f} W"
    return passed_if(busy > 0 and memory > 0, asked, seen, megabytes=memory, busy_percent=busy)


def worker_seconds_are_paid_time(recording: Recording, shares: Mapping[str, float]) -> Check:
    """`worker_seconds` of a trial, times its share of the card, are the GPU-seconds that it cost."""
    asked = "worker-seconds: those of training, no more than the clock says; with their shares, no more than one card's"
    trials = {trial.trial_id: trial for trial in _ended(recording)}
    said = {trial["trial_id"]: trial["worker_seconds"] for trial in (recording.summary or {}).get("trials", ())}
    if not said or said.keys() != trials.keys():
        return failed(asked, "the summary has not the trials of the journal")
    wrong = [
        f"trial {trials[trial].started.number}: {seconds:.2f} of {_trained(trials[trial]):.2f} s"
        for trial, seconds in said.items()
        if not 0 < seconds <= _trained(trials[trial])
    ]
    cost = sum(seconds * shares[trials[trial].started.branch] for trial, seconds in said.items())
    clock = max(_end(trial) for trial in trials.values()) - min(trial.started.time for trial in trials.values())
    seen = f"{sum(said.values()):.1f} worker-seconds, {cost:.1f} of the machine's, in {clock:.0f} s"
    return passed_if(not wrong and cost <= clock, asked, "; ".join([seen, *wrong]), machine_seconds=cost, clock_s=clock)


# ------------------------------------------------------------------------------------------------------ of the journal


def cold_starts(recording: Recording) -> Iterator[float]:
    """Of the first trial of each slot: from its start to its first step, in seconds."""
    histories = replay(recording.events)
    for trials in last_reports_by_slot(recording.events).values():
        first = histories[next(iter(trials))]
        yield first_step_began(first) - first.started.time


def gaps(recording: Recording) -> Iterator[Gap]:
    """All times from trial to trial in a slot but the one in which a worker was killed."""
    histories = replay(recording.events)
    for trials in last_reports_by_slot(recording.events).values():
        for last_report, trial in zip(trials.values(), list(trials)[1:], strict=False):
            gap = Gap(began=last_report, ended=first_step_began(histories[trial]))
            if recording.kill is None or not gap.began <= recording.kill.time <= gap.ended:
                yield gap


def _ended(recording: Recording) -> Sequence[TrialHistory]:
    return [trial for trial in replay(recording.events).values() if trial.ended_at is not None]


def _end(trial: TrialHistory) -> float:
    return float("inf") if trial.ended_at is None else trial.ended_at


def _trained(trial: TrialHistory) -> float:
    """Seconds by the clock from its first step to its end."""
    return _end(trial) - first_step_began(trial) if trial.reports else 0.0


def _pause(trial: TrialHistory, when: float) -> float:
    """From this moment to the end of the trial's next step, in seconds."""
    return min((step.time - when for report in trial.reports for step in report.steps if step.time > when), default=0.0)


def _first_new_worker(looks: Sequence[Look], when: float) -> float | None:
    """When a worker was first seen that had not been there by this moment."""
    known = {pid for look in looks if look.time <= when for pid in look.workers}
    return next((look.time for look in looks if look.time > when and look.workers - known), None)


def _workers_beside(recording: Recording, trial: TrialHistory) -> int:
    """How many worker processes there were, at most, beside the trial's one while it trained."""
    looks = [look for look in recording.looks if first_step_began(trial) <= look.time <= _end(trial)]
    return max((len(look.workers) - 1 for look in looks), default=0)
