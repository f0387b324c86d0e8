"""A rung that is decided by some of the held-out conversations: which these are, and what a trial measures there."""

import math

import pytest
import torch

from components.conversations.chat_formats.rendered import merge_sequences
from components.conversations.target_bytes import BITS_PER_BYTE
from components.data.fixed_sample import fixed_sample
from components.data.prepare import PreparedDataset, prepare
from components.data.rows import rows_of
from components.data.token_store import Entry, TokenStore, write_store
from components.experiment.report_marks import evaluation_marks, passes_evaluation
from components.experiment.spec import DataSpec, GenerateSpec, MetricSpec, ModelSpec
from components.models.load_trained import load_base
from components.planning.workload import workload
from components.records.evaluation_record import ConversationScores, EvaluationRecord
from components.scoring.generation_plan import GenerationPlan
from components.scoring.questions import generation_set
from components.storage.open_folder import folder_at
from components.training.evaluate import all_losses
from components.training.loss import ScoredModel
from components.training.rung_sample import RungSample
from components.training.workers import OneWorker, TorchWorkers
from tests.support.processes import run_together
from tests.support.sessions import FULL, LORA, MAX_TOKENS, Signals, curve, prepared_toy, reports, session
from tests.support.toy import toy_conversations, write_messages_jsonl

