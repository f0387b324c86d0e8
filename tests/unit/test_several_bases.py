"""A search over several base models opens each of them, gives all the same words, and counts budgets in their bytes."""

import math

import pytest
import torch

from components.cluster.slots.worker import Runners
from components.errors import InputError
from components.experiment.draw_trials import sample_trials
from components.experiment.load_experiment import load_experiment
from components.experiment.spec import BudgetSpec
from components.notebook import text_of
from components.planning.instance_types import load_node_table
from components.planning.planner import plan
from components.records.evaluation_record import EvaluationRecord
from components.records.events import TrialHistory
from components.reports.leaderboard import leaderboard
from components.search.prepare_search import prepare_search
from components.training.budget_units import BudgetUnits, in_epochs
from components.training.pace import Pace
from components.training.workers import OneWorker
from tests.support.records import history, started
from tests.support.toy import pair_tokenizer, tiny_model_directory, toy_conversations, write_messages_jsonl
from tests.support.toy_search import toy_experiment

TWO_BASES = """
trial: {budget: {epochs: 2, evaluations: 1}, batch: {rows_per_step: 8}}
search:
  trials: 2
  space:
    letters: {method: {kind: full}, optimizer: {learning_rate: {choice: [5.0e-3]}}}
    pairs: {model: {path: pairs, attention: eager}, method: {kind: full}}
"""


