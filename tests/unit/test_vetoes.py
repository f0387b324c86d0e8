"""What a candidate must not lose while it wins: guarded scores, and what probes expect. And the gate by other metrics."""

import random

import pytest

from components.errors import VerificationError
from components.experiment.load_experiment import load_experiment
from components.experiment.spec import MetricSpec
from components.records.evaluation_record import ConversationScores
from components.records.general_scores import GeneralScores
from components.registry.forgetting import compare_general
from components.registry.gate import compare_by, decide
from components.registry.probes import Probe
from components.registry.verification_messages import PhaseResult, VerificationReport
from components.registry.vetoes import probes_problem, vetoes_of
from tests.support.experiment_file import EXPERIMENT, problems

LOSS = MetricSpec()
CHRF = MetricSpec(name="chrf", direction="maximize")
STOP = MetricSpec(name="stop_rate", direction="maximize")
COUNT = 60


def each(*values):
    """Scores of COUNT conversations, these in turn."""
    sums = tuple(float(values[place % len(values)]) for place in range(COUNT))
    return ConversationScores(sums=sums, weights=(1.0,) * COUNT)


def general(*sums):
    return GeneralScores(
        sums=tuple(map(float, sums)) * 30,
        num_targets=(10,) * 30 * len(sums),
        num_bytes=(9,) * 30 * len(sums),
        tokens="t",
    )


def report(**fields):
    """A candidate that is clearly better than its base by loss."""
    known = {
        "code": "code",
        "reply": "hello",
        "candidate_sums": (10.0,) * COUNT,
        "base_sums": (30.0,) * COUNT,
        "incumbent_sums": None,
        "incumbent_problem": None,
        "num_targets": (10,) * COUNT,
        "candidate_answers": (),
        "base_answers": (),
    }
    return VerificationReport(**(known | fields))


def decided(found, margins, directions=None, metric=LOSS, probes=()):
    guarded = tuple(vetoes_of(found, margins, directions or {"stop_rate": STOP}, 0.95))
    problem = probes_problem(found, probes)
    return decide(None, found, compare_by(found, metric, 0.95), guarded=guarded, probes_problem=problem)


def test_a_model_that_no_longer_stops_is_vetoed_with_its_numbers():
    found = report(candidate_replies={"stop_rate": each(1, 0)}, base_replies={"stop_rate": each(1)})
    decision = decided(found, {"stop_rate": 0.02})
    assert not decision.passed
    assert decision.reason.startswith(
        "veto: is worse than the base in stop_rate by more than 0.02: 0.5000 against 1.0000"
    )
    assert decided(found, {}).passed  # only what is listed is guarded


def test_a_model_that_forgot_is_vetoed_and_one_within_the_margin_is_not():
    found = report(candidate_general=general(33, 31), base_general=general(30, 29))
    decision = decided(found, {"general_loss": 0.1})
    assert decision.reason.startswith(
        "veto: is worse than the base in general_loss by more than 0.1: 3.2000 against 2.9500"
    )
    passed = decided(found, {"general_loss": 0.5})
    assert passed.passed
    assert "is not worse than the base in general_loss by more than 0.5" in passed.reason


def test_the_veto_and_the_line_on_general_text_say_the_same_interval():
    rng = random.Random(0)
    base = [30 + rng.random() for _ in range(60)]
    forgot = [loss + rng.lognormvariate(0, 1) for loss in base]  # skewed, so its two ends are not equally far
    found = report(candidate_general=general(*forgot), base_general=general(*base))
    (veto,) = vetoes_of(found, {"general_loss": 0.0}, {}, 0.95)
    line = compare_general("base", found.candidate_general, found.base_general, confidence=0.95)
    assert (line.low, line.high) == (-veto.comparison.high, -veto.comparison.low)
    assert line.change - line.low != pytest.approx(line.high - line.change, rel=0.01)


def test_the_incumbent_is_what_must_not_be_lost_where_there_is_one():
    found = report(
        incumbent_sums=(20.0,) * COUNT,
        incumbent_unseen=tuple(range(COUNT)),
        candidate_replies={"stop_rate": each(1)},
        base_replies={"stop_rate": each(0)},
        incumbent_replies={"stop_rate": each(1)},
    )
    (guarded,) = vetoes_of(found, {"stop_rate": 0.0}, {"stop_rate": STOP}, 0.95)
    assert (guarded.comparison.other, guarded.holds) == ("incumbent", True)
    worse = found.model_copy(update={"candidate_replies": {"stop_rate": each(1, 1, 0)}})
    assert not decided(worse, {"stop_rate": 0.1}).passed


