"""The preview shows exactly what will be trained on: in a terminal, as a page, and as JSON for other programs."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from components.conversations.chat_formats import load_chat_format
from components.conversations.chat_formats.rendered import Fork
from components.conversations.messages import Conversation, Message
from components.conversations.preview.mask_preview import (
    PreviewRecord,
    PreviewTotals,
    pieces,
    preview_html,
    preview_texts,
    print_preview,
    verbatim,
)
from components.data.prepare import prepare
from components.data.preview_records import stored_records, totals_of_records
from components.data.token_store import Entry, TokenStore, write_store
from components.experiment.load_experiment import load_experiment
from components.planning import data_preview
from tests.support.toy import LETTERS, assistant, letter_tokenizer, save_letter_tokenizer, user, write_messages_jsonl
from workflows import preview

ROOT = Path(__file__).parents[2]
LETTER = {letter: 4 + number for number, letter in enumerate(LETTERS)}
START, STOP, NEWLINE = 2, 3, LETTER["\n"]


def letters(text):
    return [LETTER[letter] for letter in text]


# user: hi, assistant: yo
HI_YO = [START, *letters("user\nhi"), STOP, NEWLINE, START, *letters("assistant\n"), *letters("yo"), STOP, NEWLINE]
HI_YO_LABELS = [-100] * 21 + [*letters("yo"), STOP, -100]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A directory with the tokenizer's files and nothing else."""
    folder = tmp_path_factory.mktemp("model")
    save_letter_tokenizer(folder)
    return folder


@pytest.fixture
def data(tmp_path):
    """hi -> yo; and two turns, 42 tokens up to the first stop."""
    file = tmp_path / "talks.jsonl"
    long = Conversation(messages=(user("a" * 10), assistant("b" * 12), user("c"), assistant("d")))
    write_messages_jsonl(file, [Conversation(messages=(user("hi"), assistant("yo"))), long])
    return file


def shown(capsys, *arguments):
    assert preview.main([str(argument) for argument in arguments]) == 0
    return capsys.readouterr()


def refused(capsys, *arguments):
    """What is said on stderr, with the status for bad input and nothing on stdout."""
    with pytest.raises(SystemExit) as caught:
        preview.main([str(argument) for argument in arguments])
    said = capsys.readouterr()
    assert (caught.value.code, said.out) == (2, "")
    return said.err


def record(text, weights, **more):
    return PreviewRecord(source="a, line 1", token_ids=letters(text), target_weights=weights, **more)


# JSON


def test_json_is_a_line_of_tokens_and_labels_each_and_needs_only_the_tokenizer(capsys, model, data):
    lines = shown(capsys, "--model", model, "--data", data, "--json").out.splitlines()
    assert json.loads(lines[0]) == {"token_ids": HI_YO, "labels": HI_YO_LABELS}
    assert [len(json.loads(line)["token_ids"]) for line in lines] == [25, 66]  # not truncated
    assert all(len(json.loads(line)["labels"]) == len(json.loads(line)["token_ids"]) for line in lines)


def test_json_is_truncated_only_if_asked_and_what_never_fits_is_an_empty_line(capsys, model, data):
    lines = shown(capsys, "--model", model, "--data", data, "--json", "--max-tokens", 60).out.splitlines()
    assert [len(json.loads(line)["token_ids"]) for line in lines] == [25, 42]
    assert json.loads(lines[1])["labels"][-2:] == [LETTER["b"], STOP]
    said = shown(capsys, "--model", model, "--data", data, "--json", "--max-tokens", 30)
    assert [json.loads(line) for line in said.out.splitlines()] == [
        {"token_ids": HI_YO, "labels": HI_YO_LABELS},
        {"token_ids": [], "labels": []},
    ]
    assert said.err.splitlines() == [
        f"{data}, line 2: dropped, of its 66 tokens not even the first scored turn fits into 30",
        "1 conversations, 25 tokens, 3 of them scored (12%); 1 dropped, 0 truncated",
    ]


