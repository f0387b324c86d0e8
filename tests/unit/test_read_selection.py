"""What a trial kept of its evaluations, conversation by conversation, is what its best checkpoint was chosen from."""

import json

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

from components.conversations.chat_formats.rendered import merge_sequences
from components.data.prepare import PreparedDataset
from components.data.rows import rows_of
from components.data.token_store import Entry, TokenStore, write_store
from components.experiment.spec import BatchSpec, ModelSpec
from components.models.load_trained import load_base
from components.records.evaluation_record import EvaluationRecord
from components.records.events import TrialHistory
from components.registry.gate import compare_losses
from components.registry.verification_messages import VerificationReport
from components.search.read_selection import read_selection
from components.statistics.selection import ChosenFrom
from components.storage.open_folder import folder_at
from components.training.evaluate import all_losses, score
from components.training.loss import ScoredModel
from components.training.workers import OneWorker, TorchWorkers
from tests.support import records
from tests.support.sessions import FULL, MAX_TOKENS, prepared_toy, reports, session

SMALL = FULL.model_copy(update={"batch": BatchSpec(rows_per_step=4, rows_per_micro_batch=1)})


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return prepared_toy(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def search(toy, tmp_path_factory):
    """(its folder, the history of its one trial of three evaluations, the weights of its conversations)."""
    folder = tmp_path_factory.mktemp("search")
    progress = reports(session(toy, folder / "checkpoints"), FULL)
    history = TrialHistory(started=records.started("trial"), reports=tuple(progress), state="completed")
    return folder_at(folder), history, PreparedDataset.open(toy[1]).eval.num_targets.tolist()


def test_every_evaluation_is_kept_and_has_the_loss_that_was_reported(search):
    folder, history, weights = search
    selection = read_selection(folder, [history], weights)
    assert selection.chosen_from == ChosenFrom(evaluations=3, trials=1, missing=0)
    losses = selection.sums_CN.sum(axis=1) / sum(weights)
    assert losses == pytest.approx([report.eval_loss for report in history.reports])
    assert len(set(losses)) == 3


def test_the_gate_corrects_for_the_evaluations_that_were_kept(search):
    folder, history, weights = search
    selection = read_selection(folder, [history], weights)
    sums = tuple(selection.sums_CN[-1])
    report = VerificationReport(
        code="code", reply="hello", candidate_sums=sums, base_sums=tuple(selection.sums_CN[0]), incumbent_sums=None,
        incumbent_problem=None, num_targets=tuple(weights), candidate_answers=(), base_answers=(),
    )  # fmt: skip
    (found,) = compare_losses(report, 0.95, selection)
    assert found.chosen_from == ChosenFrom(evaluations=3, trials=1)
    assert found.low is not None


@pytest.mark.parametrize("fault", ["gone", "damaged", "of other conversations"])
def test_an_evaluation_whose_record_is_of_no_use_counts_as_missing(search, tmp_path, fault):
    folder, history, weights = search
    for report in history.reports:
        EvaluationRecord.read(folder, "trial", report.step).write(folder_at(tmp_path), "trial", report.step)
    file = tmp_path / "evaluations" / "trial" / f"{history.reports[1].step:08d}.json"
    if fault == "gone":
        file.unlink()
    elif fault == "damaged":
        file.write_text(file.read_text()[:40])
    else:
        record = json.loads(file.read_text())
        record["metrics"]["eval_loss"]["weights"][0] += 1
        file.write_text(json.dumps(record))
    selection = read_selection(folder_at(tmp_path), [history], weights)
    assert (selection.chosen_from.evaluations, selection.chosen_from.missing, selection.tests) == (3, 1, 3)
    assert len(selection.sums_CN) == 2


def test_a_search_that_kept_nothing_still_says_how_many_were_looked_at(search, tmp_path):
    _, history, weights = search
    selection = read_selection(folder_at(tmp_path), [history], weights)
    assert selection.chosen_from == ChosenFrom(evaluations=3, trials=1, missing=3)
    assert selection.sums_CN.shape == (0, len(weights))


def test_one_evaluation_is_no_choice_and_a_diverged_trial_none(search):
    folder, history, weights = search
    diverged = records.history(2, float("inf")).model_copy(update={"started": records.started("diverged")})
    one = history.model_copy(update={"reports": history.reports[:1]})
    assert read_selection(folder, [one, diverged], weights) is None
    assert read_selection(folder, [history, diverged], weights).chosen_from.evaluations == 3


def train_as_worker(rank, toy, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    reports(session(toy, folder / "checkpoints", TorchWorkers(torch.device("cpu"))), SMALL)
    dist.destroy_process_group()


def test_two_workers_keep_what_one_keeps(toy, search, tmp_path):
    folder, history, _ = search
    multiprocessing.spawn(train_as_worker, args=(toy, tmp_path), nprocs=2)
    for report in history.reports:
        one = EvaluationRecord.read(folder, "trial", report.step).metrics["eval_loss"]
        two = EvaluationRecord.read(folder_at(tmp_path), "trial", report.step).metrics["eval_loss"]
        assert two.weights == one.weights
        assert two.sums == pytest.approx(one.sums, rel=1e-4)


def test_a_tree_is_kept_as_its_separate_rows_are(toy, tmp_path):
    """Two answers to one beginning, the second of which no longer shows the thought of the first."""
    beginning, thought = [4, 5, 6, 7], [8, 9]
    sequences = [
        ([*beginning, *thought, 10, 11], [0.0] * 4 + [1.0] * 4),
        ([*beginning, 10, 11, 12, 13], [0.0] * 6 + [1.0] * 2),
    ]
    write_store(tmp_path / "store.arrow", [Entry(source=name, rendered=merge_sequences(sequences)) for name in "ab"])
    store = TokenStore(tmp_path / "store.arrow")
    assert store.has_forks
    loaded = load_base(ModelSpec(path=str(toy[0])))
    scored = ScoredModel(loaded.model, precision="fp32", attention=loaded.attention, device=torch.device("cpu"))
    kept = [
        all_losses(scored, rows, OneWorker(), max_tokens=MAX_TOKENS, rows_per_batch=2, pad_token_id=toy[2])
        for rows in (store, rows_of(store, separate=True))
    ]
    assert kept[0].weights == kept[1].weights == (6.0, 6.0)
    assert kept[0].sums == pytest.approx(kept[1].sums, rel=1e-5)
    verified = score(loaded, store, max_tokens=MAX_TOKENS, rows_per_batch=2)
    assert kept[0].sums == pytest.approx([loss.loss_sum for loss in verified], rel=1e-5)
    assert np.isfinite(kept[0].sums).all()
