"""Losses of different tokenizers and chat formats compare by the bytes of what the assistant says."""

import json
import math

import numpy as np
import pytest

from components.conversations.chat_formats import load_chat_format, with_thoughts
from components.conversations.messages import Conversation, Message
from components.conversations.target_bytes import bits_per_byte, target_bytes
from components.data.prepare import PreparedDataset, prepare
from components.data.same_words import shared_sources
from components.experiment.spec import BudgetSpec, ChatFormatSpec, DataSpec, ModelSpec
from components.inference.score import compare_scores, score
from components.models.load_trained import load_base
from components.registry.gate import compare_losses
from components.registry.verification_messages import VerificationReport, VerificationRequest
from components.registry.verification_worker import verify
from components.statistics.selection import ChosenFrom, Selection
from components.storage.open_folder import folder_at
from tests.support.sessions import FULL, reports, session
from tests.support.template_kinds import KINDS
from tests.support.toy import (
    assistant,
    letter_tokenizer,
    pair_tokenizer,
    tiny_model_directory,
    toy_conversations,
    user,
    write_messages_jsonl,
)
from tests.support.trials import MAX_TOKENS, Trials
from workflows import evaluate

CALL = {"id": "c1", "function": {"name": "天气", "arguments": '{"city": "北京"}'}}


@pytest.mark.parametrize(
    ("messages", "options", "expected"),
    [
        ([user("12345"), assistant(" abc\n")], {}, 3),  # blanks around it are the template's
        ([user("1"), assistant("你好")], {}, 6),
        ([user("1"), assistant("ab"), user("2"), assistant("cde")], {}, 5),
        ([user("1"), assistant("ab"), user("2"), assistant("cde")], {"turns": 1}, 2),  # truncated
        ([user("1"), assistant("ab", 0.0), user("2"), assistant("cde")], {"turns": 1}, 3),
        ([user("1"), assistant("ab", 2.0)], {}, 2),
        ([user("1"), Message(role="assistant", content="ab", reasoning_content="why")], {}, 5),
        ([user("1"), Message(role="assistant", content="ab", reasoning_content="why")], {"thoughts": False}, 2),
        ([user("1"), assistant("<think>\nwhy\n</think>\n\nab")], {}, 5),
        ([user("1"), assistant("<think>\nwhy\n</think>\n\nab")], {"thoughts": False}, 2),
        # {"name": "天气", "arguments": {"city": "北京"}}: 4 x 3 bytes and 39 others
        ([user("1"), Message(role="assistant", content="", tool_calls=(CALL,))], {}, 51),
    ],
)
def test_the_bytes_of_what_is_scored_are_counted_by_hand(messages, options, expected):
    assert target_bytes(Conversation(messages=tuple(messages)), **options) == expected


def test_bits_per_byte_of_one_conversation_by_hand(toy):
    """A trained model's nats of one conversation, as the store has them, and the bytes of its answers."""
    model, prepared, _ = toy
    dataset = PreparedDataset.open(prepared)
    loaded = load_base(ModelSpec(path=str(model)), "auto")
    talk = dataset.eval.conversation(0)
    answers = [message.content for message in talk.messages if message.role == "assistant"]
    assert dataset.eval.target_bytes[0] == sum(map(len, answers))  # ASCII
    one = score(loaded, [talk])
    # A letter is a token here, and each answer has a stop: by hand, nats x targets / ln 2 / letters.
    targets = sum(map(len, answers)) + len(answers)
    assert one.num_targets == targets
    assert one.bits_per_byte == pytest.approx(one.loss * targets / math.log(2) / sum(map(len, answers)))
    assert f"nats per target ({one.bits_per_byte:.4f} bits per byte) over" in one.sentence()


# Two tokenizers, two chat formats


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """A base whose tokenizer makes other tokens of the same words."""
    folder = tmp_path_factory.mktemp("pairs")
    tiny_model_directory(folder, tokenizer=pair_tokenizer())
    return load_base(ModelSpec(path=str(folder)))


