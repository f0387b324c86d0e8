"""What a model has forgotten: its loss on text that no search trains on, measured and compared passage by passage."""

import json
import math

import pytest
import torch
from tokenizers.processors import TemplateProcessing

from components.data.general_text import encode_passages, load_general_text
from components.data.passage import Passage
from components.errors import InputError
from components.experiment.spec import (
    GENERAL_LOSS,
    DataSpec,
    EvaluationSpec,
    ExperimentSpec,
    ModelSpec,
    SearchSpec,
    StorageSpec,
)
from components.models.load_trained import load_base
from components.records.evaluation_record import EvaluationRecord
from components.records.general_scores import GeneralScores
from components.records.manifest import LAYOUT, SearchManifest
from components.registry.forgetting import compare_general
from components.registry.verification_worker import verify
from components.reports.leaderboard import general_loss
from components.search.prepare_search import GENERAL, _general_texts
from components.storage.open_folder import folder_at
from components.training.general_loss import score_general_text
from tests.support.records import history
from tests.support.sessions import FULL, reports, session
from tests.support.toy import START, letter_tokenizer

TEXTS = ("The sea was calm.", "你好吗", "a")


def with_start():
    """The letter tokenizer, which puts <|im_start|> before every text, as others put a bos token."""
    tokenizer = letter_tokenizer()
    start = tokenizer.convert_tokens_to_ids(START)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{START} $A", special_tokens=[(START, start)]
    )
    return tokenizer, start


# The text


def test_the_shipped_text_is_short_passages_in_english_and_chinese():
    texts = load_general_text(True)
    chinese = [text for text in texts if any("\u4e00" <= letter <= "\u9fff" for letter in text)]
    assert (len(texts), len(chinese), len(set(texts))) == (40, 16, 40)
    assert all(40 < len(text.encode()) < 400 for text in texts)
    assert load_general_text(False) == ()


