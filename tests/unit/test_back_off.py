"""A trial whose rows do not fit into memory computes fewer at once, and stays the same trial."""

import pytest
import torch

from components.records.events import TrialProgressed, replay
from components.reports.leaderboard import leaderboard
from components.reports.search_summary import TrialSummary
from components.training.out_of_memory import RowsExceedMemory
from tests.support.printed import shown
from tests.support.records import progress, started
from tests.support.sessions import FULL, LORA, curve, reports, session, weights

LORA_WITHOUT_DROPOUT = LORA.model_copy(update={"method": LORA.method.model_copy(update={"dropout": 0.0})})


@pytest.mark.parametrize("spec", [FULL, LORA_WITHOUT_DROPOUT], ids=["full", "lora"])
@pytest.mark.parametrize("max_rows", [1, 3])
def test_fewer_rows_at_once_change_no_step_and_no_loss(toy, tmp_path, spec, max_rows):
    whole, fewer = session(toy, tmp_path / "whole"), session(toy, tmp_path / "fewer")
    expected, seen = reports(whole, spec), []
    fewer.start("trial", spec, max_rows=max_rows)
    embeddings = fewer.running.model.get_input_embeddings()
    embeddings.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0]) * module.training))
    found = [fewer.advance() for _ in expected]
    assert curve(found) == pytest.approx(curve(expected), abs=2e-5)
    assert [report.target_tokens for report in found] == [report.target_tokens for report in expected]
    assert {report.max_rows for report in found} == {max_rows}
    assert {report.max_rows for report in expected} == {None}
    assert max(seen) == max_rows
    for name, weight in weights(whole).items():
        torch.testing.assert_close(weights(fewer)[name], weight, rtol=1e-3, atol=1e-4)


def test_a_limit_above_what_the_trial_was_given_changes_nothing(toy, tmp_path):
    of = session(toy, tmp_path)
    of.start("trial", FULL, max_rows=64)
    assert of.running.rows_at_once == FULL.batch.rows_per_micro_batch


def scarce(inputs_of):
    """A device on which two rows fit beside the model, and no third."""

    def refuse(module, inputs):
        if module.training and len(inputs[0]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    return inputs_of.register_forward_pre_hook(refuse)


def test_rows_that_do_not_fit_are_told_from_other_errors(toy, tmp_path):
    of = session(toy, tmp_path)
    of.start("trial", FULL)
    scarce(of.running.model.get_input_embeddings())
    with pytest.raises(RowsExceedMemory, match="OutOfMemoryError: CUDA out of memory"):
        of.advance()
    of.start("trial", FULL, max_rows=2)
    assert of.advance().max_rows == 2


def test_people_see_how_many_rows_fit(tmp_path):
    report = progress(1, 2.0, checkpoint="there", max_rows=2)
    (history,) = replay([started("t"), TrialProgressed(trial_id="t", progress=report, slot="s", time=2.0)]).values()
    assert "2 rows at once for memory" in shown(leaderboard([history], budget=100))
    assert TrialSummary.of(history).max_rows == 2
    assert (history.rows_per_micro_batch, history.started.spec.batch.rows_per_micro_batch) == (2, 8)
