"""An elastic trial on a real cluster of simulated nodes, which go and come."""

import contextlib
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from components.experiment.load_experiment import load_experiment
from components.records.events import TrialProgressed
from components.records.journal import Journal
from components.records.manifest import searches_in
from components.storage.open_folder import folder_at
from tests.support.clusters import RAY, cluster, node_type
from tests.support.servers import until
from tests.support.sessions import curve, session
from tests.support.toy_search import toy_search_folder

pytestmark = pytest.mark.long  # three minutes; ray/test_autoscaling.py kills a node, too

ROOT = Path(__file__).parents[2]
SECONDS = 400
# So long that no machine comes to its end before the nodes have gone and come.
CHANGES = """
data: {eval_fraction: 0.15}
trial:
  method: {kind: full}
  optimizer: {learning_rate: 1.0e-3}
  budget: {epochs: 20000, evaluations: 10000}
  batch: {rows_per_micro_batch: 1}
search: {trials: null, scheduler: null, space: {full: {method: {kind: full}}}}
resources: {full: {workers: [1, 2]}}
"""


class Driver:
    """`train.py` on a cluster, and what its journal says."""

    def __init__(self, folder, head):
        self.folder = folder
        given = {"RAY_ADDRESS": head.address, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(ROOT / "workflows" / "train.py"), "toy.yaml"]
        with (folder / "output").open("w") as output:
            self.process = subprocess.Popen(
                command, cwd=folder, env=head.environment() | given, stdout=output, stderr=output
            )

    def reports(self):
        for path in self.folder.glob("runs/toy.train/*/journal.jsonl"):
            return [
                told.progress for told in Journal(folder_at(path.parent)).read() if isinstance(told, TrialProgressed)
            ]
        return []

    def wait_for_workers(self, *expected):
        """Until the trial has had these numbers of workers, one after the other."""

        def have_been():
            assert self.process.poll() is None, (self.folder / "output").read_text()
            return self.widths() == list(expected)

        until(have_been, SECONDS)

    def widths(self):
        had = [report.workers for report in self.reports()]
        return [now for before, now in zip([None, *had], had, strict=False) if now != before]


@pytest.fixture
def folder(tmp_path):
    return toy_search_folder(tmp_path, CHANGES, conversations=25)


def drain(head, node):
    """What follows a cloud's notice: Ray is told that the node will be taken in a minute."""
    command = [RAY, "drain-node", "--address", head.address, "--node-id", node.node_id]
    why = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "taken back"]
    subprocess.run(
        [*command, *why, "--deadline-remaining-seconds", "60"], env=head.environment(), check=True, capture_output=True
    )


@contextlib.contextmanager
def another_program(head):
    """Somebody else's, which wants a core of the cluster as long as this block lasts."""
    wants = (
        "asked = ray.remote(num_cpus=1)(lambda: time.sleep(1e6)).remote(); print('asked', flush=True); ray.get(asked)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", f"import ray, time; ray.init(); {wants}"],
        env=head.environment() | {"RAY_ADDRESS": head.address},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout.readline() == b"asked\n"
    try:
        yield
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def steady(folder, count):
    """The first reports of the same trial on one worker that nobody disturbs."""
    (manifest,) = searches_in(folder_at(folder / "runs" / "toy.train"))
    of = session((folder / "model", folder_at(manifest.prepared), 0), folder / "steady")
    of.start("steady", load_experiment(folder / "toy.yaml").trial)
    return [of.advance() for _ in range(count)]


def test_a_trial_leaves_a_preempted_node_and_spreads_again_with_the_same_curve(folder):
    nodes = {"one": node_type(cpus=1) | {"min_workers": 2}}
    with cluster(folder, nodes) as head:
        driver = Driver(folder, head)
        try:
            driver.wait_for_workers(2)
            with another_program(head):
                drain(head, head.nodes("one")[0])
                driver.wait_for_workers(2, 1)
            driver.wait_for_workers(2, 1, 2)
            driver.process.send_signal(signal.SIGTERM)
            status = driver.process.wait(SECONDS)
        finally:
            driver.process.kill()
            driver.process.wait()
    assert status == 143
    reports = driver.reports()
    assert curve(reports) == pytest.approx(curve(steady(folder, len(reports))), abs=1e-5)
