"""A third side of the split is for the gate alone: what stands on it is never trained on, never ranks, and never moves."""

import json
import random

import pytest

from components.conversations.messages import Conversation
from components.conversations.readers.data_problems import ConversationError
from components.data.prepare import PreparedDataset, prepare
from components.data.preview_records import totals_of
from components.data.split import read_records
from components.data.split_membership import keys_of, mark_of
from components.experiment.experiment_warnings import experiment_warnings
from components.experiment.load_experiment import load_experiment
from components.experiment.spec import DataSpec
from components.registry.gate import check_report
from components.registry.result import too_few_held_out
from components.registry.verification_messages import VerificationReport
from components.registry.verification_worker import verify
from components.storage.open_folder import folder_at
from tests.support.experiment_file import EXPERIMENT, problems
from tests.support.toy import assistant, save_letter_tokenizer, user, write_messages_jsonl

ENGLISH = "The ferry to the island leaves at seven in the morning and comes back when the tide allows it, {} or later."
CHINESE = "去岛上的渡船每天早上七点出发，什么时候回来要看潮水的情况，一般是{}，也可能会更晚一些，请提前打电话问一问。"


def said(*texts):
    return Conversation(messages=tuple(role(text) for role, text in zip((user, assistant) * 4, texts, strict=False)))


def numbered(count, start=0):
    return [said(f"say {n}", f"{n}") for n in range(start, start + count)]


def split_of(folder, conversations, **data):
    write_messages_jsonl(folder / "data.jsonl", conversations)
    return read_records(DataSpec(**{"train": str(folder / "data.jsonl"), **data})).split()


def keys(conversations):
    return {keys_of(conversation)[0] for conversation in conversations}


def marked(low, high, template=None, count=1):
    """Conversations of the template (numbered ones without) whose marks lie in [low, high)."""
    found, n = [], 0
    while len(found) < count:
        talk = said(f"say {n}", f"{n}") if template is None else said(template.format(f"number {n}"), "noted")
        if low <= mark_of(keys_of(talk), 0) < high:
            found.append(talk)
        n += 1
    return found


# Three sides by one mark


def test_the_verdict_has_the_marks_above_those_of_eval(tmp_path):
    split = split_of(tmp_path, numbered(1000), eval_fraction=0.2, verdict_fraction=0.3)
    for side, low, high in ((split.eval, 0.0, 0.2), (split.verdict, 0.2, 0.5), (split.train, 0.5, 1.0)):
        assert all(low <= mark_of(keys_of(each), 0) < high for each in side)
    assert len(split.train) + len(split.eval) + len(split.verdict) == 1000
    whole = split_of(tmp_path, numbered(1000), eval_fraction=0.2, verdict_fraction=0)
    assert keys(whole.eval) == keys(split.eval)
    assert keys(whole.train) == keys(split.train) | keys(split.verdict)


@pytest.mark.parametrize("seed", range(4))
def test_whatever_is_added_nothing_changes_its_side(tmp_path, seed):
    """Near ones of either side are added too: they go, and the verdict stays whole."""
    generator = random.Random(seed)
    talks = [
        said(ENGLISH.format(n), CHINESE.format(n * n), f"say {n}", str(n)) for n in generator.sample(range(10**9), 40)
    ]
    talks = [*numbered(200), *talks[:3]]
    before = split_of(tmp_path, talks, eval_fraction=0.2)
    near = [said(each.messages[0].content + "!", *(m.content for m in each.messages[1:])) for each in talks[-3:]]
    grown = [*talks, *numbered(generator.randint(1, 100), start=1000), *near]
    generator.shuffle(grown)
    after = split_of(tmp_path, grown, eval_fraction=0.2)
    assert keys(before.verdict) <= keys(after.verdict)
    assert keys(before.eval) - keys(after.eval) <= keys(talks[-3:])
    held_out = keys(after.eval) | keys(after.verdict)
    assert not held_out & keys(before.train)
    assert not keys(after.train) & (keys(before.eval) | keys(before.verdict))
    assert not keys(after.eval) & keys(after.verdict)