def test_the_chat_format_and_the_layout_can_be_named(capsys, tmp_path):
    own = "{% for m in messages %}<|im_start|>{{ m.role[0] }}{{ m.content }}<|im_end|>{% endfor %}"
    save_letter_tokenizer(tmp_path / "model", own + "{% if add_generation_prompt %}<|im_start|>a{% endif %}")
    (tmp_path / "a.json").write_text(json.dumps([{"instruction": "hi", "output": "yo", "messages": "of another kind"}]))
    named = ("--model", tmp_path / "model", "--data", tmp_path / "a.json", "--format", "alpaca", "--json")
    chatml = json.loads(shown(capsys, *named, "--chat-format", "chatml").out)
    assert chatml == {"token_ids": HI_YO, "labels": HI_YO_LABELS}
    assert json.loads(shown(capsys, *named).out)["token_ids"] == [
        START,
        *letters("uhi"),
        STOP,
        START,
        *letters("ayo"),
        STOP,
    ]


# The terminal


def test_without_colors_scored_tokens_stand_in_brackets(capsys, model, data):
    assert (
        shown(capsys, "--model", model, "--data", data, "--records", 1).out
        == f"""\
{data}, line 1: 25 tokens, 3 of them scored (12%) in 1 turn
<|im_start|>user
hi<|im_end|>
<|im_start|>assistant
⟦yo<|im_end|>⟧

2 conversations, 91 tokens, 18 of them scored (20%); 0 dropped, 0 truncated
"""
    )


def printed(*records, color_system):
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, color_system=color_system, width=200)
    print_preview(console, records, verbatim(letter_tokenizer()))
    return file.getvalue()


def test_weights_other_than_one_are_told():
    weighted = record("abcdefg", [0, 0.5, 0.5, 1, 0, 0.25, 0.25])
    assert printed(weighted, color_system=None).splitlines()[1] == "a⟦bc⟧×0.5⟦d⟧e⟦fg⟧×0.25"


def test_colors_are_green_for_scored_tokens_and_yellow_for_weighted_ones():
    colored = printed(record("ab\nc", [0, 1, 1, 0.5]), color_system="standard")
    black_on_green, black_on_bright_green, black_on_bright_yellow = "\x1b[30;42m", "\x1b[30;102m", "\x1b[30;103m"
    assert f"\na{black_on_bright_green}b" in colored
    assert f"{black_on_green}↵" in colored
    assert f"{black_on_bright_yellow}c" in colored


def test_markup_in_a_conversation_is_text():
    assert printed(record("[b]x[/b]", [0] * 8), color_system=None).splitlines()[1] == "[b]x[/b]"


# Tokens as text


