"""Whoever holds the alias when it moves was beaten, in a real registry whose aliases others move meanwhile."""

import itertools
import re
import threading

import pytest
from mlflow.exceptions import MlflowException

from components.errors import VerificationError
from components.experiment.spec import DataSpec, ExperimentSpec, ModelSpec, RegistrySpec, SearchSpec
from components.records.events import replay
from components.registry.candidate import RegistryCandidate
from components.registry.promotion import register_best
from components.registry.verification_messages import VerificationReport
from components.registry.versions import ensure_registered_model
from components.tracking.mlflow_access import open_store
from components.tracking.mlflow_runs import SearchRuns
from tests.support.trials import MAX_TOKENS

CONVERSATIONS = 60
STAMP = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC, \S+"
numbers = itertools.count(1)


@pytest.fixture(scope="module")
def uri(tmp_path_factory):
    return f"sqlite:///{tmp_path_factory.mktemp('registry')}/mlflow.db"  # which takes seconds to make


class Contest:
    """A candidate for a registered model of its own, and other versions, whose losses are what a test says."""

    def __init__(self, uri, trials, model):
        self.uri, self.model = uri, model
        self.client = open_store(self.uri)
        experiment = ExperimentSpec(
            name="toy",
            model=ModelSpec(path=str(trials.model)),
            data=DataSpec(train="conversations.jsonl", max_tokens=MAX_TOKENS),
            search=SearchSpec(space={"lora": {"method": {"kind": "lora"}}}),
            registry=RegistrySpec(name=model),
        )
        runs = SearchRuns(self.client, self.uri, experiment, f"search-{model}")
        records = trials.records("lora", f"trial-{model}")
        for record in records:
            runs.apply(record)
        (self.trial,) = replay(records).values()
        self.candidate = RegistryCandidate(
            runs=runs,
            uri=self.uri,
            experiment=experiment,
            trial=self.trial,
            report=self.trial.best,
            dataset=trials.dataset,
        )
        self.loss = 10 * self.trial.best.eval_loss
        self.losses = {}
        self.asked = []
        self.client.create_registered_model(model)

    def version(self, loss, **tags):
        """Another version, which scores `loss` nats a conversation more than the candidate."""
        made = self.client.create_model_version(self.model, "file:///nowhere", tags=tags)
        self.losses[str(made.version)] = self.loss + loss
        return str(made.version)

    def enter(self):
        """The candidate as it stands after it was packaged and before it is proven."""
        return self.version(0.0, **self.candidate.identity)

    def hold(self, number):
        self.client.set_registered_model_alias(self.model, "champion", number)

    def holder(self, alias="champion"):
        holder = self.client.get_registered_model(self.model).aliases.get(alias)
        return None if holder is None else str(holder)

    def tags(self, number):
        return self.client.get_model_version(self.model, number).tags

    def proof(self, incumbent, problem=None):
        return VerificationReport(
            code="code",
            reply="hello",
            candidate_sums=_each(self.loss),
            base_sums=_each(self.loss + 60),
            incumbent_sums=None if incumbent is None or problem else _each(self.losses[incumbent]),
            incumbent_problem=problem,
            num_targets=(10,) * CONVERSATIONS,
            candidate_answers=(),
            base_answers=(),
        )

    def register(self, meanwhile=lambda contest, round_: None, replace=None):
        """`meanwhile` happens during each proof; `asked` is which incumbent each proof was about."""

        def execute(work):
            _, incumbent, _ = work.args
            number = incumbent and incumbent.rpartition("/")[2]
            self.asked.append(number)
            meanwhile(self, len(self.asked))
            return self.proof(number)

        candidate = self.candidate
        return register_best(
            candidate.runs,
            candidate.uri,
            candidate.experiment,
            self.trial,
            candidate.dataset,
            (),
            execute,
            replace=replace,
        )


def _each(loss):
    """Around a loss, so that an interval has a width."""
    return tuple(loss + 0.01 * (index % 5 - 2) for index in range(CONVERSATIONS))


@pytest.fixture
def contest(uri, trials):
    return Contest(uri, trials, f"model-{next(numbers)}")


def test_a_champion_that_appears_during_the_proof_is_compared_before_the_alias_moves(contest):
    better, number = contest.version(-5.0), contest.enter()
    result = contest.register(lambda contest, round_: contest.hold(better))
    assert contest.asked == [None, better]
    assert not result.promoted
    assert result.reason.startswith("does not beat the incumbent")
    assert contest.holder() == better
    assert contest.holder("challenger") == number
    assert contest.tags(number)["turnwise.gate_passed"] == "false"
    assert "turnwise.replaces" not in contest.tags(number)


