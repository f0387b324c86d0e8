"""The kit's part `search`: a search as it should be passes each check, and every planted fault fails its own."""

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from components.experiment.spec import FullMethod, TrialSpec
from components.planning.calibrate import Calibration
from components.records.events import StepMetrics, TrialEnded, TrialProgressed
from experiments.benchmarks.gpu_kit import search, search_checks, search_plans
from experiments.benchmarks.gpu_kit.cases import run_cases
from experiments.benchmarks.gpu_kit.search_checks import Tracked
from experiments.benchmarks.gpu_kit.search_recording import Kill, Look, Recording, record, runs, train_workers
from experiments.benchmarks.gpu_kit.settings import Settings
from tests.support import records

GB = 10**9
CARD = "NVIDIA L40S (CUDA_VISIBLE_DEVICES=3)"
SHARES = {"lora": 0.5, "full": 1.0}
TRACKED = Tracked(
    champion="1",
    system_metrics={
        "system/cpu_utilization_percentage": 50.0,
        "system/gpu_0_memory_usage_megabytes": 900.0,
        "system/gpu_0_utilization_percentage": 70.0,
    },
)


def trial(number, branch, slot, start, first_step, *reports, ended=None, device=CARD):
    """All events of a trial that reports at these times; its last report ends it."""
    trial_id = f"t{number}"
    spec = TrialSpec(method=FullMethod()) if branch == "full" else TrialSpec()
    yield records.started(trial_id, number=number, branch=branch, spec=spec, time=start)
    for step, at in enumerate(reports, start=1):
        seconds = 0.5 if step == 1 else reports[step - 2] - first_step
        metrics = StepMetrics(
            step=step, target_tokens=10, loss=1.0, learning_rate=0.1, grad_norm=1.0, seconds=seconds,
            time=first_step + seconds if step == 1 else at - 0.1,
        )  # fmt: skip
        progress = records.progress(
            step, 2.0, steps=(metrics,), done=at == reports[-1], worker_seconds=0.9 * (at - first_step)
        )
        yield TrialProgressed(trial_id=trial_id, progress=progress, slot=slot, device=device, time=at)
    yield TrialEnded(trial_id=trial_id, state="completed", time=ended or reports[-1] + 0.05)


def events_of(*trials):
    return tuple(sorted((event for each in trials for event in each), key=lambda event: event.time))


def good_trials():
    return {
        1: trial(1, "lora", "left", 100.0, 110.0, 112.0, 114.0),
        2: trial(2, "lora", "right", 100.0, 111.0, 113.0, 115.0),
        3: trial(3, "lora", "left", 114.1, 114.2, 116.0, 118.0),
        4: trial(4, "full", "whole", 120.0, 130.0, 132.0, 142.0, 144.0),
        5: trial(5, "full", "whole", 144.1, 144.2, 146.0, 148.0),
    }


def with_trials(**changed):
    return events_of(*(good_trials() | {int(name[1:]): events for name, events in changed.items()}).values())


def looks(*seen):
    """(time, workers, GB of the card) each."""
    return tuple(Look(time=when, workers=frozenset(workers), used_bytes=int(used * GB)) for when, workers, used in seen)


LOOKS = looks(
    (90.0, (), 1.0),
    (112.0, (11, 12), 3.0),
    (119.0, (), 1.1),
    (131.0, (13,), 2.0),
    (132.05, (13,), 2.0),
    (132.5, (), 1.05),
    (135.0, (), 1.0),
    (137.0, (14,), 2.0),
    (148.0, (14,), 2.0),
    (160.0, (), 1.0),
)
SUMMARY = {
    "outcome": "champion",
    "message": "Champion: models:/gpu-smoke@champion is version 1",
    "seconds": 60.0,
    "run_id": "r",
    "registry": {"promoted": True, "version": "1"},
    "trials": [{"trial_id": f"t{number}", "worker_seconds": 3.0} for number in range(1, 6)],
}
GOOD = Recording(
    status=0,
    summary=SUMMARY,
    last_words="",
    events=with_trials(),
    looks=LOOKS,
    kill=Kill(pid=13, time=132.1),
)


def champion(recording=GOOD, tracked=TRACKED):
    return search_checks.ended_with_a_champion(recording, tracked)


def shares(recording=GOOD):
    return search_checks.shares_honoured(recording, SHARES)


def paid(recording=GOOD):
    return search_checks.worker_seconds_are_paid_time(recording, SHARES)