def test_conversations_of_a_field_stand_on_one_of_three_sides(tmp_path):
    lines = [
        {
            "messages": [{"role": r, "content": f"{r} {n}"} for r in ("user", "assistant")],
            "customer": n % 50,
            "group": "x",
        }
        for n in range(500)
    ]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = DataSpec(train=str(tmp_path / "data.jsonl"), eval_fraction=0.2, group_by="customer")
    split = read_records(data).split()
    groups = [{each.group for each in side} for side in (split.train, split.eval, split.verdict)]
    assert sum(map(len, groups)) == len(set.union(*groups)) == 50
    assert all(groups)
    assert split.unused_keys == {"group": 500}


def test_a_field_that_groups_must_be_in_every_record_and_may_be_null(tmp_path):
    talk = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    records = [{**talk, "customer": None}, {**talk, "custmer": 1}, talk["messages"], {**talk, "customer": [1]}]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    with pytest.raises(ConversationError) as caught:
        read_records(DataSpec(train=str(tmp_path / "data.jsonl"), group_by="customer"))
    assert [(each.location, each.text.partition(";")[0]) for each in caught.value.problems] == [
        ("line 2", 'has no "customer", by which data.group_by groups conversations (keys: messages, custmer)'),
        ("line 3", "must be an object, not list"),
        ("line 4", '"customer" must be a text or a whole number, not list'),
    ]


# Near ones stand on one side


@pytest.mark.parametrize("template", [ENGLISH, CHINESE], ids=["English", "Chinese"])
def test_near_ones_leave_training_for_eval_and_eval_for_the_verdict(tmp_path, template):
    shares = {"eval_fraction": 0.2, "verdict_fraction": 0.2}
    (of_eval,), (of_verdict,), (of_train,) = (marked(*ends, template) for ends in ((0, 0.2), (0.2, 0.4), (0.4, 1)))
    fill = [*marked(0, 0.2, count=2), *marked(0.2, 0.4, count=2), *marked(0.4, 1, count=2)]
    split = split_of(tmp_path, [*fill, of_eval, of_train], **shares)
    assert (split.sides.near_duplicates, split.sides.eval_leaked) == (1, 0)
    assert keys([of_eval]) <= keys(split.eval)
    assert (len(split.train), len(split.eval), len(split.verdict)) == (2, 3, 2)
    (line,) = split.sides.dropped
    file = tmp_path / "data.jsonl"
    assert line.startswith(f"{file}, line 8: says nearly (0.")
    assert line.endswith(f"what {file}, line 7 says (eval)")
    split = split_of(tmp_path, [*fill, of_eval, of_train, of_verdict], **shares)
    assert (split.sides.near_duplicates, split.sides.eval_leaked) == (1, 1)
    assert keys([of_verdict]) <= keys(split.verdict)
    assert (len(split.train), len(split.eval), len(split.verdict)) == (2, 2, 3)
    equal_only = split_of(tmp_path, [*fill, of_eval, of_train, of_verdict], **shares, near_duplicates=1)
    assert (len(equal_only.train), len(equal_only.eval), len(equal_only.verdict)) == (3, 3, 3)


def test_all_of_training_near_what_is_held_out_is_an_error_with_a_way_out(tmp_path):
    write_messages_jsonl(tmp_path / "eval.jsonl", [said(ENGLISH.format("noon"), "noted")])
    with pytest.raises(ValueError, match=r"none to train on; data\.near_duplicates=1 leaves out only what is"):
        split_of(tmp_path, [said(ENGLISH.format("night"), "noted")], eval=str(tmp_path / "eval.jsonl"))


# Files


def test_a_file_for_the_verdict_is_kept_whole_and_leaves_the_other_sides(tmp_path):
    talks = numbered(40)
    (of_eval,), (of_train,) = marked(0, 0.1), marked(0.1, 1)
    file = tmp_path / "verdict.jsonl"
    write_messages_jsonl(file, [of_eval, of_train, said("another", "one")])
    split = split_of(tmp_path, talks, verdict=str(file))
    assert keys(split.verdict) == keys([of_eval, of_train, said("another", "one")])
    assert (split.sides.leaked, split.sides.eval_leaked) == (1, 1)
    assert keys(split.train) | keys(split.eval) == keys(talks) - keys([of_eval, of_train])
    assert split.verdict_note == "the gate judges by 3 conversations that nothing before it sees (data.verdict)"


