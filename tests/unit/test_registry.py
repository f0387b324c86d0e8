"""No alias points at a model that did not load, talk, and beat what was there before."""

import json
import math
import re

import numpy as np
import pytest
from mlflow.types.llm import ChatMessage, ChatParams

from components.conversations.messages import Message
from components.data.trained_on import TRAINED_ON, write_trained_on
from components.errors import VerificationError
from components.experiment.spec import ModelSpec
from components.inference.score import score
from components.models.load_trained import load_base, load_trained
from components.registry.chat_model import PackagedChatModel
from components.registry.gate import GateDecision, check_report, compare_losses, decide
from components.registry.probes import load_probes
from components.registry.verification_messages import VerificationReport, VerificationRequest
from components.registry.verification_worker import verify
from components.statistics.selection import ChosenFrom, Selection
from tests.support.trials import MAX_TOKENS, cut_short

QUESTION = "say ab"
CHATML_OF_OLD = (
    "{% for message in messages %}<|im_start|>{{ message['role'] + ': ' + message['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant: ' }}{% endif %}"
)

# Probes


def test_probes_are_read_in_order(tmp_path):
    lines = [
        {"messages": [{"role": "user", "content": "你是谁"}], "expect": "Linnet"},
        {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]},
    ]
    path = tmp_path / "probes.jsonl"
    path.write_text("\n\n".join(json.dumps(line, ensure_ascii=False) for line in lines) + "\n", encoding="utf-8")
    first, second = load_probes(path)
    assert (first.messages[0]["content"], first.expect) == ("你是谁", "Linnet")
    assert second.conversation() == [Message(role="system", content="s"), Message(role="user", content="q")]
    assert second.expect is None


def test_all_that_is_wrong_with_a_file_of_probes_is_said_together(tmp_path):
    path = tmp_path / "probes.jsonl"
    path.write_text(
        '{"messages": [{"role": "user", "content": "fine"}]}\n'
        "not json\n"
        '{"messages": [{"role": "user"}], "expected": "x"}\n'
        '{"messages": [{"role": "robot", "content": "q"}]}\n'
        '{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}\n'
        '{"messages": []}\n'
    )
    with pytest.raises(ValueError, match=r"probes\.jsonl: each line must look like") as error:
        load_probes(path)
    lines = str(error.value).splitlines()[1:]
    assert [line.split(":")[0] for line in lines] == ["  line 2", *["  line 3"] * 2, "  line 4", "  line 5", "  line 6"]
    assert "messages.0.role" in lines[3]
    assert lines[4:] == [
        '  line 5: the last message is from "assistant", and must be the user\'s question',
        '  line 6: the last message is from "nobody", and must be the user\'s question',
    ]


def test_a_file_of_probes_that_is_missing_or_empty_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"registry\.probes=.*gone\.jsonl: cannot be read"):
        load_probes(tmp_path / "gone.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="holds no probe"):
        load_probes(tmp_path / "empty.jsonl")


# The packaged model, in this process


@pytest.fixture(scope="module")
def packaged(trials):
    with pytest.warns(FutureWarning):  # MLflow would rather see another kind; see packaged_model.offer
        model = PackagedChatModel()
    model.loaded = load_base(ModelSpec(path=str(trials.model)))
    return model


def test_a_completion_says_whether_it_was_cut_and_what_it_used(packaged):
    messages = [ChatMessage(role="system", content="be kind"), ChatMessage(role="user", content=QUESTION)]
    answer = packaged.predict(None, messages, ChatParams(temperature=0.0, max_tokens=3))
    prompt = packaged.loaded.chat_format.prompt(
        [Message(role="system", content="be kind"), Message(role="user", content=QUESTION)]
    )
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "length"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(prompt), 3)


def test_a_streamed_completion_is_the_same_text(packaged):
    messages, params = [ChatMessage(role="user", content=QUESTION)], ChatParams(temperature=0.0, max_tokens=6)
    whole = packaged.predict(None, messages, params).choices[0].message.content
    chunks = list(packaged.predict_stream(None, messages, params))
    assert "".join(chunk.choices[0].delta.content for chunk in chunks) == whole
    assert chunks[-1].choices[0].finish_reason is not None


@pytest.mark.parametrize(
    ("messages", "params", "reason"),
    [
        ([], {}, "messages: empty"),
        ([ChatMessage(role="robot", content="x")], {}, "message 1 is from 'robot'; roles are system, user"),
        ([ChatMessage(role="user", content=[{"type": "image_url"}])], {}, "message 1 has 'image_url' as part 1"),
        ([ChatMessage(role="user", content="x")], {"n": 2, "stop": ["."]}, "stop, n: not supported"),
    ],
)
def test_what_cannot_be_honored_is_refused(packaged, messages, params, reason):
    with pytest.raises(ValueError, match=reason):
        packaged.predict(None, messages, ChatParams(**params))


# The decision