@pytest.mark.parametrize(
    ("name", "content"),
    [("own.txt", "one\n\n  two \n"), ("own.jsonl", '{"text": "one", "id": 1}\n\n{"text": "two"}\n')],
)
def test_a_file_of_ones_own_has_a_passage_on_each_line(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    assert load_general_text(str(tmp_path / name)) == ("one", "two")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        (
            "own.jsonl",
            '{"text": "one"}\n{"words": "two"}\nthree\n{"text": " "}\n',
            "in line 2, 3, 4; each line is a text",
        ),
        ("own.txt", "\n \n", "holds no text"),
        ("gone.txt", None, "cannot be read"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_with_its_name(tmp_path, name, content, words):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(InputError) as refused:
        load_general_text(str(tmp_path / name))
    assert str(refused.value).startswith(f"evaluation.general={tmp_path / name}: ")
    assert words in str(refused.value)


def test_the_first_token_is_scored_only_behind_one_that_the_tokenizer_puts_there():
    plain, (marked, start) = letter_tokenizer(), with_start()
    ids = plain.encode("the sea")
    assert encode_passages(["the sea"], plain, max_tokens=64) == (
        Passage(token_ids=tuple(ids), first_target=1, num_bytes=7),
    )
    assert encode_passages(["the sea"], marked, max_tokens=64) == (
        Passage(token_ids=(start, *ids), first_target=1, num_bytes=7),
    )
    assert encode_passages(["the sea"], marked, max_tokens=64)[0].num_targets == 7


def test_a_text_that_is_too_long_is_cut_and_compared_by_token_only():
    cut, whole, *nothing = encode_passages(["the sea", "你好", "a"], letter_tokenizer(), max_tokens=4)
    assert (len(cut.token_ids), cut.num_bytes) == (4, 0)
    assert (len(whole.token_ids), whole.num_bytes) == (2, 6)
    assert nothing == []  # a single token that nothing predicts


def test_the_loss_is_that_of_each_next_token_without_a_chat_template(tiny_model):
    base = load_base(ModelSpec(path=str(tiny_model)), device=torch.device("cpu"))
    scores = score_general_text(base, TEXTS, max_tokens=64, rows_per_batch=2)
    assert scores.num_targets == (16, 2)
    for text, loss_sum in zip(TEXTS[:2], scores.sums, strict=True):
        ids = torch.tensor([base.tokenizer.encode(text)])
        expected = base.model(input_ids=ids, labels=ids).loss * (ids.shape[1] - 1)
        assert loss_sum == pytest.approx(float(expected.detach()), abs=1e-4)
    assert scores.loss == sum(scores.sums) / 18
    assert score_general_text(base, (), max_tokens=64, rows_per_batch=2) is None


# In a trial


def test_a_trial_is_scored_on_it_once_at_its_last_evaluation(toy, tmp_path):
    runner = session(toy, tmp_path / "checkpoints")
    plain = [progress.eval_loss for progress in reports(runner, FULL, "without")]
    passages = encode_passages(TEXTS, letter_tokenizer(), max_tokens=64)
    runner.data = type(runner.data)(
        dataset=runner.data.dataset, max_tokens=runner.data.max_tokens, pad_token_id=0, general=passages
    )
    *earlier, last = reports(runner, FULL, "with")
    assert [progress.eval_loss for progress in (*earlier, last)] == plain
    assert all(GENERAL_LOSS not in progress.scores for progress in earlier)
    runner.running.scored.eval()
    with torch.no_grad():
        sums = []
        for passage in passages:
            ids = torch.tensor([passage.token_ids])
            sums.append(float(runner.running.model(input_ids=ids, labels=ids).loss) * passage.num_targets)
    assert last.scores[GENERAL_LOSS] == pytest.approx(sum(sums) / 18, abs=1e-4)
    kept = EvaluationRecord.read(folder_at(tmp_path), "with", last.step).metrics[GENERAL_LOSS]
    assert kept.sums == pytest.approx(sums, abs=1e-4)
    assert kept.weights == (16.0, 2.0)


def test_the_leaderboard_shows_the_last_one_that_is_finite():
    trial = history(1, 0.9, 0.8)
    with_scores = [
        report.model_copy(update={"scores": {GENERAL_LOSS: value}})
        for report, value in zip(trial.reports, (3.0, 3.5), strict=True)
    ]
    assert general_loss(trial) is None
    assert general_loss(trial.model_copy(update={"reports": tuple(with_scores)})) == 3.5
    diverged = with_scores[1].model_copy(update={"scores": {GENERAL_LOSS: math.nan}})
    assert general_loss(trial.model_copy(update={"reports": (with_scores[0], diverged)})) is None


def test_a_search_that_goes_on_keeps_the_text_that_it_began_with(tmp_path):
    (tmp_path / "own.txt").write_text("one\ntwo\n")
    experiment = ExperimentSpec(
        name="toy",
        model=ModelSpec(path="model"),
        data=DataSpec(train="data.jsonl"),
        search=SearchSpec(space={"lora": {"method": {"kind": "lora"}}}),
        evaluation=EvaluationSpec(general=str(tmp_path / "own.txt")),
        storage=StorageSpec(path=str(tmp_path / "runs")),
    )
    manifest = SearchManifest(search_id="one", experiment=experiment, created=1.0, prepared="", budget=1, layout=LAYOUT)
    assert _general_texts(experiment, None) == _general_texts(experiment, manifest) == ("one", "two")
    (experiment.folder / "one").write_text(GENERAL, json.dumps(["one", "two"]))
    (tmp_path / "own.txt").write_text("three\n")
    assert _general_texts(experiment, manifest) == ("one", "two")
    assert _general_texts(experiment, None) == ("three",)


# In a verdict


def scores_of(sums, tokens="same", targets=10, num_bytes=40):
    count = len(sums)
    return GeneralScores(
        sums=tuple(sums), num_targets=(targets,) * count, num_bytes=(num_bytes,) * count, tokens=tokens
    )


def test_a_rise_is_said_with_its_interval_over_passages():
    base = [29.0 + 0.1 * (number % 5) for number in range(40)]
    candidate = [loss + 1.5 + 0.02 * (number % 3) for number, loss in enumerate(base)]
    found = compare_general("base", scores_of(candidate), scores_of(base), confidence=0.95)
    assert found.sentence().startswith("general text: 3.072 nats per token against the base's 2.920: +0.152 [+0.15")
    assert found.low < found.change < found.high
    assert found.change == pytest.approx(0.1 * (1.5 + 0.02 * sum(number % 3 for number in range(40)) / 40))


def test_where_nothing_has_changed_no_bound_has_a_sign():
    same = scores_of([29.0 + 0.1 * (number % 5) for number in range(40)])
    found = compare_general("base", same, same, confidence=0.95)
    assert found.sentence().endswith("+0.000 [+0.000, +0.000] at 95%")


def test_models_with_other_tokens_are_compared_in_bits_per_byte_of_whole_passages():
    one = scores_of([math.log(2) * 40, math.log(2) * 40, 5.0]).model_copy(update={"num_bytes": (40, 40, 0)})
    other = scores_of([math.log(2) * 20, math.log(2) * 30, 5.0], tokens="others", targets=7)
    found = compare_general("incumbent", one, other, confidence=0.95)
    assert (found.unit, found.passages) == ("bits per byte", 2)
    assert (found.candidate_loss, found.other_loss) == (pytest.approx(1.0), pytest.approx(0.625))


def test_what_was_not_scored_is_not_compared():
    assert compare_general("base", None, scores_of([1.0, 2.0]), confidence=0.95) is None
    assert compare_general("base", scores_of([1.0, 2.0]), None, confidence=0.95) is None


def test_a_verification_scores_candidate_base_and_incumbent_on_it(asked, versions, trials):
    found = verify(asked("lora", general=TEXTS))
    base = verify(asked("lora", "base", general=TEXTS)).base_general
    assert found.base_general.sums == pytest.approx(base.sums, abs=1e-4)
    assert found.candidate_general.tokens == base.tokens
    assert found.candidate_general.sums != pytest.approx(base.sums, abs=1e-2)
    digest = verify(asked("lora")).digest
    beside = verify(asked("lora", "incumbent", incumbent=versions / "full", digest=digest, general=TEXTS))
    assert beside.incumbent_general.sums == verify(asked("full", general=TEXTS)).candidate_general.sums
    assert json.loads(found.model_dump_json())["candidate_general"]["num_targets"] == [16, 2]
    assert verify(asked("lora")).candidate_general is None
