"""A trial's model is asked at its evaluations, its answers are scored, and the report has the scores."""

import math
from pathlib import Path

import pytest
import torch

from components.conversations.load_format import load_format_of
from components.conversations.messages import Conversation
from components.conversations.target_bytes import BITS_PER_BYTE
from components.data.prepare import PreparedDataset
from components.errors import InputError
from components.experiment.load_experiment import load_experiment
from components.experiment.spec import BudgetSpec, GenerateSpec, MetricSpec
from components.models.base.load_base import config_of
from components.models.load_trained import load_trained
from components.records.evaluation_record import EvaluationRecord
from components.records.events import best_report
from components.registry.probes import Probe
from components.scoring.generation_plan import GenerationPlan
from components.scoring.questions import Question, generation_set
from components.scoring.score_model import check_plan, score_model
from components.scoring.user_function import SIGNATURE
from components.search.plan_generation import plan_generation
from components.storage.open_folder import folder_at
from components.training.workers import TorchWorkers
from tests.support.experiment_file import EXPERIMENT
from tests.support.processes import run_together
from tests.support.sessions import FULL, LORA, MAX_TOKENS, Signals, curve, prepared_toy, reports, session
from tests.support.toy import assistant, user

NAMES = ("chrf", "exact_match", "stop_rate", "repetition", "tool_call")
LEARNING = FULL.model_copy(update={"budget": BudgetSpec(epochs=9.0, evaluations=2)})  # so that answers change
CHRF = MetricSpec(name="chrf", direction="maximize")


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return prepared_toy(tmp_path_factory.mktemp("toy"))


def plan(**fields):
    return GenerationPlan(generate=GenerateSpec(scores=NAMES, max_new_tokens=12, **fields))


def asking(toy, folder, workers=None, metric=CHRF, **fields):
    return session(toy, folder / "checkpoints", workers, training={"metric": metric, "generation": plan(**fields)})


def scores_of(report):
    """Of what the model says: the loss has scores of its own."""
    return {name: score for name, score in report.scores.items() if name != BITS_PER_BYTE}


def test_every_report_has_the_scores_of_what_the_model_says(toy, tmp_path):
    of = asking(toy, tmp_path, conversations=3)
    progress = reports(of, FULL)
    assert [set(scores_of(report)) for report in progress] == [set(NAMES) - {"tool_call"}] * 3  # nobody calls a tool
    assert [report.objective for report in progress] == [-report.scores["chrf"] for report in progress]
    record = EvaluationRecord.read(folder_at(tmp_path), "trial", progress[-1].step)
    asked = generation_set(of.data.dataset.eval, 3)
    assert [index for index, weight in enumerate(record.metrics["chrf"].weights) if weight] == [one for one, _ in asked]
    assert record.metrics["chrf"].value == pytest.approx(progress[-1].scores["chrf"])
    assert len(record.metrics["chrf"].weights) == len(record.metrics["eval_loss"].weights)


def test_the_checkpoint_of_a_report_has_its_scores_when_it_is_loaded(toy, tmp_path):
    """As the gate scores a candidate: any loaded model on any conversations."""
    of = asking(toy, tmp_path, conversations=99)
    last = reports(of, LORA)[-1]
    store = of.data.dataset.eval
    conversations = [store.conversation(index) for index in range(len(store))]
    loaded = load_trained(Path(last.checkpoint))
    found = score_model(
        loaded, enumerate(conversations), len(conversations), plan(), max_tokens=MAX_TOKENS, max_batch_tokens=500
    )
    assert {name: score.value for name, score in found.items() if any(score.weights)} == pytest.approx(scores_of(last))


def test_asking_changes_nothing_of_what_is_trained(toy, tmp_path):
    quiet = reports(session(toy, tmp_path / "quiet"), LORA)
    assert curve(reports(asking(toy, tmp_path), LORA)) == curve(quiet)


def test_at_the_end_only_the_last_report_has_scores_and_is_the_best(toy, tmp_path):
    progress = reports(asking(toy, tmp_path, when="end"), FULL)
    assert [bool(scores_of(report)) for report in progress] == [False, False, True]
    assert [math.isinf(report.objective) for report in progress] == [True, True, False]
    assert best_report(progress) == progress[-1]


def test_a_trial_that_is_stopped_has_come_to_its_end(toy, tmp_path):
    of = asking(toy, tmp_path, when="end")
    of.start("trial", FULL)
    assert scores_of(of.advance(Signals(stop_requested=lambda: True)))


def function_of(folder, body):
    (folder / "failing_score.py").write_text(f"def tone(conversations, answers):\n    {body}\n")
    score = MetricSpec(name="failing_score:tone", direction="maximize")
    return score, GenerationPlan(
        generate=GenerateSpec(scores=(score,), max_new_tokens=4), working_directory=str(folder)
    )


def as_worker(rank, toy, folder):
    """(scores of each report, why a function that fails on the second worker ended the trial)."""
    torch.set_num_threads(1)
    workers = TorchWorkers(torch.device("cpu"))
    scores = [scores_of(report) for report in reports(asking(toy, folder, workers), LEARNING)]
    (own := folder / str(rank)).mkdir()
    metric, asked = function_of(own, "return [1.0 for _ in answers]" if rank == 0 else "raise OSError('no dictionary')")
    of = session(toy, folder / "failing", workers, training={"metric": metric, "generation": asked})
    of.start("trial", FULL)
    try:
        of.advance()
    except InputError as error:
        return scores, str(error)