@pytest.fixture
def place(tmp_path, monkeypatch, tiny_model):
    """A folder with an experiment over two bases of two tokenizers; the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "model").symlink_to(tiny_model)
    tiny_model_directory(tmp_path / "pairs", tokenizer=pair_tokenizer())
    (tmp_path / "toy.yaml").write_text(toy_experiment(TWO_BASES))
    write_messages_jsonl(tmp_path / "data.jsonl", toy_conversations(20))
    return tmp_path


def opened(*overrides, told=None, **options):
    prepared = prepare_search(
        load_experiment("toy.yaml", overrides),
        on_message=lambda text: None if told is None else told.append(text),
        **options,
    )
    prepared.lock.close()
    return prepared


def test_a_budget_in_bytes_is_the_same_share_of_the_data():
    units = BudgetUnits(per_epoch=1000, targets_per_epoch=300)
    assert [units.spent(targets) for targets in (0, 150, 300, 600)] == [0, 500, 1000, 2000]
    assert units.planned(BudgetSpec(epochs=1.5)) == 1500
    half = in_epochs(BudgetSpec(target_tokens=150, evaluations=2), 300)
    assert (half, units.planned(half)) == (BudgetSpec(epochs=0.5, evaluations=2), 500)
    with pytest.raises(ValueError, match="a budget in target tokens is none in bytes"):
        units.planned(BudgetSpec(target_tokens=150))
    tokens = BudgetUnits(per_epoch=300, targets_per_epoch=300)
    assert (tokens.spent(151), tokens.planned(BudgetSpec(target_tokens=150))) == (151, 150)


def test_each_base_is_opened_with_its_own_data_of_the_same_words(place):
    told = []
    prepared = opened(told=told)
    letters, pairs = prepared.opened.bases
    assert (letters.branches, pairs.branches) == (("letters",), ("pairs",))
    assert letters.dataset.train.target_bytes.tolist() == pairs.dataset.train.target_bytes.tolist()
    assert letters.dataset.train.total_targets > pairs.dataset.train.total_targets
    assert prepared.budget == 2 * letters.dataset.train.target_bytes.sum()
    assert pairs.experiment.model.attention == "eager"
    assert any("losses compare in bits per byte" in text for text in told)
    context = prepared.context({})
    assert context.base_of("letters").prepared == context.prepared == letters.dataset.directory
    assert context.base_of("pairs").reference.model.path == str(place / "pairs")
    assert context.base_of("pairs").pad_token_id == pairs.chat_format.pad_token_id


def test_a_budget_in_target_tokens_is_that_share_for_every_base(place):
    letters = opened().dataset.train
    half = letters.total_targets // 2
    of_tokens = (f"trial.budget={{target_tokens: {half}, evaluations: 2}}", "search.scheduler={name: asha}")
    prepared = opened(*of_tokens, f"search.scheduler.first_rung_target_tokens={half // 4}")
    assert prepared.budget == round(half / letters.total_targets * letters.target_bytes.sum())
    rung = prepared.experiment.search.scheduler.first_rung_target_tokens
    assert rung == half // 4 * letters.target_bytes.sum() // letters.total_targets


def test_a_search_that_goes_on_has_the_data_of_each_base_that_it_began_with(place):
    begun = opened()
    begun.begin()
    write_messages_jsonl(place / "data.jsonl", toy_conversations(30, seed=9))
    resumed = opened(resume="newest")
    assert resumed.context({}).other_bases == begun.context({}).other_bases
    assert resumed.budget == begun.budget


def test_general_text_is_scored_in_bytes_of_what_every_base_takes_whole(place):
    (place / "general.txt").write_text("ab ab\n" + "ab" * 80 + "\n", encoding="utf-8")  # 160 letters, 80 pairs
    told = []
    prepared = opened("evaluation.general=general.txt", told=told)
    context = prepared.context({})
    letters, pairs = context.base_of("letters").general, context.base_of("pairs").general
    assert [passage.num_bytes for passage in letters] == [passage.num_bytes for passage in pairs] == [5]
    assert letters[0].num_targets > pairs[0].num_targets
    assert any("trials leave out 1 of 2 texts" in text for text in told)
    runners = Runners(context, OneWorker(), Pace())
    runner = runners.of("pairs")
    runner.start("trial", next(trial.spec for trial in sample_trials(prepared.experiment) if trial.branch == "pairs"))
    report = runner.advance()
    kept = EvaluationRecord.read(context.folder, "trial", report.step).metrics["general_loss"]
    assert kept.weights == (5.0,)
    runner.running.scored.eval()
    ids = torch.tensor([pairs[0].token_ids])
    with torch.no_grad():
        nats = float(runner.running.model(input_ids=ids, labels=ids).loss) * (ids.shape[1] - 1)
    assert report.scores["general_loss"] == pytest.approx(nats / math.log(2) / 5, rel=1e-4)
    runners.wait_for_uploads()


def test_rungs_and_evaluations_are_reports_at_shares_of_the_bytes(place):
    rungs = "search.scheduler={name: asha, reduction_factor: 4}"
    prepared = opened("trial.batch.rows_per_step=1", "trial.budget.evaluations=2", rungs)
    context = prepared.context({})
    marks = [-(-prepared.budget // share) for share in (16, 4, 2, 1)]
    assert context.rungs == tuple(marks[:2])
    runners = Runners(context, OneWorker(), Pace())
    for trial in sample_trials(prepared.experiment):
        runner = runners.of(trial.branch)
        runner.start(trial.branch, trial.spec)
        reached = []
        while not (reached and reached[-1].done):
            reached.append(runner.advance())
        spent = [report.target_tokens for report in reached]
        assert len(spent) == 4
        assert all(mark <= now for mark, now in zip(marks, spent, strict=True))
        assert all(now < later for now, later in zip(spent, marks[1:], strict=False))
        del runner
    runners.wait_for_uploads()


def test_scores_of_what_is_said_rank_trials_of_several_bases_as_they_are(place):
    """Each base generates in its own chat format, with its own tokenizer."""
    prepared = opened("search.metric=chrf", "evaluation.generate={conversations: 2, max_new_tokens: 4}")
    runners = Runners(prepared.context({}), OneWorker(), Pace())
    for trial in sample_trials(prepared.experiment):
        runner = runners.of(trial.branch)
        runner.start(trial.branch, trial.spec)
        report = runner.advance()
        assert (report.metric, report.counted) == (prepared.metric, "target bytes")
        assert report.objective == -report.scores["chrf"]
        assert {"chrf", "bits_per_byte"} <= report.scores.keys()
        del runner
    runners.wait_for_uploads()


def test_a_search_with_one_of_two_models_is_no_start_for_one_with_both(place):
    both = opened("search.sampler=tpe")
    both.begin()
    one = "search.space={letters: {method: {kind: full}, optimizer: {learning_rate: {choice: [5.0e-3, 1.0e-2]}}}}"
    start = ("search.sampler=tpe", f"search.start_from=search:{both.search_id}")
    with pytest.raises(InputError, match="one of the two has several base models"):
        opened(one, *start, new=True)
    assert opened(*start, new=True).manifest.started_from == (f"toy/{both.search_id}",)


def test_a_slot_changes_its_base_between_trials_of_two_branches(place):
    """Each trial has its own base's tokens, and the same share of the same bytes."""
    prepared = opened()
    runners = Runners(prepared.context({}), OneWorker(), Pace())
    trials = {trial.branch: trial for trial in sample_trials(prepared.experiment)}
    curves = {}
    for number, branch in enumerate(["letters", "pairs", "letters"]):
        runner = runners.of(branch)
        runner.start(f"trial-{number}", trials[branch].spec)
        assert runner.running.model.config.vocab_size == len(prepared.opened.of_branch(branch).tokenizer)
        report = runner.advance()
        assert (report.counted, report.metric.name) == ("target bytes", "bits_per_byte")
        assert (report.done, report.target_tokens, report.epoch) == (True, prepared.budget, pytest.approx(2.0))
        assert report.objective == report.scores["bits_per_byte"]
        curves.setdefault(branch, []).append(report.eval_loss)
        del runner
    assert curves["letters"][0] == curves["letters"][1] != curves["pairs"][0]
    runners.wait_for_uploads()


def test_the_leaderboard_has_bits_per_byte_only_where_bases_differ():
    plain = history(1, 2.0)
    report = plain.last.model_copy(update={"counted": "target bytes", "scores": {"bits_per_byte": 1.25}})
    several = TrialHistory(started=started("2", number=2), reports=(report,), state="completed")
    assert "bits per byte" not in text_of(leaderboard([plain], budget=10))
    shown = text_of(leaderboard([several], budget=10))
    assert "target bytes" in shown
    assert "1.2500" in shown


def test_a_plan_has_a_base_for_each_branch(place):
    made = plan(load_experiment("toy.yaml"), load_node_table(None))
    assert made.model == "model, pairs"
    assert [(branch.branch, branch.base, branch.trials) for branch in made.branches] == [
        ("letters", "model", 1),
        ("pairs", "pairs", 1),
    ]
    letters, pairs = made.branches
    assert letters.tokens_per_trial > pairs.tokens_per_trial  # the same words in fewer tokens
