"""A model's chat format goes with it: into checkpoints, packages and exports, into tags, and from flags into programs."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
from transformers import AutoTokenizer

from components.api import load_model
from components.conversations.chat_formats import load_chat_format
from components.conversations.chat_formats.named_templates import templates_in_use
from components.conversations.format_facts import date_remarks, format_facts
from components.conversations.load_format import format_spec_in
from components.conversations.messages import Conversation
from components.data.comparable_conversations import find_render_differences
from components.data.prepare import prepare
from components.experiment.load_experiment import load_experiment
from components.experiment.spec import ChatFormatSpec, DataSpec, FullMethod, MetricSpec, ModelSpec, TrialSpec
from components.models.base.context import context_of
from components.models.base.reference import BaseReference
from components.models.digest import model_digest
from components.models.load_trained import load_base_of, load_trained, package
from components.registry.candidate import RegistryCandidate
from components.registry.checked_export import ExportRequest, export_model
from components.search.prepare_search import prepare_search
from components.storage.open_folder import folder_at
from tests.support.agent import ROWS
from tests.support.template_kinds import KINDS
from tests.support.toy import assistant, tiny_model_directory, toy_conversations, user, write_messages_jsonl
from tests.support.toy_search import toy_experiment
from workflows import chat, cli, evaluate, preview

ASKED = [{"role": "user", "content": "hi"}]
ANSWERED = [*ASKED, {"role": "assistant", "content": "yo"}]
OFF = {"enable_thinking": False}


def model_of(folder, kind, *, templates=None, ends=None):
    """A tiny model with the tokenizer of a kind of templates."""
    tiny_model_directory(folder, least_rows=ROWS)
    tokenizer = KINDS[kind].tokenizer()
    tokenizer.chat_template = templates or tokenizer.chat_template
    tokenizer.save_pretrained(folder)
    own = [tokenizer.convert_tokens_to_ids(token) for token in ends or KINDS[kind].special[:1]]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": own}))
    return folder


def checkpoint_of(model, folder, **spec):
    """The files of a checkpoint of a full fine-tune that changed nothing."""
    (folder / "weights").mkdir(parents=True)
    reference = BaseReference(
        model=ModelSpec(path=str(model)),
        digest=model_digest(model),
        chat_format=format_spec_in(model, ChatFormatSpec(**spec)),
    )
    reference.write(folder)
    (folder / "spec.json").write_text(TrialSpec(method=FullMethod(), precision="fp32").model_dump_json())
    shutil.copy(model / "model.safetensors", folder / "weights")
    return folder


def packaged(model, folder, **spec):
    package(checkpoint_of(model, folder / "checkpoint", **spec), folder / "package")
    return folder / "package"


# Packages and exports

SPECS = [
    ("thinking_switch", {"arguments": OFF}),
    ("reasoning_effort", {"arguments": {"reasoning_effort": "low"}}),
    ("dated", {}),
    ("system_refused", {"system": "prepend"}),
    ("two_stops", {}),
    ("next_role_stops", {"train_on_reasoning": False}),
    ("channels", {}),
]


@pytest.mark.parametrize(("kind", "spec"), SPECS)
def test_a_package_has_the_format_that_the_model_was_trained_in(kind, spec, tmp_path):
    model = model_of(tmp_path / "model", kind)
    trained = load_chat_format(KINDS[kind].tokenizer(), format_spec_in(model, ChatFormatSpec(**spec)))
    folder = packaged(model, tmp_path, **spec)
    for loaded in (load_trained(tmp_path / "checkpoint"), load_trained(folder), load_base_of(folder)):
        assert loaded.chat_format.digest() == trained.digest()
        assert loaded.chat_format.stop_token_ids == trained.stop_token_ids
        assert loaded.chat_format.prompt([user("hi")]) == trained.prompt([user("hi")])
    assert BaseReference.read(folder).chat_format.arguments == spec.get("arguments", {})


@pytest.mark.parametrize(("kind", "spec"), SPECS[:3])
@pytest.mark.parametrize("made_by", ["package", "export"])
def test_programs_without_this_code_write_the_same_text_without_being_told(kind, spec, made_by, tmp_path):
    model = model_of(tmp_path / "model", kind)
    folder = packaged(model, tmp_path, **spec)
    tokenizer = folder / "tokenizer"
    if made_by == "export":
        tokenizer = tmp_path / "export"
        export_model(ExportRequest(source=str(folder), target=tokenizer))
    trained = load_chat_format(KINDS[kind].tokenizer(), ChatFormatSpec(**spec))
    plain = AutoTokenizer.from_pretrained(str(tokenizer))
    asked = plain.apply_chat_template(ASKED, tokenize=False, add_generation_prompt=True)
    assert asked == trained.tokenizer.decode(trained.prompt([user("hi")]))
    assert asked == KINDS[kind].tokenizer().apply_chat_template(
        ASKED, tokenize=False, add_generation_prompt=True, chat_template=trained.template
    )


def test_arguments_that_a_caller_gives_go_before_the_trained_ones(tmp_path):
    model = model_of(tmp_path / "model", "reasoning_effort")
    folder = packaged(model, tmp_path, arguments={"reasoning_effort": "low"})
    plain = AutoTokenizer.from_pretrained(str(folder / "tokenizer"))
    assert "effort: low" in plain.apply_chat_template(ANSWERED, tokenize=False)
    assert "effort: medium" in plain.apply_chat_template(ANSWERED, tokenize=False, reasoning_effort="medium")


def test_a_named_template_is_the_packages_only_one(tmp_path):
    templates = {"default": KINDS["appends"].template, "tool_use": KINDS["tools_in_json"].template, "rag": "{{ 1 }}"}
    model = model_of(tmp_path / "model", "tools_in_json", templates=templates)
    folder = packaged(model, tmp_path, template="tool_use")
    plain = AutoTokenizer.from_pretrained(str(folder / "tokenizer"))
    assert plain.chat_template == dict.fromkeys(("default", "tool_use"), templates["tool_use"])
    trained = load_trained(tmp_path / "checkpoint").chat_format
    assert trained.template == templates["tool_use"]
    assert load_trained(folder).chat_format.digest() == load_base_of(folder).chat_format.digest() == trained.digest()
    assert templates_in_use("x", ChatFormatSpec(template="default")) == "x"


@pytest.mark.parametrize(
    ("kind", "ends", "stops"),
    [
        ("two_stops", ["<|over|>"], ["<|over|>"]),
        ("next_role_stops", ["<|endoftext|>", "<|user|>"], ["<|user|>", "<|observation|>", "<|endoftext|>"]),
        ("end_behind_stop", ["<|endoftext|>"], ["<|end|>", "<|endoftext|>"]),
        ("appends", ["<|over|>", "<|turn|>"], ["<|over|>", "<|turn|>"]),
    ],
)
def test_stops_are_the_templates_and_the_generation_configs_wherever_the_model_goes(kind, ends, stops, tmp_path):
    model = model_of(tmp_path / "model", kind, ends=ends)
    folder = packaged(model, tmp_path)
    wanted = KINDS[kind].tokenizer().convert_tokens_to_ids(stops)
    for loaded in (load_trained(tmp_path / "checkpoint"), load_trained(folder), load_base_of(folder)):
        assert list(loaded.chat_format.stop_token_ids) == wanted
    export_model(ExportRequest(source=str(folder), target=tmp_path / "export"))
    exported = json.loads((tmp_path / "export" / "generation_config.json").read_text())
    assert exported["eos_token_id"] == wanted


def test_what_earlier_versions_wrote_as_the_format_is_still_read(tmp_path):
    model = model_of(tmp_path / "model", "end_behind_stop", ends=["<|endoftext|>"])
    folder = packaged(model, tmp_path)
    written = json.loads((folder / "base.json").read_text())
    assert written["chat_format"]["end_token_ids"] == KINDS["end_behind_stop"].tokenizer().convert_tokens_to_ids(
        ["<|endoftext|>"]
    )
    (folder / "base.json").write_text(json.dumps(written | {"chat_format": "auto"}))
    assert BaseReference.read(folder).chat_format == ChatFormatSpec()
    assert load_trained(folder).chat_format.prompt([user("hi")])


# The date


def test_the_date_of_a_template_is_told_and_recorded():
    spec = ChatFormatSpec()
    dated = load_chat_format(KINDS["dated"].tokenizer(), spec)
    assert date_remarks(dated) == ["The chat template writes today's date: in training and in use it is 26 Jul 2024"]
    assert format_facts(spec, dated) == {"turnwise.chat_format": "auto", "turnwise.template_date": "26 Jul 2024"}
    plain = load_chat_format(KINDS["appends"].tokenizer(), spec)
    assert (date_remarks(plain), format_facts(spec, plain)) == ([], {"turnwise.chat_format": "auto"})


def test_a_date_that_the_experiment_gives_is_an_argument_and_no_date_of_ours():
    spec = ChatFormatSpec(arguments={"date_string": "1 May 2026"})
    chat_format = load_chat_format(KINDS["dated"].tokenizer(), spec)
    assert date_remarks(chat_format) == []
    assert format_facts(spec, chat_format) == {
        "turnwise.chat_format": "auto",
        "turnwise.chat_template_arguments": '{"date_string": "1 May 2026"}',
    }


def test_a_search_says_the_date_at_its_opening_and_a_preview_does(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    model_of(tmp_path / "model", "dated")
    write_messages_jsonl(tmp_path / "data.jsonl", toy_conversations(8))
    (tmp_path / "toy.yaml").write_text(toy_experiment("{search: {trials: 2}}"))
    told = []
    prepared = prepare_search(load_experiment("toy.yaml"), on_message=told.append)
    prepared.lock.close()
    sentence = "The chat template writes today's date: in training and in use it is 26 Jul 2024"
    assert told.count(sentence) == 1
    assert prepared.format_facts["turnwise.template_date"] == "26 Jul 2024"
    for arguments in (["toy.yaml"], ["--model", "model", "--data", "data.jsonl"]):
        preview.main(arguments)
        assert sentence in capsys.readouterr().out


def test_a_resumed_search_keeps_the_attention_that_it_began_with(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    model_of(tmp_path / "model", "appends")
    write_messages_jsonl(tmp_path / "data.jsonl", toy_conversations(8))
    (tmp_path / "toy.yaml").write_text(toy_experiment("{search: {trials: 2}}"))
    begun = prepare_search(load_experiment("toy.yaml"))
    begun.lock.close()
    assert begun.manifest.attention == begun.experiment.model.attention == "sdpa"
    replace(begun, manifest=begun.manifest.model_copy(update={"attention": "eager"})).begin()
    resumed = prepare_search(load_experiment("toy.yaml"), resume="newest")
    resumed.lock.close()
    assert resumed.experiment.model.attention == "eager"


# The model's context


SHORT = Conversation(messages=(user("hi"), assistant("yo")))
LONG = Conversation(messages=(user("hi"), assistant("yo"), user("ok " * 20), assistant("bye")))


def test_a_conversation_beyond_the_models_context_is_treated_as_too_long(tmp_path):
    model = model_of(tmp_path / "model", "appends")
    write_messages_jsonl(tmp_path / "train.jsonl", [SHORT, LONG])
    write_messages_jsonl(tmp_path / "eval.jsonl", [Conversation(messages=(user("so"), assistant("now")))])

    def prepared(context, **keys):
        files = {name: str(tmp_path / f"{name}.jsonl") for name in ("train", "eval")}
        data = DataSpec(**{**files, "max_tokens": 100, **keys})
        return prepare(
            data, model_path=model, chat_format="auto", storage=folder_at(tmp_path), context=context, processes=1
        )

    whole = prepared(None)
    longest = int(whole.train.lengths.max())
    assert (whole.counts["truncated"], whole.context) == (0, None)
    assert prepared(100).digest == prepared(4096).digest == whole.digest  # max_tokens says as much already
    cut = prepared(longest - 1)
    assert (cut.counts["truncated"], cut.context, cut.train.is_truncated(1)) == (1, longest - 1, True)
    assert cut.digest != whole.digest
    dropped = prepared(longest - 1, too_long="drop")
    said = (
        f"{tmp_path / 'train.jsonl'}, line 2: an answer and what is before it are {longest} tokens, the model's context"
        f" (max_position_embeddings) is {longest - 1}"
    )
    assert (dropped.counts["dropped_too_long"], dropped.left_out) == (1, (said,))
    with pytest.raises(ValueError, match=r"is \d+; set data.too_long to truncate or drop$"):
        prepared(longest - 1, too_long="fail")
    # What a gate compares: the same conversation is cut in the same place by the model that is to be beaten.
    chat_format = load_trained(packaged(model, tmp_path / "trained")).chat_format
    write_messages_jsonl(tmp_path / "train.jsonl", [SHORT])
    write_messages_jsonl(tmp_path / "eval.jsonl", [LONG])
    held_out = prepared(longest - 1)
    assert find_render_differences(held_out.eval, chat_format, 100, longest - 1) == []
    assert len(find_render_differences(held_out.eval, chat_format, 100)) == 1


def test_a_context_is_what_the_configuration_says(tmp_path):
    assert context_of(model_of(tmp_path / "model", "appends")) == 512
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    scaled = config | {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}}
    for changes, context in (
        (scaled, 512),
        ({"model_type": "bloom"}, None),
        ({"model_type": "gpt2", "n_positions": 77}, 77),
        ({"model_type": "nobody-knows"}, None),
    ):
        (tmp_path / "model" / "config.json").write_text(json.dumps(changes))
        assert context_of(tmp_path / "model") == context
    assert context_of(tmp_path) is None


# Flags


def test_flags_of_the_programs_make_a_format():
    flags = ["--chat-format", "template", "--chat-template", "tool_use"]
    given = [
        *("enable_thinking=false", "reasoning_effort=low", "depth=3", "date_string=2026-05-01", "words=[a, b]"),
        "mixed={a: null}",
    ]
    for argument in given:
        flags += ["--chat-template-argument", argument]
    expected = ChatFormatSpec(
        name="template",
        template="tool_use",
        arguments={
            "enable_thinking": False,
            "reasoning_effort": "low",
            "depth": 3,
            "date_string": "2026-05-01",
            "words": ["a", "b"],
            "mixed": {"a": None},
        },
    )
    for parser, rest in (
        (chat.make_parser(), ["m"]),
        (evaluate.make_parser(), ["m", "--data", "d"]),
        (preview.make_parser(), ["--model", "m", "--data", "d"]),
    ):
        assert cli.format_spec_of(parser.parse_args([*rest, *flags])) == expected
        assert cli.format_spec_of(parser.parse_args(rest)) == ChatFormatSpec()


@pytest.mark.parametrize("argument", ["enable_thinking", "=1", "a b=1"])
def test_a_flag_that_names_no_argument_is_refused(argument):
    arguments = chat.make_parser().parse_args(["m", "--chat-template-argument", argument])
    with pytest.raises(ValueError, match=rf"--chat-template-argument {argument}: write it as key=value"):
        cli.format_spec_of(arguments)


def test_a_base_model_talks_and_is_shown_with_the_arguments(tmp_path, capsys):
    model = model_of(tmp_path / "model", "thinking_switch")
    off = load_model(str(model), chat_format=ChatFormatSpec(arguments=OFF)).loaded.chat_format
    text = off.tokenizer.decode(off.prompt([user("hi")]))
    assert text.endswith("<think>\n\n</think>\n\n")
    write_messages_jsonl(tmp_path / "data.jsonl", [SHORT])
    arguments = ["--model", str(model), "--data", str(tmp_path / "data.jsonl")]
    preview.main([*arguments, "--chat-template-argument", "enable_thinking=false"])
    assert "</think>" in capsys.readouterr().out
    assert chat.main([str(model), "--message", "hi", "--max-new-tokens", "2"]) == 0


def test_flags_about_the_format_of_a_trained_model_are_refused(tmp_path, capsys):
    folder = packaged(model_of(tmp_path / "model", "thinking_switch"), tmp_path)
    with pytest.raises(SystemExit):
        chat.main([str(folder), "--message", "hi", "--chat-template-argument", "enable_thinking=false"])
    assert "it has the chat format that it was trained in" in capsys.readouterr().err


def test_an_argument_that_the_template_does_not_read_is_refused(tmp_path):
    model = model_of(tmp_path / "model", "appends")
    with pytest.raises(
        ValueError, match=r"chat_template_arguments.enable_thinking=false: the chat template does not read"
    ):
        load_model(str(model), chat_format=ChatFormatSpec(arguments=OFF))


def test_a_version_is_tagged_with_what_decides_its_text(tmp_path):
    spec = {"arguments": {"reasoning_effort": "low"}}
    model = model_of(tmp_path / "model", "reasoning_effort")
    write_messages_jsonl(tmp_path / "data.jsonl", toy_conversations(8))
    data = DataSpec(train=str(tmp_path / "data.jsonl"), eval_fraction=0.5)
    dataset = prepare(data, model_path=model, chat_format=ChatFormatSpec(**spec), storage=folder_at(tmp_path))
    started = SimpleNamespace(branch="full", spec=TrialSpec(method=FullMethod()))
    candidate = RegistryCandidate(
        runs=SimpleNamespace(search_id="search"),
        uri="",
        experiment=SimpleNamespace(name="toy"),
        trial=SimpleNamespace(trial_id="trial", started=started),
        report=SimpleNamespace(
            step=3,
            eval_loss=1.0,
            metric=MetricSpec(),
            scores={},
            checkpoint=str(checkpoint_of(model, tmp_path / "checkpoint", **spec)),
        ),
        dataset=dataset,
    )
    tags = candidate.lineage
    assert tags["turnwise.chat_format"] == "auto"
    assert tags["turnwise.chat_template_arguments"] == '{"reasoning_effort": "low"}'
    assert "turnwise.template_date" not in tags