@pytest.fixture(scope="module")
def two_workers(toy, tmp_path_factory):
    folder = tmp_path_factory.mktemp("workers")
    return run_together(as_worker, toy, folder, folder=folder / "together", seconds=250)


def test_two_gloo_workers_have_the_scores_of_one(toy, tmp_path, two_workers):
    alone = [scores_of(report) for report in reports(asking(toy, tmp_path), LEARNING)]
    (first, _), (second, _) = two_workers
    assert first == second
    assert first == [pytest.approx(scores) for scores in alone]
    assert len({scores["chrf"] for scores in alone}) > 1


def test_a_function_that_fails_on_one_worker_ends_the_trial_on_all(two_workers):
    (_, first), (_, second) = two_workers
    assert second == f"score failing_score:tone: it raised OSError: no dictionary; write {SIGNATURE}"
    assert first == "1 of 2 workers could not score what they generated; its log says why"


def test_a_function_is_tried_on_the_references_before_anything_is_trained(tmp_path):
    metric, failing = function_of(tmp_path, "return [len(a) / (len(a) - 3) for a in answers]")
    question = Question(index=0, history=(user("Who?"),), prompt=(1,), reference=assistant("Me."))
    with pytest.raises(InputError, match="score failing_score:tone: it raised ZeroDivisionError"):
        check_plan(failing, [question], metric)


@pytest.mark.parametrize(
    ("name", "need"), [("tool_call", "references that call tools"), ("expect", "give records an `expect`")]
)
def test_a_metric_that_says_nothing_of_any_conversation_is_refused(name, need):
    asked = Conversation(messages=(user("Who?"), assistant("Me.")))
    question = Question(index=0, history=asked.messages[:1], prompt=(1,), reference=asked.messages[1])
    of_it = MetricSpec(name=name, direction="maximize")
    silent = GenerationPlan(generate=GenerateSpec(scores=(of_it, CHRF)))
    with pytest.raises(InputError, match=f"search.metric={name} says nothing of any of the 1 questions .*{need}"):
        check_plan(silent, [question], of_it)
    (remark,) = check_plan(silent, [question], CHRF)
    assert remark.startswith(f"evaluation.generate.scores: {name} says nothing of any")


# What a search says before it starts


def planned(toy, folder, probes=(), **overrides):
    """(the plan, what was said)."""
    model, prepared, _ = toy
    (folder / "toy.yaml").write_text(EXPERIMENT)
    experiment = load_experiment(folder / "toy.yaml", {"evaluation.generate.max_new_tokens": 12, **overrides})
    said = []
    chat_format = load_format_of(model)
    plan = plan_generation(
        experiment, PreparedDataset.open(prepared), chat_format, config_of(model), probes, said.append
    )
    return plan, said


def test_a_search_says_what_it_asks_and_which_scores_will_be_silent(toy, tmp_path):
    asked, said = planned(toy, tmp_path, **{"search.metric": "chrf", "evaluation.generate.scores": ["chrf", "expect"]})
    assert said[0].startswith("evaluation.generate: at each evaluation up to 12 tokens in answer to ")
    assert said[0].endswith("conversations (eval): chrf, expect; trials are ranked by chrf (maximize)")
    assert said[1].startswith("Warning: evaluation.generate.scores: expect says nothing of any of the ")
    assert asked.generate.scores[0] == CHRF


def test_probes_are_asked_where_the_file_says_so(toy, tmp_path):
    probes = [Probe(messages=({"role": "user", "content": "say ab"},), expect="ab")]
    overrides = {"evaluation.generate.from": "probes", "registry.probes": "p.jsonl", "search.metric": "expect"}
    asked, said = planned(toy, tmp_path, probes, **overrides, **{"evaluation.generate.scores": ["stop_rate"]})
    assert "in answer to 1 of 1 conversations (probes)" in said[0]
    of = session(toy, tmp_path / "checkpoints", training={"generation": asked})
    assert set(scores_of(reports(of, FULL)[-1])) == {"expect", "stop_rate"}


def test_a_metric_that_says_nothing_of_what_decides_rungs_is_refused(toy, tmp_path):
    """Of all conversations it says something, and of these none."""
    (tmp_path / "of_many.py").write_text(
        "def many(conversations, answers):\n    return [1.0 if len(answers) > 2 else None for _ in answers]\n"
    )
    metric = {"name": "of_many:many", "direction": "maximize"}
    overrides = {"search.metric": metric, "evaluation.conversations_at_rungs": 2}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        said = "search.metric=of_many:many says nothing of any of the 2 questions"
        with pytest.raises(InputError, match=f"evaluation.conversations_at_rungs=2: at rungs {said}"):
            planned(toy, tmp_path, **overrides)
        planned(toy, tmp_path, **{**overrides, "evaluation.conversations_at_rungs": 3})


def test_a_schema_s_file_travels_to_the_workers(toy, tmp_path):
    (tmp_path / "schema.json").write_text('{"type": "object"}')
    overrides = {
        "evaluation.generate.scores": ["json_schema"],
        "evaluation.generate.json_schema": str(tmp_path / "schema.json"),
    }
    asked, _ = planned(toy, tmp_path, **overrides)
    assert asked.generate.json_schema == {"type": "object"}
    (tmp_path / "schema.json").write_text("[]")
    with pytest.raises(InputError, match=r"json_schema=.*schema.json: holds no JSON object"):
        planned(toy, tmp_path, **overrides)