def test_models_of_two_tokenizers_are_compared_in_bits_per_byte(toy, pairs):
    letters = load_base(ModelSpec(path=str(toy[0])))
    talks = toy_conversations(30)
    one, two = score(letters, talks), score(pairs, talks)
    assert one.num_targets > two.num_targets
    found = compare_scores(one, two, name="letters", other_name="pairs")
    assert (found.unit, found.conversations, found.note) == ("bits per byte", 30, "")
    assert found.candidate_loss == pytest.approx(one.bits_per_byte)
    assert found.other_loss == pytest.approx(two.bits_per_byte)
    assert "bits per byte, difference" in found.sentence()
    assert compare_scores(one, one, name="letters", other_name="letters").unit == "nats per target"


def test_what_is_not_the_same_words_for_both_is_left_out_for_both_and_counted(toy, pairs):
    """One conversation that a format refuses, and one that is truncated for one tokenizer only."""
    letters = load_base(ModelSpec(path=str(toy[0])))
    talks = toy_conversations(30)
    thinking = Message(role="assistant", content="ab", reasoning_content="why")  # their template shows no thoughts
    refused = Conversation(messages=(user("1"), thinking), source="refused")
    long = Conversation(messages=(user("1"), assistant("ab"), user("2"), assistant("abcd" * 40)), source="long")
    data = [refused, long, *talks]
    one, two = (score(model, data, max_tokens=150, leave_out=True) for model in (letters, pairs))
    assert (list(one.left_out), one.target_bytes[0], two.target_bytes[0]) == ([0], 2, 162)
    found = compare_scores(one, two, name="letters", other_name="pairs")
    assert found.conversations == 30
    assert found.note == "2 of 32 conversations left out: not the same words for both"
    with pytest.raises(ValueError, match="refused: message 2"):
        score(letters, data)
    alone = [score(model, [long], max_tokens=150) for model in (letters, pairs)]
    with pytest.raises(
        ValueError, match="letters and pairs have no conversation of which both can score the same words"
    ):
        compare_scores(*alone, name="letters", other_name="pairs")


