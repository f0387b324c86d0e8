"""The Python face, as far as no cluster is needed: names, laziness, and what shows itself."""

import contextlib
import inspect
import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.table import Table

import components as turnwise
from components import api
from components.conversations.openai_messages import messages_of
from components.experiment.spec import LoraMethod, ModelSpec, TrialSpec
from components.inference.model import Model
from components.models.load_trained import load_base
from components.notebook import html_of, text_of
from components.records.driver_presence import DriverHeartbeat, DriverInbox
from components.records.events import Progress, TrialEnded, TrialProgressed, TrialStarted
from components.records.histories import TrialHistories
from components.records.journal import Journal
from components.records.manifest import LAYOUT, SearchManifest
from components.records.outcome import Outcome
from components.search.handle import Search
from components.storage.open_folder import folder_at
from tests.support.toy import tiny_model_directory, toy_conversations, write_messages_jsonl

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "ray", "mlflow", "transformers", "peft", "datasets", "pandas", "pyarrow", "optuna", "rich", "yaml")
EXPERIMENT = """
name: toy
model: {path: %(folder)s/model}
data: {train: %(folder)s/data.jsonl, eval_fraction: 0.2, max_tokens: 128}
trial: {budget: {epochs: 1, evaluations: 2}, batch: {rows_per_step: 4, rows_per_micro_batch: 4}}
search:
  trials: 2
  space: {lora: {method: {kind: lora, rank: {choice: [2, 4]}}}}
storage: {path: %(folder)s/runs}
tracking: {uri: "sqlite:///%(folder)s/mlflow.db"}
"""


@pytest.fixture
def experiment(tmp_path):
    tiny_model_directory(tmp_path / "model")
    write_messages_jsonl(tmp_path / "data.jsonl", toy_conversations(25))
    (tmp_path / "toy.yaml").write_text(EXPERIMENT % {"folder": tmp_path})
    return turnwise.load_experiment(tmp_path / "toy.yaml")


def begun(experiment, search_id, created=1.0):
    """A search in which trial 1 has reported twice and ended, and trial 2 has failed."""
    folder = experiment.folder / search_id
    SearchManifest(
        search_id=search_id, experiment=experiment, created=created, prepared="p", budget=1000, layout=LAYOUT
    ).write(folder)
    journal = Journal(folder)
    for number, rank in ((1, 2), (2, 4)):
        journal.append(
            TrialStarted(
                trial_id=f"t{number}",
                number=number,
                branch="lora",
                spec=TrialSpec(method=LoraMethod(rank=rank)),
                workers=1,
                varied={"method.rank": rank},
                time=1.0,
            )
        )
    for step, loss in ((1, 1.5), (2, 1.75)):
        progress = Progress(
            step=step, target_tokens=500 * step, epoch=0.5, train_loss=2.0 - 0.1 * step, eval_loss=loss,
            eval_num_targets=10, tokens_per_second=1.0, seconds=3.0 * step, worker_seconds=3.0 * step,
            checkpoint=f"checkpoint-{step}",
        )  # fmt: skip
        journal.append(TrialProgressed(trial_id="t1", progress=progress, slot="s", time=2.0))
    journal.append(TrialEnded(trial_id="t1", state="completed", time=3.0))
    journal.append(TrialEnded(trial_id="t2", state="failed", reason="out of memory", time=3.0))
    return folder


