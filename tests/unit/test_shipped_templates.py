"""The benchmark of shipped templates: it measures the pinned packages or nothing, and finds a template's control tokens."""

import subprocess

import pytest

from components.conversations.chat_formats.rendered import Fork, RenderedConversation
from experiments.benchmarks import shipped_templates
from experiments.benchmarks.shipped_templates import (
    TALKS,
    Outcome,
    Row,
    Wheel,
    fetch,
    markdown,
    outcome_of,
    text_tokenizer,
    tokenizer_of,
    turns_of,
)
from tests.support.template_kinds import KINDS

PINNED = Wheel("parcel", "1.0", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad", "parcel/")


def arrives(monkeypatch, folder, content):
    """Makes pip bring this content."""

    def run(command, **settings):
        (folder / "parcel-1.0-py3-none-any.whl").write_bytes(content)

    monkeypatch.setattr(subprocess, "run", run)


def test_the_pinned_package_is_taken_and_another_one_is_not(monkeypatch, tmp_path):
    arrives(monkeypatch, tmp_path, b"abc")
    assert fetch(PINNED, tmp_path).name == "parcel-1.0-py3-none-any.whl"
    arrives(monkeypatch, tmp_path, b"xyz")
    with pytest.raises(
        SystemExit, match=r"^parcel-1.0-py3-none-any.whl is not the one that this program knows: sha256 3608"
    ):
        fetch(PINNED, tmp_path)


def test_a_package_that_cannot_be_fetched_ends_the_program_in_words(monkeypatch, tmp_path):
    def run(command, **settings):
        raise subprocess.CalledProcessError(1, "pip")

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(SystemExit, match=r"^parcel==1.0 cannot be fetched, so nothing was measured: "):
        fetch(PINNED, tmp_path)


@pytest.mark.parametrize(
    ("template", "tokens"),
    [
        ("<|im_start|>user{{ 'x<|im_end|>' }}<think>", ["<|im_start|>", "user", "<|im_end|>", "<think>"]),
        ("<|turn>model{{ 'x' }}<turn|>", ["<|turn>", "model", "<turn|>"]),
        ("<｜User｜>a<｜end▁of▁sentence｜>", ["<｜User｜>", "a", "<｜end▁of▁sentence｜>"]),
        ("[INST]a[/INST][TOOL_CALLS]</s>", ["[INST]", "a", "[/INST]", "[TOOL_CALLS]", "</s>"]),
        ("[gMASK]<sop>[|user|]a<tools>", ["[gMASK]", "<sop>", "[|user|]", "a", "<", "tools", ">"]),
    ],
)
def test_each_control_token_that_a_template_writes_is_one_token(template, tokens):
    tokenizer = tokenizer_of(template, text_tokenizer(["user", "model", "tools"]))
    text = "".join(tokens)
    assert [tokenizer.decode([token]) for token in tokenizer.encode(text, add_special_tokens=False)] == tokens


def test_a_tree_is_counted_once_and_as_its_rows():
    template = KINDS["thought_in_newest"].template
    tokenizer = tokenizer_of(template, text_tokenizer([template]))
    one, two = outcome_of(tokenizer, TALKS["one turn"]), outcome_of(tokenizer, TALKS["two turns"])
    assert (one.shape, two.shape) == ("path", "tree")
    assert one.in_one_pass < two.in_one_pass < two.separate


def test_the_turns_of_a_tree_are_the_paths_to_their_ends():
    rendered = RenderedConversation(
        token_ids=(1, 2, 3, 4, 5, 6),
        target_weights=(0.0, 0.0, 1.0, 0.0, 0.0, 1.0),
        turn_ends=(3, 6),
        forks=(Fork(3, 1),),
    )
    assert list(turns_of(rendered)) == [[1, 2, 3], [1, 4, 5, 6]]


def test_the_table_says_what_became_of_each_conversation(monkeypatch):
    monkeypatch.setattr(shipped_templates, "TALKS", dict.fromkeys(("a", "b", "c")))
    outcomes = {"a": Outcome(5, 5), "b": Outcome(7, 9, arguments=(("x", False),)), "c": Outcome(refusal="it|is so")}
    table = markdown({PINNED: [Row("mine", outcomes, ("<|end|>",))]})
    assert "| mine | 5 | 7 of 9 x=false | r1 | `<\\|end\\|>` |" in table
    assert "- r1: it\\|is so" in table
    assert (
        "1 templates, of which 1 load. Of 3 conversations 1 are paths, 1 are trees, 1 are refused, 1 of them" in table
    )