def test_evaluate_says_the_unit(toy, tmp_path, pairs, capsys):
    write_messages_jsonl(tmp_path / "data.jsonl", toy_conversations(30))
    arguments = [str(toy[0]), "--against", str(pairs.model.name_or_path), "--data", str(tmp_path / "data.jsonl")]
    assert evaluate.main([*arguments, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["verdict"]["unit"] == "bits per byte"
    assert told["bits_per_byte"] == pytest.approx(told["verdict"]["candidate_loss"])


@pytest.mark.parametrize("trained", [True, False])
def test_a_format_scores_thoughts_as_the_candidate_s_does(trained):
    """So that an incumbent that was trained with another data.train_on_reasoning is asked for the same words."""
    kind = KINDS["thinking_switch"]
    made = load_chat_format(kind.tokenizer(), ChatFormatSpec(train_on_reasoning=not trained))
    other = with_thoughts(made, trained)
    talk = Conversation(messages=(user("hi"), Message(role="assistant", content="yo", reasoning_content="now")))
    wanted = load_chat_format(kind.tokenizer(), ChatFormatSpec(train_on_reasoning=trained))
    assert other.render(talk) == wanted.render(talk) != made.render(talk)
    assert (other.scores_thoughts, made.scores_thoughts) == (trained, not trained)


# Incumbents


def test_an_incumbent_of_another_tokenizer_is_scored_on_the_same_words(trials, tmp_path):
    """As its own trial scored them: the two searches hold out the same conversations."""
    other = Trials(tmp_path / "other", tokenizer=pair_tokenizer())
    other.packaged("full", tmp_path / "incumbent" / "artifacts" / "package")
    request = VerificationRequest(
        phase="incumbent",
        model=trials.folder,
        incumbent=tmp_path / "incumbent",
        judged_store=trials.dataset.eval.path,
        max_tokens=MAX_TOKENS,
        rows_per_batch=4,
        probes=(),
    )
    found, own = verify(request), other.dataset.eval
    assert found.incumbent_problem is None
    assert found.incumbent_by_bytes == tuple(range(len(trials.dataset.eval)))
    assert sum(found.incumbent_sums) / own.total_targets == pytest.approx(other.trained("full")[1], abs=1e-5)
    few = verify(request.model_copy(update={"max_tokens": int(own.lengths.max()) - 2}))
    longest = int((own.lengths >= own.lengths.max() - 1).sum())  # the end of the template is no loss
    assert len(few.incumbent_by_bytes) == len(own) - longest
    assert few.incumbent_note == f"left out for both: {longest} are too long for it"
    none = verify(request.model_copy(update={"max_tokens": 8}))
    assert none.incumbent_problem.startswith("has no held-out conversation in common with the candidate; left out")


def test_the_gate_compares_bits_per_byte_of_what_both_have():
    """By hand: 20 nats against 30 nats of 16 bytes each, on the conversations that both have and neither knows."""
    report = VerificationReport(
        code="code",
        reply="hello",
        candidate_sums=(20.0,) * 30,
        base_sums=(40.0,) * 30,
        incumbent_sums=(0.0,) * 2 + (30.0,) * 28,
        incumbent_problem=None,
        incumbent_unseen=tuple(range(25)),
        incumbent_by_bytes=tuple(range(2, 30)),
        incumbent_note="left out for both: 2 are too long for it",
        num_targets=(10,) * 30,
        target_bytes=(16,) * 30,
        candidate_answers=(),
        base_answers=(),
    )
    base, incumbent = compare_losses(report, 0.95)
    assert (base.unit, base.conversations, base.candidate_loss) == ("nats per target", 30, 2.0)
    assert (incumbent.unit, incumbent.conversations, incumbent.beats) == ("bits per byte", 23, True)
    assert incumbent.candidate_loss == pytest.approx(20 / math.log(2) / 16)
    assert incumbent.difference == pytest.approx(10 / math.log(2) / 16)
    assert incumbent.note == (
        "the incumbent was trained on 5 more of the held-out ones, which do not count; left out for both: 2 are too long for"
        " it"
    )


# In a report


def test_a_report_has_bits_per_byte_beside_nats(toy, tmp_path):
    dataset = PreparedDataset.open(toy[1])
    (report,) = reports(
        session(toy, tmp_path), FULL.model_copy(update={"budget": BudgetSpec(epochs=1.0, evaluations=1)})
    )
    nats = report.eval_loss * report.eval_num_targets
    assert report.scores["bits_per_byte"] == pytest.approx(nats / math.log(2) / dataset.eval.target_bytes.sum())
    assert dataset.counts["eval_target_bytes"] == dataset.eval.target_bytes.sum()
    assert bits_per_byte(1.0, 0) is None


# The same words for several base models


def test_what_is_too_long_for_one_tokenizer_is_left_out_for_all(tmp_path):
    """Of conversations of 1 to 40 pairs, those beyond 60 letters with their prompts are cut for the letters only."""
    talks = [
        Conversation(messages=(user(f"say {n}"), assistant("ok"), user("more"), assistant("ab" * n)))
        for n in range(1, 41)
    ]
    write_messages_jsonl(tmp_path / "data.jsonl", talks)
    data = DataSpec(train=str(tmp_path / "data.jsonl"), eval_fraction=0.3, max_tokens=80)
    folders = {name: tmp_path / name for name in ("letters", "pairs")}
    letter_tokenizer().save_pretrained(folders["letters"])
    pair_tokenizer().save_pretrained(folders["pairs"])

    def prepared(name, shared=None):
        storage = folder_at(tmp_path)
        return prepare(data, model_path=folders[name], chat_format="auto", storage=storage, shared=shared, processes=1)

    alone = [prepared(name) for name in folders]
    assert shared_sources([alone[0], alone[0]]) is None
    assert alone[0].counts["truncated"] > alone[1].counts["truncated"]
    shared = shared_sources(alone)
    both = [prepared(name, shared) for name in folders]
    assert shared_sources(both) is None
    for split in ("train", "eval"):
        one, two = (getattr(dataset, split) for dataset in both)
        assert [one.source(i) for i in range(len(one))] == [two.source(i) for i in range(len(two))]
        assert one.target_bytes.tolist() == two.target_bytes.tolist()
        assert one.total_targets > two.total_targets
    left = sum(len(getattr(alone[0], split)) - len(getattr(both[0], split)) for split in ("train", "eval"))
    assert both[0].counts["not_for_all"] == left > 0
    assert f"{left} left out, as another base model has other words of them" in both[0].summary()
    assert both[0].digest != alone[0].digest


def test_all_bases_have_a_verdict_split_or_none_of_them(tmp_path):
    """Answers are equally long in letters; in pairs some are half as long, and these say too little for a verdict of 22."""
    talks = [Conversation(messages=(user(f"say {n}"), assistant(("abcd" if n % 3 else "efgh") * 6))) for n in range(90)]
    write_messages_jsonl(tmp_path / "data.jsonl", talks)
    data = DataSpec(train=str(tmp_path / "data.jsonl"), eval_fraction=0.2, max_tokens=120)
    folders = {name: tmp_path / name for name in ("letters", "pairs")}
    letter_tokenizer().save_pretrained(folders["letters"])
    pair_tokenizer().save_pretrained(folders["pairs"])

    def prepared(shared=None):
        storage = folder_at(tmp_path)
        return [
            prepare(data, model_path=folder, chat_format="auto", storage=storage, shared=shared, processes=1)
            for folder in folders.values()
        ]

    alone = prepared()
    assert [dataset.verdict is None for dataset in alone] == [False, True]
    shared = shared_sources(alone)
    assert len(shared) == 90
    both = prepared(shared)
    assert [len(dataset.verdict) for dataset in both] == [22, 22]
    assert shared_sources(both) is None


def test_the_gate_of_a_search_over_several_bases_compares_with_both_in_bits_per_byte():
    """Bytes are no multiple of targets; what the candidate was chosen from is in bits. Base and incumbent score the same."""
    others = tuple(40.0 + index % 3 for index in range(30))
    sums = np.full((4, 30), 20.0 / math.log(2))
    sums[1:] += np.random.default_rng(0).normal(0.0, 40.0, size=(3, 30))
    selection = Selection(sums_CN=sums, chosen_from=ChosenFrom(evaluations=4, trials=4))
    report = VerificationReport(
        code="code",
        reply="hello",
        candidate_sums=(20.0,) * 30,
        base_sums=others,
        incumbent_sums=others,
        incumbent_problem=None,
        incumbent_unseen=tuple(range(30)),
        num_targets=(10,) * 15 + (20,) * 15,
        target_bytes=(16,) * 30,
        candidate_answers=(),
        base_answers=(),
    )
    plain = compare_losses(report, 0.95)
    assert [found.unit for found in plain] == ["nats per target"] * 2
    base, incumbent = compare_losses(report, 0.95, by_bytes=True)
    assert (base.unit, base.conversations) == (incumbent.unit, 30) == ("bits per byte", 30)
    assert base.difference == pytest.approx(21 / math.log(2) / 16)
    corrected = compare_losses(report, 0.95, selection, by_bytes=True)
    assert corrected[0].low < base.low
    assert corrected[1].model_dump(exclude={"other"}) == corrected[0].model_dump(exclude={"other"})
    assert (incumbent.low, incumbent.high) == (base.low, base.high)