def device(recording=GOOD):
    return search_checks.ran_on(recording, CARD)


warm = search_checks.slots_stay_warm
killed = search_checks.killed_worker_is_replaced
memory = search_checks.memory_comes_back


def test_a_search_as_it_should_be_passes_every_check_and_says_the_figures():
    passed = [check() for check in (champion, shares, paid, device)] + [check(GOOD) for check in (warm, killed, memory)]
    passed += [search_checks.system_metrics_logged(TRACKED), search_checks.gpu_metrics_logged(TRACKED)]
    assert [check.verdict for check in passed] == ["passed"] * 9
    said = " | ".join(check.seen for check in passed)
    assert "version 1; in MLflow version 1; 60 s" in said
    assert "2 LoRA trials at once; at most 1 of the machine; 0 strange workers" in said
    assert "2 times from trial to trial, 0.20 s at most; a first trial waits 10.0 s" in said
    assert "trial 4 completed; a new process after 4.9 s, the next step after 9.8 s" in said
    assert "1.00 GB before the kill, 0.00 GB after it, 0.00 GB at the end; 2.00 GB at most" in said
    assert "15.0 worker-seconds, 10.5 of the machine's, in 48 s" in said


@pytest.mark.parametrize(
    ("changes", "tracked", "said"),
    [
        ({"status": 5, "last_words": "no module"}, TRACKED, "status 5; its last words: no module"),
        ({"status": None}, TRACKED, "was ended at its time limit"),
        ({}, replace(TRACKED, champion=None), "no champion in MLflow"),
        ({}, replace(TRACKED, champion="7"), "in MLflow version 7"),
        ({"summary": SUMMARY | {"registry": {"promoted": False, "version": "1"}}}, TRACKED, "Champion"),
        ({"summary": SUMMARY | {"outcome": "not promoted"}}, TRACKED, "Champion"),
        ({"left": 2}, TRACKED, "2 of its processes had to be ended"),
    ],
)
def test_a_search_without_its_champion_fails(changes, tracked, said):
    check = champion(replace(GOOD, **changes), tracked)
    assert check.verdict == "failed"
    assert said in check.seen


@pytest.mark.parametrize(
    "changed",
    [
        {
            "t4": trial(4, "full", "whole", 117.0, 130.0, 132.0, 142.0, 144.0)
        },  # began before the last LoRA trial had ended
        {"t3": trial(3, "lora", "more", 114.01, 114.2, 116.0, 118.0)},  # three at once
        {
            "t2": trial(2, "lora", "left", 114.1, 114.2, 116.0, 118.0),
            "t3": trial(3, "lora", "left", 118.1, 118.2, 119.0),
        },
    ],
    ids=["full beside lora", "three halves", "lora never together"],
)
def test_a_card_that_is_shared_otherwise_than_asked_fails(changed):
    assert shares(replace(GOOD, events=with_trials(**changed))).verdict == "failed"


def test_a_process_that_stays_beside_a_full_trial_fails():
    seen = shares(replace(GOOD, looks=(*LOOKS, *looks((147.0, (12, 14), 3.0)))))
    assert (seen.verdict, "1 strange workers" in seen.seen) == ("failed", True)


@pytest.mark.parametrize(
    "where", ["cpu", None, "NVIDIA L40S (CUDA_VISIBLE_DEVICES=3,4)", "NVIDIA L4 (CUDA_VISIBLE_DEVICES=3)"]
)
def test_a_trial_on_another_device_fails(where):
    changed = {"t3": trial(3, "lora", "left", 114.1, 114.2, 116.0, 118.0, device=where)}
    check = device(replace(GOOD, events=with_trials(**changed)))
    assert check.verdict == "failed"
    assert str(where) in check.seen


@pytest.mark.parametrize(
    ("events", "said"),
    [
        (with_trials(t5=trial(5, "full", "whole", 144.1, 153.0, 155.0)), "9.00 s at most"),
        (events_of(*[good_trials()[number] for number in (1, 2, 4)]), "no slot served two trials"),
    ],
    ids=["cold", "one trial a slot"],
)
def test_a_slot_that_starts_a_trial_as_slowly_as_its_first_fails(events, said):
    check = warm(replace(GOOD, events=events))
    assert check.verdict == "failed"
    assert said in check.seen