def test_of_a_file_for_eval_the_lower_half_judges_if_it_can(tmp_path):
    file = tmp_path / "eval.jsonl"
    write_messages_jsonl(file, numbered(60, start=500))
    split = split_of(tmp_path, numbered(20), eval=str(file))
    assert len(split.train) == 20
    assert keys(split.verdict) == keys([t for t in numbered(60, start=500) if mark_of(keys_of(t), 0) < 0.5])
    assert keys(split.eval) | keys(split.verdict) == keys(numbered(60, start=500))
    whole = split_of(tmp_path, numbered(20), eval=str(file), verdict_fraction=0)
    assert (len(whole.eval), len(whole.verdict)) == (60, 0)


def test_problems_of_all_three_files_are_said_together(tmp_path):
    for name in ("data", "eval", "verdict"):
        (tmp_path / f"{name}.jsonl").write_text('{"messages": []}\n')
    files = {name: str(tmp_path / f"{name}.jsonl") for name in ("eval", "verdict")}
    with pytest.raises(ConversationError) as caught:
        read_records(DataSpec(train=str(tmp_path / "data.jsonl"), **files))
    assert [each.file for each in caught.value.problems] == [str(tmp_path / "data.jsonl"), *files.values()]


# Automatic, where it can decide


@pytest.mark.parametrize(
    ("count", "fraction", "why"),
    [
        (400, 0.1, None),
        (150, 0.1, "0.1 of data.train is less than the 20 conversations like these that can decide"),
        (1000, 0.3, "as large as data.eval_fraction=0.3, it would leave less than half to train on"),
    ],
)
def test_an_automatic_verdict_is_made_where_it_can_decide(tmp_path, count, fraction, why):
    split = split_of(tmp_path, numbered(count), eval_fraction=fraction)
    assert bool(split.verdict) == (why is None)
    assert split.verdict_note.startswith(
        f"the gate judges by {len(split.verdict)}" if why is None else f"no verdict split ({why}): the gate"
    )


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    save_letter_tokenizer(folder)
    return folder


def prepared(folder, tokenizer, conversations, **data):
    write_messages_jsonl(folder / "data.jsonl", conversations)
    spec = DataSpec(train=str(folder / "data.jsonl"), max_tokens=2000, **data)
    return spec, prepare(spec, model_path=tokenizer, chat_format="auto", storage=folder_at(folder), processes=1)


def test_prepared_data_has_three_sides_and_says_so(tmp_path, tokenizer):
    spec, dataset = prepared(tmp_path, tokenizer, numbered(200), eval_fraction=0.2)
    sizes = [len(store) for store in dataset.stores.values()]
    assert sum(sizes) == 200
    assert dataset.judged is dataset.verdict
    assert [dataset.counts[f"{name}_conversations"] for name in ("train", "eval", "verdict")] == sizes
    assert f"{sizes[1]} held out (" in dataset.summary()
    assert f"{sizes[2]} for the verdict (" in dataset.summary()
    assert keys(dataset.verdict.conversation(index) for index in range(sizes[2])) == {
        k for (k,) in dataset.verdict.keys
    }
    assert totals_of(dataset).conversations == 200
    assert PreparedDataset.open(dataset.directory).verdict_digest == dataset.verdict_digest
    assert too_few_held_out(dataset, spec) is None


def test_lengths_that_differ_too_much_make_no_automatic_verdict(tmp_path, tokenizer):
    """One long answer among short ones: many more would be needed, so training keeps them, and what it says stays out."""
    talks = numbered(200)
    answers = (said("tell", "x" * length) for length in range(1000, 1100))
    long = next(each for each in answers if 0.2 <= mark_of(keys_of(each), 0) < 0.4)
    _, dataset = prepared(tmp_path, tokenizer, [*talks, long], eval_fraction=0.2)
    assert dataset.verdict is None
    assert (len(dataset.train) + len(dataset.eval), dataset.judged) == (201, dataset.eval)
    needed = int(dataset.verdict_note.partition("the ")[2].split()[0])
    assert needed > 200
    _, asked = prepared(tmp_path, tokenizer, [*talks, long], eval_fraction=0.2, verdict_fraction=0.2)
    assert (len(asked.verdict), asked.verdict.total_targets > 1000) == (len(asked.judged), True)