def test_a_weaker_champion_that_appears_during_the_proof_is_replaced_by_name(contest):
    weaker, number = contest.version(5.0), contest.enter()
    result = contest.register(lambda contest, round_: contest.hold(weaker))
    assert (result.promoted, contest.holder()) == (True, number)
    assert [verdict.other for verdict in result.verdicts] == ["base", "incumbent"]
    assert contest.tags(number)["turnwise.replaces"] == weaker
    assert contest.tags(number)["turnwise.gate_passed"] == "true"


def test_the_alias_previous_is_left_with_the_version_that_the_gate_replaced(contest):
    weaker, number = contest.version(5.0), contest.enter()
    contest.hold(weaker)
    contest.register()
    assert (contest.holder(), contest.holder("previous")) == (number, weaker)
    tags = contest.tags(number)
    assert tags["turnwise.before.champion"] == weaker
    assert re.fullmatch(
        rf"{STAMP}: champion in place of version {weaker}: it passed the gate \(turnwise\.gate says how\)",
        tags["turnwise.promoted_because"],
    )


def test_the_first_champion_has_nobody_before_it(contest):
    number = contest.enter()
    contest.register()
    assert (contest.holder(), contest.holder("previous")) == (number, None)
    assert "turnwise.before.champion" not in contest.tags(number)
    assert ": champion, which no version held: " in contest.tags(number)["turnwise.promoted_because"]


def test_a_proven_version_says_what_was_seen_of_it_champion_or_not(contest):
    contest.hold(contest.version(-5.0))
    number = contest.enter()
    assert not contest.register().promoted
    loss = f"{contest.trial.best.eval_loss:.4f}"
    assert contest.tags(number)["turnwise.proven"].endswith(
        f"answers, and scores the eval loss of training: {loss}, there {loss}"
    )


def test_version_and_model_are_described_and_a_persons_own_text_stays(contest):
    number = contest.enter()
    result = contest.register()
    model = contest.client.get_registered_model(contest.model).description
    assert f"models:/{contest.model}@champion" in model
    version = contest.client.get_model_version(contest.model, number).description
    assert version.startswith(f"**It passed the gate and got the alias `champion`**: {result.reason}.\n")
    counts = contest.candidate.dataset.counts
    assert f"| data, train | {counts['train_conversations']} conversations, " in version
    contest.client.update_registered_model(contest.model, "ask Ann")
    contest.client.update_model_version(contest.model, number, "the one of July")
    contest.register()
    assert contest.client.get_registered_model(contest.model).description == "ask Ann"
    assert contest.client.get_model_version(contest.model, number).description == "the one of July"


def test_a_replaced_champion_leaves_no_tag_of_the_first_comparison(contest):
    weaker, better, number = contest.version(5.0), contest.version(-5.0), contest.enter()
    contest.hold(weaker)
    result = contest.register(lambda contest, round_: contest.hold(better))
    assert contest.asked == [weaker, better]
    assert (result.promoted, contest.holder()) == (False, better)
    assert "turnwise.replaces" not in contest.tags(number)
    assert contest.tags(number)["turnwise.against_incumbent"] == result.reason


def test_an_alias_that_is_deleted_during_the_proof_leaves_the_base_to_beat(contest):
    better, number = contest.version(-5.0), contest.enter()
    contest.hold(better)
    result = contest.register(
        lambda contest, round_: contest.client.delete_registered_model_alias(contest.model, "champion"),
    )
    assert (result.promoted, contest.holder()) == (True, number)
    assert [verdict.other for verdict in result.verdicts] == ["base"]
    assert "turnwise.against_incumbent" not in contest.tags(number)


def test_a_champion_deleted_during_verification_leaves_the_base_to_beat(contest):
    better, number = contest.version(-5.0), contest.enter()
    contest.hold(better)
    result = contest.register(lambda contest, round_: contest.client.delete_model_version(contest.model, better))
    assert (result.promoted, contest.holder()) == (True, number)
    assert contest.asked == [better]


def test_an_alias_that_never_rests_goes_to_nobody_here(contest):
    others = [contest.version(5.0) for _ in range(3)]
    number = contest.enter()
    result = contest.register(lambda contest, round_: contest.hold(others[round_ - 1]))
    assert not result.promoted
    assert result.reason == ("the alias champion went from version to version while this one was compared, 3 times")
    assert contest.holder() == others[2]
    assert contest.holder("challenger") == number