def test_the_gap_in_which_a_worker_was_killed_is_no_gap_of_a_warm_slot():
    events = with_trials(t5=trial(5, "full", "whole", 144.1, 153.0, 155.0))
    assert warm(replace(GOOD, events=events, kill=Kill(pid=14, time=144.5))).verdict == "passed"


def without_the_end(events, trial_id, state=None):
    kept = [event for event in events if not (isinstance(event, TrialEnded) and event.trial_id == trial_id)]
    return (*kept, TrialEnded(trial_id=trial_id, state=state, time=144.05)) if state else tuple(kept)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kill": None}, "none was killed"),
        ({"looks": LOOKS[:7]}, "no new one came"),
        ({"events": without_the_end(GOOD.events, "t4")}, "trial 4 running"),
        ({"events": without_the_end(GOOD.events, "t4", "failed")}, "trial 4 failed"),
        ({"kill": Kill(pid=13, time=119.5)}, "no trial ran then"),
    ],
)
def test_a_trial_that_does_not_survive_its_worker_fails(changes, said):
    check = killed(replace(GOOD, **changes))
    assert check.verdict == "failed"
    assert said in check.seen


def leaking(when, used):
    """The same looks, with more of the card in use at one of them."""
    return tuple(replace(look, used_bytes=int(used * GB)) if look.time == when else look for look in LOOKS)


@pytest.mark.parametrize(
    "changed",
    [
        [replace(look, used_bytes=2 * GB) if 132.1 < look.time < 137 else look for look in LOOKS],
        leaking(160.0, 1.5),
        [replace(look, used_bytes=GB) for look in LOOKS],
        [look for look in LOOKS if look.time not in (132.5, 135.0)],
    ],
    ids=["kept after the kill", "kept at the end", "none was held", "never seen free"],
)
def test_memory_that_does_not_come_back_fails(changed):
    assert memory(replace(GOOD, looks=tuple(changed))).verdict == "failed"


def test_without_a_card_its_memory_is_not_asked_for():
    assert memory(replace(GOOD, looks=tuple(replace(look, used_bytes=None) for look in LOOKS))).verdict == "skipped"


@pytest.mark.parametrize(
    ("seconds", "trials", "said"),
    [
        (4.2, 5, "trial 1: 4.20 of 4.05 s"),
        (0.0, 5, "trial 1: 0.00 of 4.05 s"),
        (3.0, 4, "the summary has not the trials of the journal"),
    ],
)
def test_worker_seconds_that_the_clock_did_not_see_fail(seconds, trials, said):
    changed = [{"trial_id": f"t{number}", "worker_seconds": seconds} for number in range(1, trials + 1)]
    check = paid(replace(GOOD, summary=SUMMARY | {"trials": changed}))
    assert check.verdict == "failed"
    assert said in check.seen


def test_metrics_that_mlflow_has_not_fail():
    nothing = Tracked(champion="1", system_metrics={"train/loss": 1.0})
    assert search_checks.system_metrics_logged(nothing).verdict == "failed"
    assert search_checks.gpu_metrics_logged(nothing).verdict == "failed"
    idle = {**TRACKED.system_metrics, "system/gpu_0_utilization_percentage": 0.0}
    assert search_checks.gpu_metrics_logged(replace(TRACKED, system_metrics=idle)).verdict == "failed"


# ------------------------------------------------------------------------------------------------------------ recording

PROGRAM = """
import subprocess, sys, time
from pathlib import Path
storage, lines, how = Path(sys.argv[1]), Path(sys.argv[2]).read_text().splitlines(), sys.argv[3]
worker = [sys.executable, "-c", "import time; time.sleep(60)", "ray::RayTrainWorker"]
child = subprocess.Popen(worker)
folder = storage / "gpu_smoke" / "a-search"
folder.mkdir(parents=True)
for line in lines:
    with (folder / "journal.jsonl").open("a") as journal:
        journal.write(line + "\\n")
    time.sleep(0.4)
print("killed", child.poll(), file=sys.stderr)
if how == "hang":
    time.sleep(60)
if how == "leave":
    child = subprocess.Popen(worker)
    time.sleep(0.6)
print('{"outcome": "champion"}')
"""


def recorded(folder, how="end", seconds=30.0, events=GOOD.events):
    (folder / "program.py").write_text(PROGRAM)
    (folder / "lines").write_text("\n".join(event.model_dump_json() for event in events))
    return record(
        [sys.executable, str(folder / "program.py"), str(folder / "runs"), str(folder / "lines"), how],
        storage=folder / "runs",
        environment={},
        logs=folder,
        seconds=seconds,
    )