def test_too_small_a_verdict_is_said_with_the_fraction_that_would_do(tmp_path, tokenizer):
    spec, dataset = prepared(tmp_path, tokenizer, numbered(200), eval_fraction=0.2, verdict_fraction=0.05)
    problem = too_few_held_out(dataset, spec)
    assert problem.startswith(
        f"{len(dataset.verdict)} conversations of the verdict split are too few to tell a better model"
    )
    enough = float(problem.partition("data.verdict_fraction=")[2].split()[0])
    spec, dataset = prepared(tmp_path, tokenizer, numbered(200), eval_fraction=0.2, verdict_fraction=enough)
    assert (len(dataset.verdict) >= 20, too_few_held_out(dataset, spec)) == (True, None)


# Keys that cannot be meant


def test_bad_values_of_the_split_are_said_together(tmp_path):
    file = tmp_path / "experiment.yaml"
    file.write_text(EXPERIMENT)
    assert problems(file, "data.verdict_fraction=1.5", "data.near_duplicates=0.1", "data.group_by=3") == [
        "data.verdict_fraction: input should be less than 1, not 1.5; or input should be 'auto', not 1.5",
        "data.group_by: input should be a valid string, not 3",
        "data.near_duplicates: input should be greater than or equal to 0.5, not 0.1",
    ]
    assert problems(file, "data.eval_fraction=0.6", "data.verdict_fraction=0.4") == [
        "data: eval_fraction=0.6 and verdict_fraction=0.4 leave nothing to train on: together they must be below 1"
    ]


@pytest.mark.parametrize(
    ("overrides", "remarks"),
    [
        (
            ["data.verdict=v.jsonl", "data.verdict_fraction=0.2"],
            ["verdict_fraction does nothing: data.verdict names what"],
        ),
        (["data.eval=b.jsonl", "data.split_seed=1"], []),
        (
            ["data.eval=b.jsonl", "data.split_seed=1", "data.verdict_fraction=0"],
            ["split_seed does nothing: data.eval names"],
        ),
    ],
)
def test_keys_of_the_split_that_do_nothing_are_said(tmp_path, overrides, remarks):
    (tmp_path / "experiment.yaml").write_text(EXPERIMENT)
    found = experiment_warnings(load_experiment(tmp_path / "experiment.yaml", overrides))
    assert len(found) == len(remarks)
    assert all(remark in each for remark, each in zip(remarks, found, strict=True))


@pytest.mark.parametrize(
    ("share", "key", "found", "enough"),
    [
        ({"eval_fraction": 0.4, "verdict_fraction": 0.001}, "verdict", "takes none", "takes some"),
        (
            {"eval_fraction": 0.5, "verdict_fraction": 0.499},
            "eval",
            "leave none to train on",
            "for both together leaves some",
        ),
    ],
)
def test_an_empty_side_is_an_error_that_names_a_fraction_that_fills_it(tmp_path, share, key, found, enough):
    with pytest.raises(ValueError, match=found) as caught:
        split_of(tmp_path, numbered(8), **share)
    assert str(caught.value).startswith(f"data.{key}_fraction=")
    assert enough in str(caught.value)


# The gate scores it


def test_a_candidate_is_scored_on_what_judges_and_proven_on_eval(asked, trials, tmp_path):
    write_messages_jsonl(tmp_path / "other.jsonl", numbered(30))
    spec = DataSpec(train=str(tmp_path / "other.jsonl"), eval_fraction=0.5, max_tokens=128)
    other = prepare(spec, model_path=trials.model, chat_format="auto", storage=folder_at(tmp_path), processes=1)
    stores = {"judged_store": other.eval.path, "eval_store": trials.dataset.eval.path}
    found = verify(asked("lora", **stores))
    assert found.num_targets == tuple(other.eval.num_targets.tolist())
    assert len(found.base_sums) == len(found.candidate_sums) == len(other.eval)
    assert found.eval_targets == tuple(trials.dataset.eval.num_targets.tolist())
    report = VerificationReport.model_validate(found.model_dump())
    assert report.eval_loss == pytest.approx(trials.trained("lora")[1], abs=1e-6)
    check_report(report, trials.trained("lora")[1], "models:/toy/1")
    base, incumbent = (
        verify(asked("full", phase, incumbent=asked("full").model, **stores)) for phase in ("base", "incumbent")
    )
    assert (len(base.base_sums), base.eval_sums) == (len(other.eval), ())
    assert (len(incumbent.incumbent_sums), incumbent.eval_sums) == (len(other.eval), ())