def test_importing_it_costs_no_library_until_a_function_is_used():
    script = (
        "import sys, json; import components as turnwise\n"
        f"loaded = lambda: [name for name in {HEAVY!r} if name in sys.modules]\n"
        "before = loaded(); names = dir(turnwise); listed = loaded()\n"
        "turnwise.TurnwiseError, turnwise.load_experiment, turnwise.run, turnwise.StopRequest\n"
        "turnwise.load_experiment('experiments/quickstart.yaml', {'search.trials': 3})\n"
        "print(json.dumps([before, listed, [name for name in loaded() if name not in ('rich', 'yaml')]]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert json.loads(done.stdout) == [[], [], []]


def test_its_functions_are_those_of_the_module_typed_and_documented():
    assert set(turnwise.__all__) == set(dir(turnwise))
    public = {
        name
        for name, value in vars(api).items()
        if inspect.isfunction(value) and value.__module__ == api.__name__ and not name.startswith("_")
    }
    assert set(turnwise.FUNCTIONS) == public
    for name in turnwise.FUNCTIONS:
        function = getattr(turnwise, name)
        assert inspect.getdoc(function)
        signature = inspect.signature(function)
        assert signature.return_annotation is not inspect.Signature.empty
        assert all(each.annotation is not inspect.Parameter.empty for each in signature.parameters.values())
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        turnwise.nothing  # noqa: B018


def test_overrides_are_a_mapping_or_strings(experiment, tmp_path):
    changed = turnwise.load_experiment(
        tmp_path / "toy.yaml", {"search.trials": 7, "trial.optimizer.learning_rate": 1e-5, "trial.precision": "fp32"}
    )
    assert (changed.search.trials, changed.trial.optimizer.learning_rate) == (7, 1e-5)
    same = ["search.trials=7", "trial.optimizer.learning_rate=1e-5", "trial.precision=fp32"]
    assert changed == turnwise.load_experiment(tmp_path / "toy.yaml", same)
    for path, problem in {"search.trails": 'unknown key "trails"', "name.x": "override name.x: name is 'toy'"}.items():
        with pytest.raises(turnwise.ExperimentError, match=problem):
            turnwise.load_experiment(tmp_path / "toy.yaml", {path: 1})


def test_a_preview_shows_itself(experiment):
    preview = turnwise.preview(experiment, records=2)
    assert len(preview.records) == 2
    text = str(preview)
    assert "<|im_start|>assistant\n⟦" in text
    assert text.endswith(preview.totals.sentence())
    html = preview._repr_html_()
    assert html.startswith("<pre")
    assert "background-color" in html
    assert "⟦" not in html


def test_what_shows_itself_in_a_notebook_returns_what_it_shows(monkeypatch):
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    table = Table("loss", "[/INST]")
    assert "[/INST]" in html_of(table)
    assert "[/INST]" in text_of(table)


def test_a_plan_shows_itself_and_needs_no_checkout(experiment, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    messages = []
    plan = turnwise.plan(experiment, on_message=messages.append)
    assert [branch.branch for branch in plan.branches] == ["lora"]
    assert "lora: a dry run of one step" in messages
    assert plan.without_room == ()
    assert "Memory of a worker, GB" in str(plan)
    assert "Memory of a worker, GB" in plan._repr_html_()
    with pytest.raises(turnwise.InputError, match=r"nope\.yaml: no such table of machines"):
        turnwise.plan(experiment, nodes="nope.yaml")


def test_results_have_a_row_for_each_trial_of_one_search_or_several(experiment, tmp_path):
    one, _ = begun(experiment, "a", created=1.0), begun(experiment, "b", created=2.0)
    frame = turnwise.results(experiment)
    assert list(frame.columns) == [
        "experiment", "search", "trial", "branch", "method.rank", "target_tokens", "eval_loss", "train_loss",
        "worker_seconds", "state", "checkpoint", "parent", "run_id",
    ]  # fmt: skip
    assert list(frame["search"]) == ["a", "a", "b", "b"]
    first, failed = frame.iloc[0], frame.iloc[1]
    assert (first["trial"], first["method.rank"], first["state"], first["checkpoint"]) == (
        1,
        2,
        "completed",
        "checkpoint-1",
    )
    assert (first["eval_loss"], first["train_loss"], first["worker_seconds"]) == (1.5, 1.8, 6.0)
    assert first["target_tokens"] == 1000
    assert (failed["state"], failed["target_tokens"]) == ("failed", 0)
    assert frame[["eval_loss", "checkpoint", "run_id"]].iloc[1].isna().all()
    assert not (tmp_path / "mlflow.db").exists()
    assert turnwise.results(str(experiment.folder)).equals(frame)
    assert list(turnwise.results([str(one), experiment])["search"]) == ["a", "a", "a", "a", "b", "b"]
    with pytest.raises(turnwise.InputError, match="no search in"):
        turnwise.results(tmp_path / "nothing")


@pytest.mark.parametrize("uri", ["http://127.0.0.1:9", "postgresql://user@127.0.0.1:9/mlflow", "sqlite:///%s"])
def test_results_do_without_an_mlflow_that_is_away_and_ask_it_once(experiment, tmp_path, monkeypatch, caplog, uri):
    (tmp_path / "broken.db").write_text("no database")
    tracking = experiment.tracking.model_copy(update={"uri": uri.replace("%s", str(tmp_path / "broken.db"))})
    experiment = experiment.model_copy(update={"tracking": tracking})
    begun(experiment, "a", created=1.0), begun(experiment, "b", created=2.0)
    began = time.monotonic()
    frame = turnwise.results(experiment)
    assert time.monotonic() - began < 30
    assert list(frame["search"]) == ["a", "a", "b", "b"]
    assert frame["run_id"].isna().all()
    (warning,) = [record.getMessage() for record in caplog.records if "run ids are missing" in record.getMessage()]
    assert "no MLflow answers" in warning


def test_the_newest_search_to_resume_is_the_newest_that_can_go_on(experiment, monkeypatch):
    folder = begun(experiment, "a", created=1.0)
    changed = experiment.model_copy(update={"search": experiment.search.model_copy(update={"trials": 7})})
    ended = begun(changed, "b", created=2.0)
    SearchManifest.read(ended).model_copy(update={"finished": True}).write(ended)
    resumed = []
    monkeypatch.setattr(api, "start", lambda experiment, *, resume, **options: resumed.append((experiment, resume)))
    turnwise.open_search(str(experiment.folder), resume=True)
    assert resumed == [(experiment, "a")]
    assert turnwise.open_search(str(experiment.folder)).search_id == "b"
    SearchManifest.read(folder).model_copy(update={"finished": True}).write(folder)
    for search_id in (turnwise.NEWEST, "b"):
        with pytest.raises(
            turnwise.InputError, match=r"no such interrupted search in .* \(there: a \(ended\), b \(end"
        ):
            turnwise.open_search(str(experiment.folder), search_id, resume=True)


def test_a_search_that_runs_elsewhere_is_looked_at_and_gets_commands(experiment):
    folder = begun(experiment, "a")
    search = turnwise.open_search(str(experiment.folder))
    best, failed = search.trials()
    assert (best.number, best.eval_loss, failed.state) == (1, 1.5, "failed")
    assert "search a in" in search._repr_html_()
    assert "completed" in search._repr_html_()
    with pytest.raises(turnwise.NoReplyError, match=r"no reply within 0\.1 seconds: no driver is at this search"):
        search.stop(1, timeout_seconds=0.1)
    with DriverInbox(folder):
        assert search.state == "running"
        assert repr(search) == f"<RemoteSearch a in {folder}: the search goes on>"
    assert search.state == "interrupted"
    assert "has ended: interrupted; go on with --resume a" in repr(search)
    SearchManifest.read(folder).model_copy(update={"finished": True}).write(folder)
    DriverHeartbeat(host="far", pid=7, started=1.0, outcome="not promoted").write(folder)
    assert search.state == "not promoted"
    assert "search a has ended: not promoted" in repr(search)
    for wrong in ({}, {"by": 0.5, "to": 100}, {"by": 0.0}, {"to": -1}):
        with pytest.raises(turnwise.InputError, match="extend: "):
            search.extend(1, **wrong)
    with pytest.raises(turnwise.InputError, match=r"no search c in .* \(there: a \(ended\)\)"):
        turnwise.open_search(str(experiment.folder), "c")


class FakeRun:
    """In place of a SearchRun: a search that waits for its stop, or fails."""

    def __init__(self, stop, error=None):
        self.stop, self.error, self.histories = stop, error, TrialHistories()

    def run_trials(self, on_event):
        on_event("an event")
        if self.error is not None:
            raise self.error
        assert self.stop.wait(20)
        return self.stop.reason

    def conclude(self, trials):
        return SimpleNamespace(outcome=Outcome.INTERRUPTED, reason=trials)


def handle_of(monkeypatch, tmp_path, *, error=None, refused=None, connect=None):
    """A Search whose steps are FakeRun's, and its events. It connects to Ray when the event `connect` is set."""
    events = []

    @contextlib.contextmanager
    def start(prepared, *, on_message, stop):
        if refused is not None:
            raise refused
        if connect is not None:
            connect.wait(20)
        yield FakeRun(stop, error)

    monkeypatch.setattr("components.search.handle.driver_session", start)
    experiment = SimpleNamespace(search=SimpleNamespace(metrics=()))
    prepared = SimpleNamespace(folder=folder_at(tmp_path / "a"), search_id="a", budget=100, experiment=experiment)
    return Search(prepared, on_event=events.append), events


def test_a_handle_does_not_block_and_cancel_ends_the_search(monkeypatch, tmp_path):
    search, events = handle_of(monkeypatch, tmp_path)
    with pytest.raises(TimeoutError, match=r"search a has not ended within 0\.1 seconds"):
        search.result(timeout_seconds=0.1)
    assert (search.state, search.trials(), events) == ("running", (), ["an event"])
    search.cancel()
    assert search.result(timeout_seconds=20).reason == "cancel()"
    assert search.state == "interrupted"
    assert repr(search) == f"<Search a in {tmp_path / 'a'}: interrupted>"


def test_a_command_does_not_wait_longer_than_it_may_for_the_search_to_connect(monkeypatch, tmp_path):
    connect = threading.Event()
    search, _ = handle_of(monkeypatch, tmp_path, connect=connect)
    with pytest.raises(turnwise.NoReplyError, match=r"within 0\.1 seconds: search a is not connected to Ray yet"):
        search.stop(1, timeout_seconds=0.1)
    connect.set()
    search.cancel()
    assert search.result(timeout_seconds=20).outcome is Outcome.INTERRUPTED


def test_a_handle_raises_what_ended_its_search(monkeypatch, tmp_path):
    search, _ = handle_of(monkeypatch, tmp_path, error=turnwise.StorageError("the share is away"))
    with pytest.raises(turnwise.StorageError, match="the share is away"):
        search.result(timeout_seconds=20)
    assert search.state == "interrupted"
    assert "interrupted: the share is away" in repr(search)
    search, _ = handle_of(monkeypatch, tmp_path, refused=turnwise.InsufficientCapacityError("no GPU"))
    with pytest.raises(turnwise.InputError, match="search a did not start: no GPU"):
        search.stop(1)


def test_a_model_replies_streams_is_scored_and_compared(experiment, tmp_path):
    model = turnwise.load_model(str(tmp_path / "model"))
    assert isinstance(model, Model)
    assert "chat format chatml" in repr(model)
    assert "parameters" in model._repr_html_()
    reply = model.reply("say ab", system="be kind", max_new_tokens=4)
    conversation = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "say ab"}]
    assert "".join(model.stream(conversation, max_new_tokens=4)) == reply.text
    score = turnwise.score(model, str(tmp_path / "data.jsonl"))
    assert score.loss == pytest.approx(sum(each.loss_sum for each in score.losses) / score.num_targets)
    assert len(score.losses) == 25
    assert f"nats per target ({score.bits_per_byte:.4f} bits per byte) over" in repr(score)
    same = turnwise.compare(model, model, str(tmp_path / "data.jsonl"))
    assert (same.difference, same.beats) == (0.0, False)
    exported = turnwise.export(model, tmp_path / "out")
    assert (exported.layout, exported.dtype) == ("merged", "float32")
    assert load_base(ModelSpec(path=str(tmp_path / "out"))).model.config.model_type == "llama"
    with pytest.raises(turnwise.InputError, match=r"target .*: is not empty; name a new directory"):
        turnwise.export(model, tmp_path / "out")
    with pytest.raises(turnwise.InputError, match="scored turn fits into 2 tokens; give a larger max_tokens"):
        turnwise.score(model, str(tmp_path / "data.jsonl"), max_tokens=2)


def test_errors_for_users_are_one_family():
    errors = [getattr(turnwise, name) for name in turnwise.__all__ if name.endswith("Error")]
    assert [error.__name__ for error in errors if not issubclass(error, turnwise.TurnwiseError)] == []


def test_a_question_is_read_as_openai_s_api_has_it(monkeypatch):
    asked = []
    monkeypatch.setattr("components.inference.model.reply_to", lambda _, messages, **__: asked.extend(messages))
    question = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "what time is it?"}]},
        {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "clock", "arguments": "{}"}}]},
        {"role": "tool", "content": "noon"},
    ]
    Model(name="toy", loaded=None).reply(question)
    assert asked == messages_of(question)
    with pytest.raises(turnwise.InputError, match="message 2 is from 'nobody'"):
        Model(name="toy", loaded=None).reply([question[0], {"role": "nobody", "content": ""}])