def running(seen):
    return [pid for look in seen.looks for pid in look.workers if psutil.pid_exists(pid) and runs(psutil.Process(pid))]


FULL = tuple(event for event in GOOD.events if event.trial_id == "t4")


def test_the_newest_worker_is_killed_once_after_the_first_report_of_a_full_trial(tmp_path, capsys):
    seen = recorded(tmp_path, events=FULL)
    assert (seen.status, seen.summary, seen.left) == (0, {"outcome": "champion"}, 0)
    assert seen.events == FULL
    assert {pid for look in seen.looks for pid in look.workers} == {seen.kill.pid}
    assert running(seen) == []
    assert "killed -9" in capsys.readouterr().out  # what the program said is in the part's own log


def test_a_search_of_lora_alone_loses_no_worker(tmp_path, monkeypatch):
    monkeypatch.setattr("experiments.benchmarks.gpu_kit.search_recording.GRACE_SECONDS", 0.5)
    lora = tuple(event for event in GOOD.events if event.trial_id == "t1")
    assert recorded(tmp_path, "leave", events=lora).kill is None


def test_what_a_search_leaves_running_is_counted_and_ended(tmp_path, monkeypatch):
    monkeypatch.setattr("experiments.benchmarks.gpu_kit.search_recording.GRACE_SECONDS", 0.5)
    seen = recorded(tmp_path, "leave", events=FULL[:1])
    assert (seen.status, seen.left) == (0, 2)
    assert running(seen) == []


def test_a_search_is_ended_at_its_time_limit_with_all_that_it_started(tmp_path, monkeypatch):
    monkeypatch.setattr("experiments.benchmarks.gpu_kit.search_recording.GRACE_SECONDS", 0.5)
    seen = recorded(tmp_path, "hang", seconds=3.0, events=FULL[:1])
    assert (seen.status, seen.summary) == (None, None)
    assert running(seen) == []


def test_workers_of_another_search_are_not_this_one_s(tmp_path):
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    other = subprocess.Popen([*sleep, "ray::RayTrainWorker"])
    own = subprocess.Popen(sleep)
    try:
        time.sleep(0.2)
        assert train_workers(psutil.Process(own.pid)) == []
    finally:
        for process in (own, other):
            process.kill()
            process.wait()


# ---------------------------------------------------------------------------------------------------------------- plans


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    return Settings(
        device_name="cpu", shapes="tiny", scratch=tmp_path_factory.mktemp("scratch"), deadline=time.time() + 600
    )


@pytest.fixture(scope="module")
def planned_smoke(settings):
    """plan.py of the smoke search, with its GPUs, of a model of the smallest size."""
    search.make_tiny(settings.scratch / "model")
    changes = [f"model.path={settings.scratch / 'model'}", f"storage.path={settings.scratch / 'plans'}"]
    return search_plans.run_plan(search.FILE, *changes)


def calibrated(ran, card="NVIDIA H100 80GB HBM3", **fit_changes):
    """The same plan, as if a few real steps had been taken on that card."""
    measured = Calibration(device=card, steps=3, tokens_per_second=1e5, peak_bytes=1, process_bytes=1)
    branches = [
        branch.model_copy(
            update={
                "calibration": measured,
                "fits": tuple(fit.model_copy(update=fit_changes) for fit in branch.fits),
            }
        )
        for branch in ran.plan.branches
    ]
    return replace(ran, plan=ran.plan.model_copy(update={"branches": tuple(branches)}))


def priced(ran, card="NVIDIA H100 80GB HBM3"):
    return search_plans.priced(ran, "p5.48xlarge", card)


def test_a_plan_that_was_measured_on_the_card_has_its_price(planned_smoke):
    check = priced(calibrated(planned_smoke))
    assert check.verdict == "passed"
    assert check.seen.startswith("lora: 100,000 tokens/s, ")
    assert check.seen.endswith("on p5.48xlarge")


def test_a_plan_without_the_card_s_price_fails(planned_smoke):
    assert "lora: not measured; full: not measured" in priced(planned_smoke).seen
    faults = [
        planned_smoke,
        calibrated(planned_smoke, dollars=None),
        calibrated(planned_smoke, short_bytes=1),
        calibrated(planned_smoke, card="NVIDIA L4"),
        replace(calibrated(planned_smoke), said="nothing"),
        replace(calibrated(planned_smoke), status=3),
        replace(planned_smoke, plan=None, status=2),
    ]
    assert [priced(fault).verdict for fault in faults] == ["failed"] * len(faults)