def test_conversations_that_the_incumbent_knows_say_nothing():
    losses = tuple(5.0 if place < 30 else 40.0 for place in range(COUNT))  # by heart, and new to it
    found = report(incumbent_sums=losses, incumbent_unseen=tuple(range(30, COUNT)))
    (guarded,) = vetoes_of(found, {"eval_loss": 0.1}, {}, 0.95)
    assert (guarded.comparison.conversations, guarded.holds) == (30, True)


def test_a_guard_that_says_nothing_is_a_veto_with_the_way_out():
    decision = decided(report(), {"json_valid": 0.0})
    assert decision.reason == (
        "veto: registry.gate.no_worse.json_valid: says nothing of these conversations, so it guards nothing; leave it out"
    )


@pytest.mark.parametrize(("own", "passes"), [(each(40, 44), True), (each(30, 20), False)])
def test_the_gate_judges_by_the_metric_of_the_search(own, passes):
    found = report(candidate_replies={"chrf": own}, base_replies={"chrf": each(30, 21)}, base_sums=(1.0,) * COUNT)
    decision = decided(found, {}, metric=CHRF)
    assert decision.passed is passes  # though its loss is higher than the base's
    assert f"{'beats' if passes else 'does not beat'} the base in chrf" in decision.reason


def test_a_metric_that_says_nothing_proves_nothing():
    with pytest.raises(VerificationError, match=r"search.metric=chrf says nothing of the conversations"):
        compare_by(report(), CHRF, 0.95)


PROBES = tuple(
    Probe(messages=({"role": "user", "content": "?"},), expect=expect) for expect in ("Linnet", None, "/^No/")
)


def test_probes_decide_by_what_they_expect_against_the_incumbent_or_the_base():
    found = report(candidate_answers=("linnet", "so", "Yes"), base_answers=("Linnet", "so", "No"))
    assert probes_problem(found, PROBES) == "answers 1 of 2 probes as expected, and the base answers 2"
    assert not decided(found, {}, probes=PROBES).passed
    beside = found.model_copy(update={"incumbent_answers": ("I", "am", "no")})
    assert probes_problem(beside, PROBES) is None


def test_every_probe_is_answered_with_something():
    found = report(candidate_answers=("Linnet", " ", ""), base_answers=("", "", ""))
    assert probes_problem(found, PROBES) == "says nothing to probe 2, 3 of 3"


def test_replies_travel_between_processes():
    result = PhaseResult(code="code", candidate_replies={"chrf": each(1, 2)}, incumbent_answers=("a",))
    assert PhaseResult.model_validate_json(result.model_dump_json()) == result


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "toy.yaml"
    file.write_text(EXPERIMENT)
    return file


def test_what_nobody_measures_guards_nothing(path):
    guards = "registry.gate.no_worse={stop_rat: 0.1, general_loss: 0.1, json_schema: 0}"
    first, second, third = problems(path, guards, "evaluation.general=false")
    assert first.startswith(
        "registry.gate.no_worse.stop_rat: no score has this name; there are eval_loss, general_loss, chrf"
    )
    assert second.startswith("registry.gate.no_worse.general_loss: evaluation.general is false")
    assert third.startswith("registry.gate.no_worse.json_schema: needs evaluation.generate.json_schema")


def test_the_gate_generates_only_what_it_needs(path):
    plain = load_experiment(path, ["evaluation.generate={scores: [chrf, rouge_l], conversations: 5}"])
    assert plain.gate_generation is None
    guarded = load_experiment(path, ["registry.gate.no_worse={stop_rate: 0.02, general_loss: 0.1}"])
    assert [score.name for score in guarded.gate_generation.scores] == ["stop_rate"]
    both = load_experiment(
        path,
        ["search.metric=chrf", "registry.gate.no_worse={stop_rate: 0.02}", "evaluation.generate={conversations: 5}"],
    )
    assert [score.name for score in both.gate_generation.scores] == ["chrf", "stop_rate"]
    assert both.gate_generation.conversations == 5
