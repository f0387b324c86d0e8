"""What MLflow's pages say of versions: the verdict, the losses, the data, and commands that work."""

import re
import shlex

import pytest

from components.experiment.load_experiment import load_experiment
from components.experiment.spec import DataSpec, ExperimentSpec, ModelSpec, SearchSpec
from components.registry.chat_model import INPUTS
from components.registry.descriptions import MOST_LETTERS, VersionFacts, describe_model, describe_version, may_replace
from components.statistics.paired_bootstrap import Comparison
from workflows import chat, registry, serve, tune


def against(other, loss, *, beats=True):
    return Comparison(
        other=other,
        candidate_loss=1.25,
        other_loss=loss,
        difference=loss - 1.25,
        low=0.5,
        high=None,
        confidence=0.95,
        beats=beats,
        family=2,
    )


def facts(**changes):
    told = {
        "name": "support",
        "number": "7",
        "alias": "champion",
        "promoted": True,
        "reason": "beats the base; beats the incumbent",
        "comparisons": (against("base", 3.5), against("incumbent", 2.0)),
        "experiment": "toy",
        "search_id": "20261128-100000",
        "search_run": "0123456789abcdef",
        "method": "lora",
        "base_model": "org/model",
        "varied": {"method.rank": 8, "optimizer.learning_rate": 0.00123456},
        "data": "data.jsonl",
        "data_digest": "abcdef0123456789",
        "counts": {"train_conversations": 1200, "train_targets": 34567, "eval_conversations": 30, "eval_targets": 900},
    }
    return VersionFacts(**told | changes)


def test_a_versions_page_has_the_verdict_the_losses_the_data_and_what_was_drawn():
    text = describe_version(facts())
    assert text.startswith(
        "**It passed the gate and got the alias `champion`**: beats the base; beats the incumbent.\n\n"
        "| against | metric | this version | the other | better by | interval at 95 % |\n"
        "| --- | --- | --- | --- | --- | --- |\n"
        "| base | eval_loss, nats per target | 1.2500 | 3.5000 | +2.2500 | +0.5000 to unbounded |\n"
        "| incumbent | eval_loss, nats per target | 1.2500 | 2.0000 | +0.7500 | +0.5000 to unbounded |\n"
    )
    for row in (
        "| method | lora on `org/model` |",
        "| hyperparameters | rank 8  learning_rate 0.00123 |",
        "| data | `data.jsonl`, digest `abcdef012345` |",
        "| data, train | 1,200 conversations, 34,567 targets |",
        "| data, verdict | none |",
        "| search | `20261128-100000` of `toy`, run `0123456789abcdef` |",
    ):
        assert row in text.splitlines()
    refused = describe_version(facts(promoted=False, reason="does not beat the base"))
    assert refused.startswith("**It did not pass the gate**: does not beat the base.\n")


def test_the_commands_of_both_pages_are_those_of_the_programs():
    model = describe_model("support", "champion", "toy", INPUTS)
    found = {}
    for line in re.findall(r"^python workflows/(.+)$", describe_version(facts()) + "\n" + model, re.MULTILINE):
        program, *arguments = shlex.split(line)
        parser = {"chat.py": chat, "serve.py": serve, "registry.py": registry, "tune.py": tune}[program].make_parser()
        found.setdefault(program, []).append(parser.parse_args(arguments))
    assert [given.model for given in found["chat.py"]] == ["models:/support/7", "models:/support@champion"]
    assert [given.verb for given in found["registry.py"]] == ["show", "list", "rollback"]


def test_an_experiment_that_was_logged_with_a_search_can_be_searched_again(tmp_path):
    """experiment.json of the search's run, as the page says."""
    experiment = ExperimentSpec(
        name="toy",
        model=ModelSpec(path="somewhere"),
        data=DataSpec(train="conversations.jsonl"),
        search=SearchSpec(space={"lora": {"method": {"kind": "lora"}}}),
    )
    (tmp_path / "experiment.json").write_text(experiment.model_dump_json(exclude={"tracking"}))
    assert load_experiment(tmp_path / "experiment.json", []) == experiment


def test_a_models_page_explains_its_aliases_and_every_input():
    text = describe_model("support", "prod", "toy", INPUTS)
    assert {"prod", "previous", "challenger", *INPUTS} <= set(re.findall(r"^\| (\w+) \|", text, re.MULTILINE))
    assert "models:/support@prod" in text


@pytest.mark.parametrize("odd", ["a|b", "a`b", "x" * 9000])
def test_a_page_stays_a_page_and_fits_mlflows_column_whatever_names_say(odd):
    text = describe_version(facts(reason=odd, base_model=odd, data=odd, experiment=odd, search_id=odd))
    assert len(text) <= MOST_LETTERS
    (line,) = [line for line in text.splitlines() if line.startswith("| method |")]
    assert len(re.findall(r"(?<!\\)\|", line)) == 3
    assert text.count("`") % 2 == 0


def test_a_text_of_ours_is_replaced_and_one_of_a_person_stays():
    assert all(map(may_replace, (None, "", " \n", describe_version(facts()), describe_model("a", "b", "c", {}))))
    assert not may_replace("our support model; ask Ann")