SIZE = 2


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return prepared_toy(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def held_out(toy):
    return PreparedDataset.open(toy[1]).eval


def with_rungs(toy, folder, workers=None, **training):
    """A session whose trials pass a rung alone, and then one that is a regular evaluation."""
    dataset = PreparedDataset.open(toy[1])
    training = {"sample": RungSample.of(dataset.eval, SIZE), **training}
    of = session(toy, folder / "checkpoints", workers, training=training)
    planned = 3 * dataset.train.total_targets
    of.rungs = (planned // 16, evaluation_marks(planned, 3)[0])
    return of


def test_a_sample_is_of_the_same_conversations_also_where_others_are_added(toy, held_out, tmp_path):
    """By their text: in the larger split they stand at other places, and in another order."""
    conversations = toy_conversations(60, seed=0)  # the first 25 are those of `toy`
    write_messages_jsonl(tmp_path / "more.jsonl", conversations[::-1])
    data = DataSpec(train=str(tmp_path / "more.jsonl"), eval_fraction=0.15, max_tokens=MAX_TOKENS)
    more = prepare(data, model_path=toy[0], chat_format="auto", storage=folder_at(tmp_path)).eval
    known, before = set(held_out.keys), []
    assert known < set(more.keys)
    for size in range(len(more) + 1):
        chosen = [more.keys[index] for index in fixed_sample(more, size)]
        assert set(before) <= set(chosen)
        old = known & set(chosen)
        assert old == {held_out.keys[index] for index in fixed_sample(held_out, len(old))}
        before = chosen
    assert fixed_sample(held_out, SIZE) == [index for index, _ in generation_set(held_out, SIZE)]


def test_a_sample_that_would_be_all_is_none(held_out):
    assert RungSample.of(held_out, None) is None
    assert RungSample.of(held_out, len(held_out)) is None
    assert len(RungSample.of(held_out, len(held_out) - 1).conversations) == len(held_out) - 1


def test_only_at_a_rung_alone_is_the_sample_all_that_is_evaluated(toy, held_out, tmp_path):
    of = with_rungs(toy, tmp_path)
    alone, both, *regular = reports(of, LORA)
    assert alone.is_sampled
    assert math.isinf(alone.eval_loss)
    assert (alone.eval_num_targets, alone.scores) == (0, {})
    assert alone.rung_objective == alone.rung.eval_loss
    assert not both.is_sampled
    assert both.rung_objective == both.rung.eval_loss != both.eval_loss == both.objective
    assert {report.rung.conversations for report in (alone, both)} == {SIZE}
    assert [report.rung for report in regular] == [None] * 2
    assert all(report.eval_num_targets == held_out.total_targets for report in (both, *regular))
    assert all(report.checkpoint for report in (alone, both, *regular))
    kept = {report.step: EvaluationRecord.read(folder_at(tmp_path), "trial", report.step) for report in (alone, both)}
    assert kept[alone.step] is None
    everything = kept[both.step].metrics
    assert both.rung.eval_loss == everything["eval_loss"].only(of.data.sample.conversations).value
    assert both.rung.scores == {BITS_PER_BYTE: everything[BITS_PER_BYTE].only(of.data.sample.conversations).value}


def test_a_sample_has_the_losses_that_its_conversations_have_among_all(toy, tmp_path):
    """And nothing else of the trial is another one, also after an interruption."""
    whole = with_rungs(toy, tmp_path / "whole", sample=None)
    expected = reports(whole, LORA)
    of = with_rungs(toy, tmp_path / "sampled")
    found = reports(of, LORA)
    assert curve(found)[:-4] == curve(expected)[:-4]  # every step; four evaluations follow, of which all but the first
    assert curve(found)[-3:] == curve(expected)[-3:]
    record = EvaluationRecord.read(folder_at(tmp_path / "whole"), "trial", found[0].step)
    sample = record.metrics["eval_loss"].only(of.data.sample.conversations)
    assert found[0].rung.eval_loss == pytest.approx(sample.value, abs=1e-6)
    assert found[0].rung.eval_loss != pytest.approx(expected[0].eval_loss, abs=1e-3)

    of.start("again", LORA)
    left = of.advance(Signals(preempted=lambda: True))
    later = with_rungs(toy, tmp_path / "sampled")
    later.start("again", LORA)
    later.load(folder_at(left.checkpoint))
    again = [later.advance() for _ in found]
    assert [report.rung for report in again] == [report.rung for report in found]
    assert curve(again) == curve(found)


def test_at_a_rung_alone_the_model_sees_the_sample_and_no_other(toy, held_out, tmp_path):
    of = with_rungs(toy, tmp_path)
    of.start("trial", FULL)
    seen = []
    embeddings = of.running.model.get_input_embeddings()
    embeddings.register_forward_pre_hook(lambda _, ids: None if torch.is_grad_enabled() else seen.append(len(ids[0])))
    for batches, expected in ((1, SIZE), (2, len(held_out))):
        of.advance()
        assert sum(seen[-batches:]) == expected


def test_a_trial_that_ends_at_a_rung_is_evaluated_on_all(toy, tmp_path):
    of = with_rungs(toy, tmp_path)
    of.start("trial", FULL)
    of.running.rungs = (1,)  # passed with the first step
    report = of.advance(Signals(stop_requested=lambda: True))
    assert not report.is_sampled
    assert report.rung is not None
    assert math.isfinite(report.eval_loss)


def as_worker(rank, toy, folder):
    torch.set_num_threads(1)
    of = with_rungs(toy, folder, TorchWorkers(torch.device("cpu")))
    return [report.rung_objective for report in reports(of, FULL)]


def test_workers_share_the_sample_as_they_share_all(toy, tmp_path):
    first, second = run_together(as_worker, toy, tmp_path, folder=tmp_path / "together")
    assert first == second
    alone = [report.rung_objective for report in reports(with_rungs(toy, tmp_path / "alone"), FULL)]
    assert first == pytest.approx(alone, abs=2e-5)


def test_a_conversation_in_separate_rows_is_taken_whole(toy, tmp_path):
    weights = [0.0, 0.0, 1.0, 1.0]
    trees = [merge_sequences([([5, 6, 7, 8], weights), ([5, 6, 9, last], weights)]) for last in (4, 7, 8)]
    entries = [Entry(source="record", rendered=tree, keys=(str(number),)) for number, tree in enumerate(trees)]
    write_store(tmp_path / "eval.arrow", entries)
    store = TokenStore(tmp_path / "eval.arrow")
    rows, sample = rows_of(store, separate=True), RungSample.of(store, 1)
    (index,) = sample.conversations
    loaded = load_base(ModelSpec(path=str(toy[0])))
    scored = ScoredModel(loaded.model, precision="fp32", attention=loaded.attention, device=torch.device("cpu"))
    sizes = {"max_tokens": MAX_TOKENS, "rows_per_batch": 1, "pad_token_id": 0}
    everything = all_losses(scored, rows, OneWorker(), **sizes)
    some = all_losses(scored, rows, OneWorker(), rows=sample.rows_of(rows), **sizes)
    assert len(sample.rows_of(rows)) == 2
    assert [weight > 0 for weight in some.weights] == [n == index for n in range(3)]
    assert some.only([index]).value == pytest.approx(everything.only([index]).value, abs=1e-6)


SAID = MetricSpec(name="chrf", direction="maximize")


@pytest.mark.parametrize("metric", [SAID, MetricSpec()], ids=["search by chrf", "search by loss"])
def test_the_questions_of_the_sample_are_asked_where_the_search_goes_by_the_answers(toy, tmp_path, metric):
    asked = tmp_path / "asked"
    (tmp_path / f"asked_by_{metric.name}.py").write_text(
        "def said(conversations, answers):\n"
        f"    open({str(asked)!r}, 'a').write(f'{{len(answers)}} ')\n"
        "    return [1.0 for _ in answers]\n"
    )
    counting = MetricSpec(name=f"asked_by_{metric.name}:said", direction="maximize")
    generate = GenerateSpec(scores=("chrf", counting), max_new_tokens=8)
    plan = GenerationPlan(generate=generate, working_directory=str(tmp_path))
    of = with_rungs(toy, tmp_path, metric=metric, generation=plan)
    alone, both, *_ = reports(of, FULL)
    by_answers = metric == SAID
    assert ("chrf" in alone.rung.scores, "chrf" in both.rung.scores) == (by_answers, by_answers)
    assert "chrf" in both.scores
    everybody = len(of.data.dataset.eval)
    assert asked.read_text().split() == [str(n) for n in ([SIZE] if by_answers else []) + 3 * [everybody]]
    if by_answers:
        chrf = EvaluationRecord.read(folder_at(tmp_path), "trial", both.step).metrics["chrf"]
        assert both.rung_objective == -chrf.only(of.data.sample.conversations).value
        assert alone.rung_objective == -alone.rung.scores["chrf"]


def test_scores_that_a_sample_has_nothing_of_are_left_out():
    loss = ConversationScores(sums=(3.0, 5.0, 7.0), weights=(1.0, 2.0, 2.0))
    silent = ConversationScores(sums=(1.0, 0.0, 0.0), weights=(1.0, 0.0, 0.0))
    found = RungSample(frozenset({2, 1})).evaluation({"eval_loss": loss, "tool_call": silent})
    assert (found.conversations, found.eval_loss, found.scores) == (2, 3.0, {})


def test_an_evaluation_is_passed_where_its_mark_is_reached_and_not_before():
    marks = evaluation_marks(1000, 7)
    for before, after in [
        (0, 142),
        (0, 143),
        (142, 143),
        (143, 285),
        (143, 286),
        (286, 286),
        (999, 1000),
        (1000, 1142),
    ]:
        assert passes_evaluation(before, after, 1000, 7) == any(before < mark <= after for mark in marks), (
            before,
            after,
        )
    assert passes_evaluation(1000, 1143, 1000, 7)  # of an extended trial


def test_the_plan_counts_the_smaller_evaluations(toy, held_out):
    train = PreparedDataset.open(toy[1]).train
    planned = 3 * train.total_targets
    sizes = {"max_tokens": MAX_TOKENS, "workers": 1, "rungs": (planned // 16, evaluation_marks(planned, 3)[0])}
    without, all_at_rungs, sampled = (
        workload(train, held_out, FULL, **{**sizes, **changes})
        for changes in ({"rungs": ()}, {}, {"sample": RungSample.of(held_out, 1).rows_of(held_out)})
    )
    each = without.evaluated_tokens // 3
    assert all_at_rungs.evaluated_tokens == 4 * each
    assert 3 * each < sampled.evaluated_tokens < 3.5 * each
    assert sampled.evaluated == without.evaluated  # the largest batch is that of the whole split
