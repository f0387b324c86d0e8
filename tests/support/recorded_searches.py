"""Searches of a tiny model on a test's own cluster, with all that they record."""

import contextlib
import os
import re
import signal

import psutil
import pytest

from components.cluster.ray_session import connected
from components.cluster.run_search import run_search
from components.cluster.slots.search_context import SearchContext
from components.data.prepare import prepare
from components.experiment.load_experiment import load_experiment
from components.models.base.reference import BaseReference
from components.records.events import replay
from components.records.histories import TrialHistories
from components.records.journal import Journal


@contextlib.contextmanager
def own_cluster(num_cpus):
    """Inside, a cluster of this test's own is connected."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        with connected(num_cpus=num_cpus):
            yield


def context_of(files, name, *overrides):
    experiment = load_experiment(files / "toy.yaml", overrides)
    dataset = prepare(experiment.data, model_path=files / "model", chat_format="auto", storage=experiment.folder)
    return SearchContext(
        experiment=experiment,
        search_id=name,
        folder=experiment.folder / name,
        prepared=dataset.directory,
        budget=experiment.trial.budget.in_target_tokens(dataset.train.total_targets),
        pad_token_id=0,
        base=BaseReference(model=experiment.model, digest="sha256:toy", chat_format="auto"),
    )


def recorded(context, *subscribers, **options):
    """All events of a search that is run with these options, or goes on."""
    journal = Journal(context.folder)
    histories = TrialHistories(journal.read())
    for subscriber in (journal.append, *subscribers):
        histories.subscribe(subscriber)
    try:
        run_search(context, histories, **options)
    finally:
        journal.close()
    return journal.read()


def final_losses(records):
    return {history.started.number: history.reports[-1].eval_loss for history in replay(records).values()}


SLOT = (r"ResourceTrainable\.train", "ray::[Ss]lot")  # one that trains, else an idle one


def kill_process(*names):
    """SIGKILL to one process in this test's cluster, whose processes are all children of this one: of the first such name."""
    processes = [(child.pid, _command_of(child)) for child in psutil.Process().children(recursive=True)]
    victim = next(pid for name in names for pid, command in processes if re.search(name, command))
    os.kill(victim, signal.SIGKILL)
    return victim


def _command_of(process):
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:  # it ends meanwhile, or has ended and nobody has asked how
        return ""