def byte_tokenizer():
    vocabulary = {token: number for number, token in enumerate([*sorted(pre_tokenizers.ByteLevel.alphabet()), "</s>"])}
    tokenizer = Tokenizer(BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")


def test_a_character_of_several_tokens_is_shown_once_it_is_whole():
    tokenizer = byte_tokenizer()
    token_ids = tokenizer.encode("a你é🙂")
    whole = PreviewRecord(source="a", token_ids=token_ids, target_weights=[0.0] * len(token_ids))
    assert [(piece.text, len(piece.token_ids)) for piece in pieces(whole, verbatim(tokenizer))] == [
        ("a", 1),
        ("你", 3),
        ("é", 2),
        ("🙂", 4),
    ]
    broken = PreviewRecord(source="a", token_ids=token_ids[2:5], target_weights=[0.0] * 3)
    assert [piece.text for piece in pieces(broken, verbatim(tokenizer))] == ["\ufffd", "\ufffd", "\ufffd"]


def test_words_keep_the_blank_that_some_tokenizers_take_off_them():
    tokenizer = Tokenizer(BPE({"▁": 0, "a": 1, "b": 2, "▁a": 3, "▁b": 4}, [("▁", "a"), ("▁", "b")]))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    words = PreviewRecord(source="a", token_ids=[3, 4, 2, 3], target_weights=[0.0] * 4)
    decode = verbatim(PreTrainedTokenizerFast(tokenizer_object=tokenizer))
    assert [piece.text for piece in pieces(words, decode)] == ["a", " b", "b", " a"]


# The page


def test_the_page_shows_each_token_with_its_weight_and_needs_nothing_else():
    totals = PreviewTotals(conversations=1200, tokens=9000, targets=900, dropped=3, truncated=2)
    records = [record("<b>&", [0, 0, 1, 0.5], note="truncated, its last turns did not fit")]
    page = preview_html(records, verbatim(letter_tokenizer()), "toy & co", totals)
    assert "<title>toy &amp; co</title>" in page
    assert "1,200 conversations, 9,000 tokens, 900 of them scored (10%); 3 dropped, 2 truncated" in page
    assert "4 tokens, 2 of them scored (50%) in 1 turn; truncated, its last turns did not fit" in page
    ids = letters("<b>&")
    assert page[page.index("<pre>") : page.index("</pre>")] == (
        f'<pre><span title="{ids[0]}">&lt;</span><span title="{ids[1]}">b</span>'
        f'<span class="scored" title="{ids[2]}, weight 1">&gt;</span>'
        f'<span class="weighted" title="{ids[3]}, weight 0.5">&amp;</span>'
    )
    assert not any(outside in page for outside in ("http", "<script", "src=", "href=", "@import", "url("))


def test_the_page_is_written_where_the_user_says(capsys, model, data, tmp_path):
    page = tmp_path / "preview.html"
    said = shown(capsys, "--model", model, "--data", data, "--records", 1, "--html", page)
    assert said.out.splitlines()[-1] == f"page {page}"
    assert page.read_text(encoding="utf-8").count("<section>") == 1
    message = refused_after_output(capsys, "--model", model, "--data", data, "--html", tmp_path / "no" / "page.html")
    assert message == f"{tmp_path / 'no' / 'page.html'}: No such file or directory\n"


def refused_after_output(capsys, *arguments):
    with pytest.raises(SystemExit) as caught:
        preview.main([str(argument) for argument in arguments])
    assert caught.value.code == 2
    return capsys.readouterr().err


# An experiment

EXPERIMENT = """
name: toy
model: {path: %s}
data: {train: %s, eval: %s, max_tokens: 50}
storage: {path: %s}
search: {space: {full: {method: {kind: full}}}}
"""


@pytest.fixture
def experiment(tmp_path, model, data):
    held_out = tmp_path / "held_out.jsonl"
    write_messages_jsonl(held_out, [Conversation(messages=(user("x"), assistant("y")))])
    with data.open("a") as file:
        file.write(
            json.dumps({"messages": [{"role": "user", "content": "e" * 50}, {"role": "assistant", "content": "f"}]})
        )
    path = tmp_path / "toy.yaml"
    path.write_text(EXPERIMENT % (model, data, held_out, tmp_path / "runs"))
    return path


def test_an_experiment_is_shown_as_its_search_will_train_on_it(capsys, model, data, experiment):
    out = shown(capsys, experiment, "--records", 2).out
    assert out.splitlines()[:7] == [
        f"{data}, line 1: 25 tokens, 3 of them scored (12%) in 1 turn",
        "<|im_start|>user",
        "hi<|im_end|>",
        "<|im_start|>assistant",
        "⟦yo<|im_end|>⟧",
        "",
        f"{data}, line 2: 42 tokens, 13 of them scored (31%) in 1 turn; truncated, its last turns did not fit",
    ]
    loaded = load_experiment(experiment)
    dataset = prepare(loaded.data, model_path=model, chat_format="auto", storage=loaded.folder.parent)
    assert dataset.reused
    assert out.splitlines()[-4:] == [
        f"data {dataset.digest[:12]} prepared: 2 conversations to train on (16 target tokens), 1 held out (2),"
        " 1 dropped as too long, 1 truncated",
        dataset.verdict_note,
        f"{data}, line 3: 72 tokens, data.max_tokens is 50",
        "3 conversations, 90 tokens, 18 of them scored (20%); 1 dropped, 1 truncated",
    ]


def test_an_experiment_can_be_changed_and_printed_as_json(capsys, experiment):
    said = shown(capsys, experiment, "--set", "data.max_tokens=100", "--json")
    assert [len(json.loads(line)["token_ids"]) for line in said.out.splitlines()] == [25, 66, 72]
    assert "0 dropped, 0 truncated" in said.err


# Of a million records, a sample


@pytest.fixture
def many(data, monkeypatch):
    """41 lines, of which every fourth is a sample; those before these cannot be used."""
    monkeypatch.setattr(data_preview, "LARGE", 40)
    monkeypatch.setattr(data_preview, "SAMPLE", 10)
    talks = [Conversation(messages=(user("a" * (n % 7 + 1)), assistant("b" * (n // 7 + 1)))) for n in range(41)]
    write_messages_jsonl(data, talks)
    lines = data.read_text(encoding="utf-8").splitlines()
    lines[3::4] = ['{"messages": []}'] * 10
    data.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return data


def test_of_large_data_a_sample_is_shown_in_the_lines_own_numbers(capsys, model, many):
    out = shown(capsys, "--model", model, "--data", many, "--records", 3).out
    assert "a sample of 11 of 41 records; --json takes all" in out
    assert [line for line in range(41) if f"line {line}:" in out] == [1, 5, 9]
    assert "11 conversations, " in out
    assert "10 of 41 conversations cannot be used" in refused(capsys, "--model", model, "--data", many, "--json")


def test_an_experiment_with_large_data_is_prepared_by_its_search(capsys, experiment, many):
    dropping = "--set", "data.on_bad_row=drop"
    loaded = load_experiment(experiment)
    out = shown(capsys, experiment, *dropping).out
    assert "a sample of 11 of 41 records" in out
    assert loaded.folder.parent.list_names() == []
    assert "a sample" not in shown(capsys, experiment, *dropping, "--json").err
    assert "conversations to train on" in shown(capsys, experiment, *dropping).out


# What is refused


def test_what_is_wrong_is_said_without_a_traceback(capsys, model, data, experiment, tmp_path):
    both = "give an experiment, or both --model and --data"
    assert refused(capsys).splitlines()[-1].endswith(both)
    assert refused(capsys, experiment, "--model", model, "--data", data).splitlines()[-1].endswith(both)
    assert refused(capsys, "--model", model).splitlines()[-1].endswith(both)
    assert "'0' is no whole number above 0" in refused(capsys, "--model", model, "--data", data, "--records", 0)
    assert "unknown key" in refused(capsys, experiment, "--set", "data.max_token=9")
    assert refused(capsys, "--model", model, "--data", "none.jsonl").startswith("none.jsonl: no such file; ")
    nowhere = tmp_path / "nowhere"
    assert refused(capsys, "--model", nowhere, "--data", data) == f"model.path={nowhere}: no such directory\n"
    empty = tmp_path / "empty"
    empty.mkdir()
    assert refused(capsys, "--model", empty, "--data", data).startswith(
        f"model.path={empty}: no tokenizer can be loaded"
    )
    assert refused(capsys, "--model", model, "--data", data, "--chat-format", "alpaca") == (
        "chat_format=alpaca: unknown; valid are auto, template, chatml, chatglm3, chatglm3_base_tuning\n"
        "what the data has: 3 conversations of 2 to 4 (median 2) messages (4 user, 4 assistant), with 4 to 51 (median 24)"
        " letters each\n"
    )
    data.write_text('{"messages": [{"role": "user", "content": "hi"}]}')
    assert refused(capsys, "--model", model, "--data", data, "--json") == (
        f"{data}: 1 of 1 conversations cannot be used (data.on_bad_row=drop leaves them out)\n"
        '  line 1: message 1, the last, is from "user"; the last word must be the assistant\'s\n'
    )


def test_in_a_process_of_its_own_it_prints_json_and_only_the_error_if_there_is_one(model, data):
    command = [sys.executable, "workflows/preview.py", "--model", str(model), "--json", "--data"]
    done = subprocess.run([*command, str(data)], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    assert json.loads(done.stdout.splitlines()[0]) == {"token_ids": HI_YO, "labels": HI_YO_LABELS}
    assert done.stderr == "2 conversations, 91 tokens, 18 of them scored (20%); 0 dropped, 0 truncated\n"
    failed = subprocess.run(
        [*command, "none.jsonl"], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert (failed.returncode, failed.stdout) == (2, "")
    assert failed.stderr.splitlines() == [
        "none.jsonl: no such file; a path is relative to where you run this, and a dataset of the hub is"
        " hf:NAME[:SPLIT][@REVISION]"
    ]


# Trees

THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role[0] }}:"
    "{% if m.role == 'assistant' and loop.last and m.reasoning_content %}({{ m.reasoning_content }}){% endif %}"
    "{{ m.content }}<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>a:{% endif %}"
)


def thinking_records(tmp_path, *turns):
    """Records of one conversation in which the assistant thinks before each answer."""
    chat_format = load_chat_format(letter_tokenizer(THINKING))
    messages = []
    for question, thought, answer in turns:
        messages += [user(question), Message(role="assistant", content=answer, reasoning_content=thought)]
    write_store(
        tmp_path / "t.arrow", [Entry(source="one", rendered=chat_format.render(Conversation(messages=tuple(messages))))]
    )
    return stored_records(TokenStore(tmp_path / "t.arrow"))


def test_a_tree_is_shown_as_one_conversation_with_what_later_turns_do_not_see(tmp_path):
    records = thinking_records(tmp_path, ("hi", "hm", "yo"), ("ok", "so", "bye"), ("x", "y", "z"))
    decode = verbatim(letter_tokenizer())
    heading, text = preview_texts(records, decode, colors=False)
    assert text.plain == (
        "<|im_start|>u:hi<|im_end|><|im_start|>a:⌊⟦(hm)⟧⌋⟦yo<|im_end|>⟧<|im_start|>u:ok<|im_end|><|im_start|>a:"
        "⌊⟦(so)⟧⌋⟦bye<|im_end|>⟧<|im_start|>u:x<|im_end|><|im_start|>a:⟦(y)z<|im_end|>⟧\n"
    )
    (record,) = records
    assert (len(record.token_ids), record.num_separate_tokens) == (53, 83)
    assert heading.plain == (
        "one: 53 tokens, 20 of them scored (38%) in 3 turns; in separate rows they would be 83 tokens (⌊ ⌋ only its own turn"
        " sees it, ⌈ ⌉ only later turns do)"
    )
    page = preview_html(records, decode, "t")
    assert '<span class="scored once" title=' in page
    assert "Struck through" in page


def test_what_only_later_prompts_have_is_marked():
    weights = [0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 1]
    record = PreviewRecord(source="one", token_ids=letters("aqXbcqYbdef"), target_weights=weights, forks=(Fork(5, 1),))
    (_, text) = preview_texts([record], verbatim(letter_tokenizer()), colors=False)
    assert text.plain == "aq⌊X⌋⌈Y⌉⟦b⟧⌊⟦c⟧⌋de⟦f⟧\n"


def test_totals_say_what_one_pass_saves(tmp_path):
    records = thinking_records(tmp_path, ("hi", "hm", "yo"), ("ok", "so", "bye"))
    assert (
        totals_of_records(records)
        .sentence()
        .endswith("; the chat template rewrites earlier turns in 1 of them: 36 tokens in one pass, 45 in separate rows")
    )