def test_a_candidate_that_is_deleted_during_the_proof_is_not_proven(contest):
    number = contest.enter()
    with pytest.raises(VerificationError, match=f"{contest.model} version {number} was deleted while it was proven"):
        contest.register(lambda contest, round_: contest.client.delete_model_version(contest.model, number))
    assert contest.holder() is None


def test_an_alias_that_was_set_by_hand_is_no_verdict(contest):
    number = contest.enter()
    contest.hold(number)
    contest.proof = lambda incumbent, problem=None: Contest.proof(contest, None).model_copy(
        update={"base_sums": _each(contest.loss - 5)}
    )
    result = contest.register()
    assert not result.promoted
    assert result.reason.startswith("does not beat the base")
    assert result.reason.endswith("it holds the alias champion because somebody gave it that, not this gate")
    assert contest.holder() == number  # people may; it is not taken away
    assert contest.holder("challenger") is None


def test_an_alias_that_was_set_by_hand_is_kept_with_a_reason_if_the_gate_agrees(contest):
    number = contest.enter()
    contest.hold(number)
    result = contest.register()
    assert result.promoted
    assert result.reason.startswith("beats the base")
    assert contest.tags(number)["turnwise.gate_passed"] == "true"


def test_what_the_gate_let_through_before_stays_through_with_the_reason_of_that_time(contest):
    weaker, number = contest.version(5.0), contest.enter()
    contest.hold(weaker)
    first = contest.register()
    again = contest.register()
    assert (again.promoted, again.reason) == (True, first.reason)
    assert "beats the incumbent" in again.reason
    assert contest.holder() == number


def test_a_refusal_is_not_forgotten_because_the_alias_was_set_by_hand_afterwards(contest):
    better, number = contest.version(-5.0), contest.enter()
    contest.hold(better)
    assert not contest.register().promoted
    contest.hold(number)
    again = contest.register()
    assert again.reason.startswith("beats the base")  # decided anew: there is nobody else to beat
    assert "does not beat" not in again.reason


def test_an_incumbent_that_cannot_be_scored_is_a_reason_and_not_the_end(contest):
    holder, number = contest.version(5.0), contest.enter()
    contest.hold(holder)
    proof = contest.proof
    contest.proof = lambda incumbent: proof(incumbent, "does not fit into the memory of the machine that proves it")
    result = contest.register()
    assert not result.promoted
    assert result.reason.startswith(f"version {holder} holds the alias and does not fit into the memory")
    assert result.reason.endswith('or search with --replace "REASON"')
    assert contest.holder() == holder
    assert contest.holder("challenger") == number
    replaced = contest.register(replace="a new tokenizer")
    assert (replaced.promoted, contest.holder()) == (True, number)
    assert contest.tags(number)["turnwise.replaced_because"] == "a new tokenizer"
    assert replaced.reason.endswith("it is replaced uncompared because somebody said so: a new tokenizer")


def test_a_reason_to_replace_does_not_spare_a_comparison_that_is_possible(contest):
    better, number = contest.version(-5.0), contest.enter()
    contest.hold(better)
    result = contest.register(replace="because")
    assert (result.promoted, contest.holder()) == (False, better)
    assert result.reason.startswith("does not beat the incumbent")
    assert "turnwise.replaced_because" not in contest.tags(number)


@pytest.mark.parametrize(
    "error", [RuntimeError("does not fit into the memory"), ValueError("eval.arrow is not the file")]
)
def test_a_proof_that_fails_leaves_a_reason_and_no_alias(contest, error):
    number = contest.enter()

    def fails(contest, round_):
        raise error

    with pytest.raises(VerificationError, match=str(error)):
        contest.register(fails)
    assert (contest.holder(), contest.holder("challenger")) == (None, None)
    assert contest.tags(number)["turnwise.gate"] == f"not proven: {error}"
    assert "turnwise.proven" not in contest.tags(number)
    assert contest.tags(number)["turnwise.gate_passed"] == "false"


def test_two_searches_that_make_the_registered_model_at_once_both_find_it_made(contest):
    contest.client.delete_registered_model(contest.model)
    start, failures = threading.Barrier(4), []

    def make():
        start.wait()
        try:
            ensure_registered_model(contest.candidate)
        except (MlflowException, VerificationError) as error:
            failures.append(error)

    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert contest.client.get_registered_model(contest.model).name == contest.model


def test_a_prompt_that_took_the_name_during_the_search_is_named(contest):
    contest.client.delete_registered_model(contest.model)
    contest.client.register_prompt(name=contest.model, template="Hello {{name}}")
    with pytest.raises(
        VerificationError, match=re.escape(f"registry.name={contest.model}: a prompt of this registry has that name")
    ):
        ensure_registered_model(contest.candidate)