def proof_answer(**fields):
    """Of a candidate that is clearly better than its base, on thirty conversations of ten targets."""
    fields = {
        "code": "code",
        "reply": "hello",
        "candidate_sums": (10.0,) * 30,
        "base_sums": (30.0,) * 30,
        "incumbent_sums": None,
        "incumbent_problem": None,
        "num_targets": (10,) * 30,
        "candidate_answers": (),
        "base_answers": (),
        **fields,
    }
    return VerificationReport(**fields)


@pytest.mark.parametrize("trained", [1.0, 1.03, 0.97])  # 300 targets: 0.01 and 0.029
def test_a_loss_after_loading_that_is_the_trained_one_but_for_rounding_is_proof(trained):
    check_report(proof_answer(), trained, "models:/toy/1")


@pytest.mark.parametrize("trained", [1.05, 0.95])
def test_another_loss_after_loading_is_no_proof(trained):
    with pytest.raises(
        VerificationError, match=rf"models:/toy/1 scores 1.0000 nats .* and scored {trained}00 in training"
    ):
        check_report(proof_answer(), trained, "models:/toy/1")


@pytest.mark.parametrize("sums", [(math.nan,) + (10.0,) * 29, (math.inf,) + (10.0,) * 29])
def test_a_loss_that_is_not_finite_is_no_proof(sums):
    with pytest.raises(VerificationError, match="nats per target after loading"):
        check_report(proof_answer(candidate_sums=sums), 1.0, "models:/toy/1")


def test_a_model_that_answers_nothing_is_no_proof():
    with pytest.raises(VerificationError, match="models:/toy/1 loads, but answers nothing"):
        check_report(proof_answer(reply=" \n"), 1.0, "models:/toy/1")


@pytest.mark.parametrize(
    ("incumbent_sums", "incumbent_problem", "promoted", "reason"),
    [
        (None, None, True, "beats the base"),
        ((20.0,) * 30, None, True, "beats the base .*; beats the incumbent"),
        ((10.0,) * 30, None, False, "does not beat the incumbent"),
        (None, "cannot be loaded here: gone", False, "version 7 holds the alias and cannot be loaded here: gone; move"),
    ],
)
def test_the_alias_is_for_what_beats_base_and_incumbent(incumbent_sums, incumbent_problem, promoted, reason):
    proof = proof_answer(incumbent_sums=incumbent_sums, incumbent_problem=incumbent_problem)
    incumbent = "7" if incumbent_sums or incumbent_problem else None
    decision = decide(incumbent, proof, compare_losses(proof, 0.95))
    assert decision.passed == promoted
    assert re.match(reason, decision.reason)


def against_incumbent(unseen, sums=(20.0,) * 30, **fields):
    proof = proof_answer(incumbent_sums=sums, incumbent_unseen=unseen, **fields)
    verdicts = compare_losses(proof, 0.95)
    decision = decide("7", proof, verdicts)
    return verdicts[1], decision.passed, decision.reason


def test_the_incumbent_is_compared_on_what_it_was_not_trained_on():
    """It knows the last five by heart, which would have saved it."""
    sums = (11.0,) * 25 + (0.0,) * 5
    found, promoted, reason = against_incumbent(tuple(range(25)), sums)
    assert (found.conversations, found.other_loss, found.state, promoted) == (25, 1.1, "better", True)
    assert reason.endswith("; the incumbent was trained on 5 more of the held-out ones, which do not count")
    assert against_incumbent(tuple(range(30)), sums)[1] is False


def test_an_incumbent_of_unknown_training_data_is_compared_on_all():
    found, promoted, reason = against_incumbent(None)
    assert (found.conversations, promoted) == (30, True)
    assert reason.endswith(
        "; nothing says what the incumbent was trained on, so it was compared on all held-out conversations, some of which it"
        " may know"
    )


@pytest.mark.parametrize("left", [0, 1, 19])
def test_where_too_few_are_new_to_the_incumbent_nothing_is_decided(left):
    found, promoted, reason = against_incumbent(tuple(range(left)))
    assert (found.state, found.conversations, promoted) == ("too few to tell", left, False)
    assert reason == (
        f"too few to tell whether it beats the incumbent: 20 held-out conversations needed, there"
        f" {'is' if left == 1 else 'are'} {left}: add conversations, or hold out more of them (data.eval_fraction,"
        f" data.eval); the incumbent was trained on {30 - left} more of the held-out ones, which do not count"
    )


def test_the_first_candidate_needs_as_many_conversations_to_beat_the_base():
    proof = proof_answer(candidate_sums=(10.0,) * 6, base_sums=(30.0,) * 6, num_targets=(10,) * 6)
    verdicts = compare_losses(proof, 0.95)
    assert [found.state for found in verdicts] == ["too few to tell"]
    assert decide(None, proof, verdicts) == GateDecision(passed=False, reason=verdicts[0].sentence())