def test_a_card_that_no_machine_of_the_table_has_is_skipped_with_its_name(settings):
    (check,) = search_plans.price_of_card(settings, search.FILE, settings.scratch / "model", "NVIDIA T4")
    assert (check.verdict, "NVIDIA T4" in check.seen) == ("skipped", True)


def test_an_experiment_is_planned_and_one_that_cannot_be_fails(settings, planned_smoke):
    model, folder = settings.scratch / "model", settings.scratch / "plans"
    (check,) = search_plans.planned("a plan", search.FILE, folder, six=Path("nowhere"), other=model)
    assert check.verdict == "passed"
    assert "all fit on: g6.2xlarge" in check.seen
    (check,) = search_plans.planned("a plan", search.FILE, folder, six=model, other=settings.scratch / "nowhere")
    assert check.verdict == "failed"
    assert "status 2" in check.seen


def test_files_of_a_cluster_are_no_experiments_and_an_experiment_is_one():
    files = sorted(search_plans.EXPERIMENTS.rglob("*.yaml"))
    manifests = [file for file in files if file.parent.name == "cluster"]
    assert {file.name for file in manifests} == {"raycluster.yaml", "rayjob.yaml", "raycronjob.yaml"}
    verdicts = [check.verdict for file in manifests for check in search_plans.refused("refused", file)]
    assert verdicts == ["passed"] * 3


def test_a_plan_in_place_of_a_refusal_fails(monkeypatch, planned_smoke):
    monkeypatch.setattr(search_plans, "run_plan", lambda file: planned_smoke)
    assert [check.verdict for check in search_plans.refused("refused", search.FILE)] == ["failed"]


def test_the_shape_of_chatglm3_6b_is_that_of_the_real_one(settings, planned_smoke, tmp_path):
    directory = search_plans.config_of_6b(settings.scratch / "model", tmp_path / "six")
    config = json.loads((directory / "config.json").read_text())
    assert (config["num_layers"], config["padded_vocab_size"], config["model_type"]) == (28, 65024, "chatglm")


# ------------------------------------------------------------------------------------------------------------- the part


def test_without_ray_or_mlflow_or_time_the_part_is_skipped(settings, monkeypatch):
    (check,) = search.run(replace(settings, deadline=time.time() + 5))
    assert (check.verdict, check.seen) == ("skipped", "no time left")
    monkeypatch.setattr(search, "find_spec", lambda name: None)
    (check,) = search.run(settings)
    assert (check.verdict, check.seen) == ("skipped", "not installed: ray, mlflow")


def test_the_search_takes_the_whole_card_and_the_cpu_s_none(settings, monkeypatch):
    smoke = search.SmokeSearch(settings)
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    assert smoke.shares() == {"lora": 0.25, "full": 0.375}
    on_gpu = search.SmokeSearch(replace(settings, device_name="cuda"))
    assert on_gpu.shares() == {"lora": 0.5, "full": 1.0}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "NVIDIA L40S")
    assert on_gpu.device() == "NVIDIA L40S (CUDA_VISIBLE_DEVICES=2)"


def test_a_search_that_never_began_fails_its_checks_and_no_more(settings):
    smoke = search.SmokeSearch(settings)
    nothing = Recording(
        status=2, summary=None, last_words="model.path=x: no such directory", events=(), looks=(), kill=None
    )
    checks = list(run_cases(search.cases_of(smoke, nothing), settings))
    assert [check.verdict for check in checks] == ["failed"] * 5 + ["skipped"] + ["failed"] * 2 + ["skipped"]
    assert "status 2; its last words: model.path=x: no such directory" in checks[0].seen


def test_an_mlflow_that_does_not_answer_fails_what_is_asked_of_it(settings, monkeypatch):
    def away(self, recording):
        raise ConnectionError("refused")

    monkeypatch.setattr(search.SmokeSearch, "tracked", away)
    checks = list(run_cases(search.cases_of(search.SmokeSearch(settings), GOOD), settings))
    assert [check.seen for check in checks if check.verdict == "failed"].count("ConnectionError: refused") == 3
    assert "passed" in {check.verdict for check in checks}