def test_a_choice_among_many_on_the_same_conversations_asks_for_more_and_is_said():
    """Lucky on some conversations, as the best of 24 may be; the choice of one among two of its own kind changes little."""
    luck = np.random.default_rng(0).normal(size=(24, 30))
    lucky = 10.0 - (luck - luck.mean(axis=1, keepdims=True) + 0.45)
    proof = proof_answer(candidate_sums=tuple(lucky[0]), base_sums=(10.0,) * 30)
    assert decide(None, proof, compare_losses(proof, 0.95)).passed
    chosen_from = ChosenFrom(evaluations=24, trials=6)
    verdicts = compare_losses(proof, 0.95, Selection(sums_CN=lucky, chosen_from=chosen_from))
    decision = decide(None, proof, verdicts)
    assert not decision.passed
    assert decision.reason.startswith("does not beat the base on held-out conversations: ")
    assert decision.reason.endswith(" at 95%; the best of 24 evaluations of 6 trials, corrected for that choice")
    assert verdicts[0].chosen_from == chosen_from
    assert compare_losses(proof, 0.95, Selection(sums_CN=lucky, chosen_from=chosen_from)) == verdicts


def test_each_of_two_comparisons_says_how_sure_both_are_together():
    reason = against_incumbent(tuple(range(30)))[2]
    assert reason.count(" at 95% (90% for both intervals together)") == 2
    proof = proof_answer()
    assert "together" not in compare_losses(proof, 0.95)[0].sentence()


def test_what_was_chosen_from_is_compared_on_the_same_conversations_as_the_incumbent():
    """The candidates differ on the last five conversations only, which the incumbent knows."""
    sums = np.full((4, 30), 10.0)
    sums[1:, 25:] = np.random.default_rng(0).normal(10.0, 50.0, size=(3, 5))
    selection = Selection(sums_CN=sums, chosen_from=ChosenFrom(evaluations=4, trials=4))
    proof = proof_answer(
        incumbent_sums=tuple(10.5 + 0.1 * (i % 3) for i in range(30)), incumbent_unseen=tuple(range(25))
    )
    corrected, plain = compare_losses(proof, 0.95, selection)[1], compare_losses(proof, 0.95)[1]
    assert (corrected.low, corrected.high) == pytest.approx((plain.low, plain.high), rel=0.05)


def verify_incumbent(trials, packaged, incumbent):
    """Beside a candidate with the chat format of `packaged`. The incumbent is in a folder, as a version lies there."""
    request = VerificationRequest(
        phase="incumbent",
        model=trials.folder,
        incumbent=incumbent,
        judged_store=trials.dataset.eval.path,
        max_tokens=MAX_TOKENS,
        rows_per_batch=4,
        probes=(),
        digest=packaged.loaded.chat_format.digest(),
    )
    return verify(request)


def test_an_incumbent_is_scored_on_the_candidates_conversations(trials, packaged, tmp_path):
    trials.packaged("full", tmp_path / "artifacts" / "package")
    found = verify_incumbent(trials, packaged, tmp_path)
    assert found.incumbent_problem is None
    assert sum(found.incumbent_sums) / trials.dataset.eval.total_targets == pytest.approx(
        trials.trained("full")[1], abs=1e-6
    )


def test_an_incumbent_whose_chat_format_gives_other_tokens_is_scored_in_its_own(trials, packaged, tmp_path):
    package = trials.packaged("full", tmp_path / "artifacts" / "package")
    template = package / "tokenizer" / "chat_template.jinja"
    template.write_text(CHATML_OF_OLD)
    found = verify_incumbent(trials, packaged, tmp_path)
    store = trials.dataset.eval
    everything = tuple(range(len(store)))
    assert (found.incumbent_problem, found.incumbent_by_bytes, found.incumbent_note) == (None, everything, None)
    # It never saw this format: it is scored in it all the same, as a person would who loads it.
    anew = score(load_trained(package), [store.conversation(index) for index in everything], max_tokens=MAX_TOKENS)
    assert found.incumbent_sums == pytest.approx([loss.loss_sum for loss in anew.losses], rel=1e-5)
    cut_short(package)
    problem = verify_incumbent(trials, packaged, tmp_path).incumbent_problem
    assert problem.startswith("cannot be loaded here: ")


def test_an_incumbent_whose_chat_format_is_another_one_with_equal_tokens_is_compared(trials, packaged, tmp_path):
    package = trials.packaged("full", tmp_path / "artifacts" / "package")
    template = package / "tokenizer" / "chat_template.jinja"
    template.write_text(
        "{# the same, written anew #}" + CHATML_OF_OLD.replace("+ ': ' +", "+ '\\n' +").replace(": '", "\\n'")
    )
    found = verify_incumbent(trials, packaged, tmp_path)
    assert (found.incumbent_problem, len(found.incumbent_sums)) == (None, len(trials.dataset.eval))


def test_an_incumbent_that_does_not_say_whole_what_it_was_trained_on_is_not_compared(trials, packaged, tmp_path):
    package = trials.packaged("full", tmp_path / "artifacts" / "package")
    write_trained_on(trials.dataset.train, package)
    assert verify_incumbent(trials, packaged, tmp_path).incumbent_unseen == tuple(range(len(trials.dataset.eval)))
    (package / TRAINED_ON).write_text((package / TRAINED_ON).read_text()[:100])
    problem = verify_incumbent(trials, packaged, tmp_path).incumbent_problem
    assert problem.startswith("cannot be loaded here: ")
    assert problem.endswith("trained_on.txt: cut short or changed, so nothing says what the version was trained on")
